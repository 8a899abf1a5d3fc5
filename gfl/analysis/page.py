"""The report as one HTML file without a script or any reference to another file."""

from html import escape
from pathlib import Path

from gfl.analysis import plots, tide
from gfl.analysis.collect import Collected
from gfl.analysis.doubt_sections import blur_section, doubt_section
from gfl.analysis.gallery import Gallery, Side, choose_sides, draw_tiles
from gfl.analysis.markup import folded, heading, keys, number, paragraph, percent, section, tiles
from gfl.analysis.sections import consistency_section, mistakes_section
from gfl.analysis.shapes import FLAT, SHARP

TEMPLATE = Path(__file__).parent.parent / "html" / "analysis.html"
VERDICTS = {
    "calibrated": "calibrated",
    "too_narrow": "too narrow",
    "too_wide": "too wide",
    "uneven": "uneven",
    "open": "open",
    "too_few": "too few sides",
}


def report_page(n: dict, collected: Collected) -> str:
    """The page of `report_numbers`' numbers and of the records that they were made of: ASCII."""
    records = collected.split.records
    title = f"{Path(n['checkpoint']).name} on {n['split']}"
    body = [
        _head(title, n),
        _facts(n),
        consistency_section(n, records, collected.quality),
        _shapes(n, collected),
        doubt_section(n, records),
        blur_section(n, records),
        mistakes_section(n),
        '<footer class="muted">Written by <code>gfl analyze</code>, version '
        f"{escape(n['gfl_version'])}. How to read each plot: docs/analysis.md. All numbers: "
        "report.json.</footer>",
    ]
    page = TEMPLATE.read_text(encoding="ascii").replace("/*TITLE*/", escape(title))
    page = page.replace("<!--BODY-->", "\n".join(body))
    # Any character of a name is kept, as a reference to it.
    return page.encode("ascii", "xmlcharrefreplace").decode("ascii")


def _head(title: str, n: dict) -> str:
    counts = (
        f"{n['images']} images, {n['objects']} objects, {n['detections']} detections from score "
        f"{n['score_threshold']:g} on. Quality mode {n['quality_mode']}, boxes {n['box']}."
    )
    path = f"{n['checkpoint']}, {n['weights']}"
    return f"<h1>{escape(title)}</h1>{paragraph(path, 'muted')}{paragraph(counts)}"


def _facts(n: dict) -> str:
    """The main numbers, large."""
    errors, found, doubt = n["errors"], n["consistency"], n["doubt"]["all"]
    facts = [
        (number(errors["AP50"], 3), "AP50"),
        (number(found["rank_correlation"]), "rank correlation of score and IoU"),
        (percent(found["wrong_pairs"]), "of pairs have background above a true detection"),
        (number(doubt["rank_correlation"]), "rank correlation of doubt and error"),
    ]
    if "plain" in n["coverage"]:
        verdict = VERDICTS[n["coverage"]["plain"]["verdict"]]
        facts.append((verdict, "intervals of the sides, as predicted"))
    if errors["AP50"] is not None and any(errors["kinds"][k]["count"] for k in tide.KINDS):
        worst = max(tide.KINDS, key=lambda kind: errors["kinds"][kind]["gain"])
        gain = errors["kinds"][worst]["gain"]
        facts.append((worst, f"is the costliest kind of mistake ({gain:.3f} of AP50)"))
    cards = "".join(
        f'<div class="fact"><b>{escape(value)}</b>{escape(text)}</div>' for value, text in facts
    )
    return f'<div class="facts">{cards}</div>'


def _shapes(n: dict, collected: Collected) -> str:
    title, counts = "Sharp, flat and two-peaked sides", n["shapes"]
    if counts is None:
        text = f"Left out: the box representation {n['box']!r} gives no distributions of the sides."
        return section(title, paragraph(text))
    gallery = choose_sides(collected.split.records)
    if gallery is None:
        return section(title, paragraph("No object was found correctly: no side to look at."))
    total = sum(counts.values())
    colours = ("green", "grey", "orange", "blue")
    legend = keys(
        (colour, f"{name} {count} ({100 * count / total:.1f} %)")
        for colour, (name, count) in zip(colours, counts.items(), strict=True)
    )
    rules = paragraph(
        "The sides of true detections by the shape of their distribution, counted in bins. "
        f"Sharp: deviation up to {SHARP:g} bins (a perfectly sure side between two bins has 0.5). "
        f"Flat: {FLAT:g} bins or more. Two-peaked: a valley between two bins at least twice as "
        "probable as it, with 15 % or more of the probability on both sides. Ordinary: the rest."
    )
    reading = keys(
        [
            ("orange", "predicted side"),
            ("green", "true side (dashed)"),
            ("yellow", "its distribution, where the bins lie"),
        ]
    )
    drawn = draw_tiles(_all_sides(gallery), collected.split.records, collected.dataset)
    parts = [rules, legend, plots.shape_shares(counts), reading]
    for name, sides in gallery.by_shape.items():
        if sides:
            parts += [heading(name.capitalize()), tiles(drawn[side] for side in sides)]
    inner = []
    for name, (doubtful, sure) in gallery.by_class.items():
        inner += [heading(name), tiles(drawn[side] for side in (*doubtful, *sure))]
    if gallery.left_out:
        inner.append(paragraph(f"{gallery.left_out} more classes are not shown.", "muted"))
    parts.append(folded("By class: the most doubtful, then the surest sides", "".join(inner)))
    return section(title, *parts)


def _all_sides(gallery: Gallery) -> list[Side]:
    ends = [side for pair in gallery.by_class.values() for end in pair for side in end]
    return [side for sides in gallery.by_shape.values() for side in sides] + ends
