"""The plots of the report, each from arrays to inline SVG."""

import numpy as np

from gfl.analysis import tide
from gfl.analysis.coverage import curve
from gfl.analysis.doubt import correct_sides, groups, true_blur
from gfl.analysis.quality import QualitySamples
from gfl.analysis.records import Records
from gfl.analysis.svg import Plot, bars, shares

# Dots of one kind that a plot shows at most, drawn at random.
MOST_DOTS = 1500


def score_and_iou(records: Records) -> str:
    """Score over IoU of background boxes, true detections, and what is neither."""
    plot = Plot((0, 1), (0, 1), "IoU with the nearest object of the class", "score", "score, IoU")
    plot.diagonal()
    true, background = records.is_true, records.is_background
    other = ~true & ~background & ~records.ignored
    for name, mine in (("other", other), ("background", background), ("true", true)):
        rows = some(np.flatnonzero(mine))
        plot.points(zip(records.iou[rows], records.scores[rows], strict=True), name)
    return plot.svg()


def score_bins(bins: list[dict]) -> str:
    """Mean IoU over mean score of detections in stretches of the score."""
    plot = Plot((0, 1), (0, 1), "score", "mean IoU", "mean IoU over the score")
    plot.diagonal()
    plot.line([(one["score"], one["iou"]) for one in bins], "first")
    for one in bins:
        note = f"score {one['score']:.2f}, IoU {one['iou']:.2f}, {one['detections']} detections"
        plot.marker(one["score"], one["iou"], "first", note)
    return plot.svg()


def quality_and_class(samples: QualitySamples) -> str:
    """Quality over class score of drawn locations."""
    plot = Plot((0, 1), (0, 1), "class score without quality", "quality", "quality, class score")
    for name, mine in (("background", ~samples.on_object), ("true", samples.on_object)):
        rows = some(np.flatnonzero(mine))
        plot.points(zip(samples.class_scores[rows], samples.qualities[rows], strict=True), name)
    return plot.svg()


def deviation_and_error(records: Records) -> str:
    """Root mean squares of error over deviation, in ten groups of sides."""
    errors, kept, _ = correct_sides(records)
    found = groups(records.edge_std[kept], errors[kept])
    highest = max([max(g["by"], g["value"]) for g in found], default=1.0) * 1.08 or 1.0
    plot = Plot(
        (0, highest),
        (0, highest),
        "predicted standard deviation, rms of the group, px",
        "error of the sides, rms, px",
        "rms error over rms deviation",
    )
    plot.diagonal()
    plot.line([(g["by"], g["value"]) for g in found], "first")
    for g in found:
        note = f"deviation {g['by']:.2f} px, error {g['value']:.2f} px, {g['sides']} sides"
        plot.marker(g["by"], g["value"], "first", note)
    return plot.svg()


def reliability(records: Records, coverage: dict) -> str:
    """Coverage over the probability of the central interval."""
    ticks = (0, 0.2, 0.5, 0.8, 0.9, 1)
    plot = Plot(
        (0, 1),
        (0, 1),
        "probability of the central interval",
        "true sides inside it",
        "coverage of central intervals",
        ticks,
        ticks,
    )
    plot.diagonal()
    sides = records.sides()
    temperatures = {"first": 1.0, "second": coverage["temperature"]}
    if coverage["stored_temperature"]:
        temperatures["third"] = coverage["stored_temperature"]
    for name, temperature in reversed(temperatures.items()):
        plot.line(curve(sides.levels(temperature)), name)
    for one in coverage["plain"]["levels"]:
        low, high = max(one["share"] - one["margin"], 0), min(one["share"] + one["margin"], 1)
        plot.whisker(one["level"], low, high, "first")
        note = f"{100 * one['level']:g} % interval: {100 * one['share']:.1f} % of the true sides"
        plot.marker(one["level"], one["share"], "first", note)
    return plot.svg()


def blur_and_deviation(records: Records) -> str:
    """Root mean square of the deviation over the true blur, in ten groups of sides."""
    blur = true_blur(records)
    kept = np.isfinite(blur) & ~records.is_clipped
    found = groups(blur[kept], records.edge_std[kept])
    widest = max([g["by"] for g in found], default=1.0) * 1.05 or 1.0
    highest = max([g["value"] for g in found], default=1.0) * 1.15 or 1.0
    plot = Plot(
        (0, widest),
        (0, highest),
        "true blur of the edge, standard deviation, px",
        "predicted deviation, rms, px",
        "deviation over true blur",
    )
    plot.line([(g["by"], g["value"]) for g in found], "first")
    for g in found:
        note = f"blur {g['by']:.2f} px, deviation {g['value']:.2f} px, {g['sides']} sides"
        plot.marker(g["by"], g["value"], "first", note)
    return plot.svg()


def mistakes(errors: dict, what: str) -> str:
    """Bars of "count" or "gain" of each kind of mistake."""
    rows = []
    for name in tide.KINDS:
        value = errors["kinds"][name][what]
        text = f"{value}" if what == "count" else f"{value:+.3f}"
        rows.append((name, value, text))
    return bars(rows, f"{what} by kind of mistake", "first" if what == "count" else "second")


def shape_shares(counts: dict[str, int]) -> str:
    """How many sides have each shape."""
    return shares(list(counts.items()), "shapes of the distributions")


def some(rows: np.ndarray) -> np.ndarray:
    """At most `MOST_DOTS` of some rows, the same ones each time."""
    if len(rows) <= MOST_DOTS:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, MOST_DOTS, replace=False))
