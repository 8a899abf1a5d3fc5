"""The cards of the report: numbers, what they are, and plots, in plain words."""

from gfl.analysis import plots, tide
from gfl.analysis.markup import (
    figure,
    folded,
    heading,
    keys,
    meanings,
    number,
    paragraph,
    percent,
    section,
    table,
    two,
)
from gfl.analysis.quality import QualitySamples
from gfl.analysis.records import Records

GUIDED = "the class label of a positive is 1, and its {0} weighs the losses; nothing but the class "
GUIDED += "score is predicted."
BRANCH = (
    "the class label of a positive is 1. A second output learns the {0} on positives alone and "
)
BRANCH += "multiplies the class score."
QUALITY_MODES = {
    "joint": "one output is trained to be the expected IoU of the class, and to be 0 on background "
    "(quality focal loss). There is no quality output apart that could be high on background.",
    "distribution_guided": "the class score is multiplied by a quality that is computed from the "
    "shape of the side distributions, and the product is trained as the expected IoU.",
    "none": "the class score alone; the class label of a positive is 1, however its box lies.",
    "centerness_branch": BRANCH.format("centerness"),
    "iou_branch": BRANCH.format("IoU"),
    "centerness_guided": GUIDED.format("centerness"),
    "iou_guided": GUIDED.format("IoU"),
}


def consistency_section(n: dict, records: Records, samples: QualitySamples | None) -> str:
    """Score against IoU, and background against true detections."""
    found, mode = n["consistency"], n["quality_mode"]
    words = QUALITY_MODES.get(mode, "see the documentation of model.quality.")
    parts = [paragraph(f"Quality mode {mode!r}: {words}")]
    if not n["detections"]:
        parts.append(paragraph("There are no detections, so that there is nothing to compare."))
        return section("Does the score know how good the box is?", *parts)
    legend = keys(
        [
            ("blue", f"true detections ({found['true']})"),
            ("orange", f"background boxes ({found['background']})"),
            ("grey", f"neither ({found['other']}): duplicates, badly placed, wrong class"),
        ]
    )
    scatter = figure(
        plots.score_and_iou(records),
        f"Each dot is a detection from score {n['score_threshold']:g} on; at most "
        f"{plots.MOST_DOTS} of a colour are drawn. Good: blue along the diagonal, orange low. "
        "Orange above blue is what a joint score is to prevent.",
    )
    bins = figure(
        plots.score_bins(found["score_bins"]),
        "All detections, in ten stretches of the score. On the diagonal the score is the expected "
        "IoU of the class.",
    )
    rows = [
        (
            "rank correlation",
            number(found["rank_correlation"]),
            "Spearman's, of score and IoU over the true detections: 1 if better boxes always score "
            "higher.",
        ),
        (
            "mean score, mean IoU",
            f"{number(found['mean_score'])}, {number(found['mean_iou'])}",
            "of the true detections, which were chosen by their IoU: the score may well be lower.",
        ),
        (
            "wrong pairs",
            percent(found["wrong_pairs"]),
            "of all pairs of a true detection and a background box of one class, those in which "
            "the background box scores higher (equal ones count half).",
        ),
        (
            "background above the median",
            number(found["background_above_median"]),
            "background boxes that score higher than half of the true detections of their class.",
        ),
    ]
    definitions = paragraph(
        "True detection: matched one to one to an object of its class, as COCO does, at IoU 0.5. "
        "Background box: overlaps no object of any class by IoU 0.1 or more.",
        "muted",
    )
    parts += [legend, two(scatter, bins), meanings(rows), definitions, _per_class(found)]
    if samples is not None:
        parts += _quality(n["quality"], samples)
    return section("Does the score know how good the box is?", *parts)


def _per_class(found: dict) -> str:
    names = ("class", "true", "background", "rank correlation", "mean score", "mean IoU")
    rows = [
        (
            name,
            number(one["true"]),
            number(one["background"]),
            number(one["rank_correlation"]),
            number(one["mean_score"]),
            number(one["mean_iou"]),
            percent(one["wrong_pairs"]),
        )
        for name, one in found["per_class"].items()
    ]
    return folded("By class", table((*names, "wrong pairs"), rows))


def _quality(found: dict, samples: QualitySamples) -> list[str]:
    text = (
        "The network has a quality output apart from its class scores. Locations were drawn at "
        "random in each image: on an object (the location's box overlaps one by IoU 0.5 or more) "
        "and on background (less than 0.1)."
    )
    half = "half of the locations drawn there have a higher one."
    rows = [
        ("median quality on objects", number(found["median_quality_on_object"]), half),
        ("median quality on background", number(found["median_quality_on_background"]), half),
        (
            "background with high quality",
            percent(found["background_with_quality_from_half"]),
            "of the background locations have a quality of 0.5 or more.",
        ),
    ]
    for name, share in found["wrong_pairs"].items():
        words = (
            "pairs of a location on an object and one on background in which background has the "
        )
        words += "higher one; equal ones count half."
        rows.append((f"wrong pairs by {name}", percent(share), words))
    caption = (
        "Orange dots high up are background with a high quality: only their class score keeps them "
        "from being detections."
    )
    plot = figure(plots.quality_and_class(samples), caption)
    return [heading("The quality output"), paragraph(text), two(plot, meanings(rows))]


def mistakes_section(n: dict) -> str:
    """Kinds of mistakes, and what mending each would gain."""
    errors, title = n["errors"], "Which mistakes cost AP?"
    if errors["AP50"] is None:
        return section(title, paragraph("The split has no object: there is no AP."))
    text = paragraph(
        f"AP50 is {errors['AP50']:.3f}. The kinds are those of TIDE (arXiv 2008.08115). "
        "Gains do not add up, since mistakes hide each other; many of low score cost little."
    )
    counts = figure(plots.mistakes(errors, "count"), "How many there are.")
    gains = figure(plots.mistakes(errors, "gain"), "AP50 gained if they were mended.")
    head = ("kind", "count", "AP50 gained", "what it is")
    rows = [
        (
            name,
            number(errors["kinds"][name]["count"]),
            f"{errors['kinds'][name]['gain']:+.4f}",
            KIND_WORDS[name],
        )
        for name in tide.KINDS
    ]
    return section(title, text, two(counts, gains), table(head, rows, muted=3))


KIND_WORDS = {
    "classification": "A wrong detection that overlaps an object of another class by IoU 0.5 or "
    "more; mended by the right class.",
    "localisation": "Overlaps an object of its class by 0.1 or more, less than 0.5; mended by the "
    "true box.",
    "both": "Overlaps an object of another class by more than 0.1, less than 0.5; mended by being "
    "left out.",
    "duplicate": "Overlaps an object of its class that a better detection has; mended by being "
    "left out.",
    "background": "Overlaps no object by more than 0.1; mended by being left out.",
    "missed": "An object that neither a detection nor a mistake of the first two kinds points at; "
    "mended by being left out of the truth.",
}
