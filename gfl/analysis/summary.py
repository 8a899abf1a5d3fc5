"""The main numbers as lines of text."""

from gfl.analysis import tide
from gfl.analysis.markup import number, percent


def summary_lines(n: dict) -> list[str]:
    """A table of the report's main numbers."""
    found, doubt, coverage = n["consistency"], n["doubt"]["all"], n["coverage"]
    lines = [
        f"{n['images']} images, {n['objects']} objects, {n['detections']} detections",
        f"{'quality mode, boxes':48s}{n['quality_mode']}, {n['box']}",
        _row("AP50", number(n["errors"]["AP50"], 4)),
        _row("rank correlation of score and IoU", number(found["rank_correlation"])),
        _row("pairs with background above a true detection", percent(found["wrong_pairs"])),
        _row("rank correlation of edge_std and error", number(doubt["rank_correlation"])),
        _row("the same with the size held fixed", number(doubt["size_held_fixed"])),
        _row("rms deviation, rms error, px", _pair(doubt["rms_deviation"], doubt["rms_error"])),
    ]
    if n["edge_blur"] is not None:
        blur = n["edge_blur"]["all"]["rank_correlation"]
        lines.append(_row("rank correlation of edge_std and true blur", number(blur)))
    if n["shapes"] is not None:
        shapes = ", ".join(f"{name} {count}" for name, count in n["shapes"].items())
        lines.append(_row("shapes of the sides", shapes))
    if "left_out" in coverage:
        lines.append(f"intervals: {coverage['left_out']}")
    else:
        lines.append(f"intervals as predicted: {coverage['plain']['text']}")
        if coverage["stored"]:
            value = coverage["stored_temperature"]
            lines.append(f"with the stored temperature {value:.3g}: {coverage['stored']['text']}")
        if coverage["fitted"]:
            value = coverage["temperature"]
            lines.append(f"with a fitted temperature ({value:.3g}): {coverage['fitted']['text']}")
    for name in tide.KINDS:
        kind = n["errors"]["kinds"][name]
        gain = "n/a" if kind["gain"] is None else f"{kind['gain']:+.4f}"
        lines.append(f"{name:16s}{kind['count']:8d} mistakes   AP50 {gain} if mended")
    return lines


def _row(name: str, value: str) -> str:
    return f"{name:48s}{value}"


def _pair(first: float | None, second: float | None) -> str:
    return f"{number(first)}, {number(second)}"
