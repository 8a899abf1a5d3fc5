"""A table as a picture: AP, differences beside the paper's, times."""

from typing import BinaryIO

from matplotlib.figure import Figure

PANELS = ("AP x 100", "AP x 100 less the reference's", "time over the reference's")

RANGE = "mean, lowest to highest seed"
HERE = "here, wider range of seeds"


def save_plot(file: BinaryIO, study: dict) -> None:
    """Write a PNG, one line a row; `study` as in `gfl.ablation.report.markdown`."""
    rows = study["rows"]
    figure = Figure(figsize=(13, 1.4 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    for axes, title in zip(panels, PANELS, strict=True):
        axes.set_title(title, fontsize="medium")
        axes.grid(axis="x", alpha=0.3)
    own, apart, times = panels
    own.set_yticks(range(len(rows)), [row["title"] for row in rows], fontsize="small")
    own.set_ylim(len(rows) - 0.5, -0.5)
    apart.axvline(0, color="black", linewidth=0.8)
    times.axvline(1, color="black", linewidth=0.8)
    shown = set()

    def draw(axes, x, y, below, above, label, **style):
        label, _ = (None, 0) if (axes, label) in shown else (label, shown.add((axes, label)))
        axes.errorbar(x, y, xerr=[[below], [above]], label=label, capsize=3, **style)

    for y, row in enumerate(rows):
        ap, delta, paper = row["AP"], row["difference"], row["paper"]["delta"]
        if ap:
            below, above = (100 * (ap["mean"] - ap["low"]), 100 * (ap["high"] - ap["mean"]))
            draw(own, 100 * ap["mean"], y, below, above, RANGE, fmt="o", color="C0")
        if delta:
            wide = 100 * (delta["spread"] or 0)
            draw(apart, 100 * delta["value"], y, wide, wide, HERE, fmt="o", color="C0")
        if paper is not None:
            style = {"fmt": "D", "color": "C1", "markerfacecolor": "none"}
            draw(apart, 100 * paper, y, 0, 0, "paper (COCO)", **style)
        for kind, shift, color in (("training", -0.12, "C2"), ("inference", 0.12, "C3")):
            found = row[f"{kind}_time"]
            if found:
                median = found["median"]
                below, above = max(0, median - found["low"]), max(0, found["high"] - median)
                draw(times, median, y + shift, below, above, kind, fmt="s", color=color)
    for axes in panels:
        if any(place is axes for place, _ in shown):
            axes.legend(fontsize="x-small")
    figure.suptitle(f"Ablation: {study['table']}", fontsize="medium")
    figure.savefig(file, dpi=120, format="png")
