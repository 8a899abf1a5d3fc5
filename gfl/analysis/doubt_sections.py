"""The report's cards about doubt: beside error, in intervals, beside true blur."""

from gfl.analysis import plots
from gfl.analysis.coverage import LEVELS
from gfl.analysis.doubt import SIDES
from gfl.analysis.markup import figure, heading, keys, number, paragraph, section, table, two
from gfl.analysis.records import Records

NO_SIDE = "No side of a correctly found object counts here, so that there is nothing to compare."


def doubt_section(n: dict, records: Records) -> str:
    """Deviation beside error, and the coverage of intervals."""
    title, found, coverage = "Does doubt mean error?", n["doubt"], n["coverage"]
    if not found["all"]["sides"]:
        return section(title, paragraph(NO_SIDE))
    head = ("side", "sides", "rank correlation", "size held fixed")
    rows = [
        (
            name,
            number(found[name]["sides"]),
            number(found[name]["rank_correlation"]),
            number(found[name]["size_held_fixed"]),
            number(found[name]["rms_deviation"]),
            number(found[name]["rms_error"]),
        )
        for name in (*SIDES, "all")
    ]
    intro = paragraph(
        "Sides of true detections, in pixels of the original image. "
        f"{found['clipped_left_out']} sides that were cut off at the image's border are left out."
    )
    explained = paragraph(
        "Rank correlation: Spearman's, of the predicted deviation (edge_std) and the distance from "
        "the true side. Size held fixed: the same given the size of the box, since large boxes "
        "have larger deviations and larger errors anyway. The rms columns are roots of mean "
        "squares: a deviation that means what it says has them equal.",
        "muted",
    )
    error = figure(
        plots.deviation_and_error(records),
        "Sides in ten groups of equal number, the surest first. Rising: doubt means error. On the "
        "diagonal: as much as it says.",
    )
    body = [table((*head, "rms deviation", "rms error"), rows), explained]
    if found["all"]["rms_deviation"] == 0:
        body.append(
            paragraph("All deviations are 0: these boxes have no doubt that could be ranked.")
        )
    if "left_out" in coverage:
        return section(title, intro, two(error, "".join(body)), paragraph(coverage["left_out"]))
    curve = figure(
        plots.reliability(records, coverage),
        "How many true sides lie in the central interval of each probability. Below the diagonal "
        "the intervals are too narrow, above it too wide. Bars: 95 % confidence intervals, images "
        "taken as the independent units.",
    )
    legend = [
        ("blue", "as predicted"),
        ("green", f"with the temperature {coverage['temperature']:.2f}, fitted on these sides"),
    ]
    if coverage["stored"]:
        stored = f"with the stored temperature {coverage['stored_temperature']:.2f}"
        legend.append(("orange", stored))
    plots_beside = two(error, curve + keys(legend))
    return section(title, intro, plots_beside, *body, *_intervals(coverage))


def _intervals(found: dict) -> list[str]:
    plain, fitted, stored = found["plain"], found["fitted"], found["stored"]
    sets = [("as predicted", plain)]
    if stored:
        sets.append((f"stored temperature {found['stored_temperature']:.2f}", stored))
    if fitted:
        sets.append((f"temperature {found['temperature']:.2f}", fitted))
    sets += [(f"{name}, as predicted", one) for name, one in found["per_side"].items() if one]
    rows = [
        (name, *(f"{100 * c['share']:.1f} ± {100 * c['margin']:.1f}" for c in one["levels"]))
        for name, one in sets
    ]
    head = ("true sides inside, %", *(f"{100 * level:g} % interval" for level in LEVELS))
    parts = [heading("Intervals"), paragraph(plain["text"], _kind(plain))]
    if stored:
        text = f"With the temperature {found['stored_temperature']:.3g} that the checkpoint holds: "
        parts.append(paragraph(text + stored["text"], _kind(stored)))
    if fitted:
        text = (
            f"With a temperature fitted on this split ({found['temperature']:.3g} on all of it): "
            f"{fitted['text']} Each half of the images was measured with the temperature of the "
            "other half."
        )
        parts.append(paragraph(text, _kind(fitted)))
    explained = (
        "The temperature multiplies every deviation and stretches every distribution about its "
        "expectation, so that boxes and scores stay as they are. It is the one that brings the "
        "coverage of the four intervals nearest to their probabilities (least squares). "
        "A bin's probability is spread evenly over the bin's own width. "
        f"'Calibrated' is said if each coverage, with its confidence interval, is within "
        f"{100 * found['tolerance']:g} points of its probability."
    )
    return [*parts, table(head, rows), paragraph(explained, "muted")]


def blur_section(n: dict, records: Records) -> str:
    """Deviation beside the true blur of edges, where it is known."""
    found = n["edge_blur"]
    if found is None:
        return ""
    title = "Does doubt mean blur?"
    if not found["all"]["sides"]:
        return section(title, paragraph(NO_SIDE))
    rows = [
        (
            name,
            number(found[name]["sides"]),
            number(found[name]["rank_correlation"]),
            number(found[name]["size_held_fixed"]),
        )
        for name in (*SIDES, "all")
    ]
    text = paragraph(
        "This data set says how blurred each edge is (edge_blur). Rank correlation: Spearman's, of "
        "the predicted deviation and the true blur, over the sides of true detections."
    )
    plot = figure(
        plots.blur_and_deviation(records),
        "Sides in ten groups by their true blur. Rising: blurred edges are doubted more.",
    )
    head = ("side", "sides", "rank correlation", "size held fixed")
    return section(title, text, two(plot, table(head, rows)))


def _kind(one: dict) -> str:
    return f"verdict {one['verdict']}"
