"""Plots of an evaluation, as PNG files: precision against recall, F1, confusion."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gfl.engine.curves import IOU, Curve
from gfl.files import replacing

# Above that many classes a plot names none.
MAX_NAMED = 20
CONFUSION_NOTE = (
    f"Row: what is there. Column: what was detected, at IoU {IOU} and more.\n"
    "Last column: objects that were missed. Last row: detections of nothing.\n"
    "Numbers are counts; dark is a large share of the row."
)


def save_curves(folder: Path, curves: dict[str, Curve]) -> list[Path]:
    """Write precision_recall.png and f1.png, one line a class; gives their paths."""
    written = []
    for name, x_axis, y_axis in (
        ("precision_recall", "recall", "precision"),
        ("f1", "scores", "f1"),
    ):
        figure = Figure(figsize=(7, 5), layout="constrained")
        axes = figure.subplots()
        labels = []
        for class_name, curve in curves.items():
            label = class_name
            if name == "f1" and curve.threshold is not None:
                label += f" (best {curve.f1.max():.2f} at {curve.threshold:.2f})"
            labels.append(label)
            axes.plot(getattr(curve, x_axis), getattr(curve, y_axis), linewidth=1.2)
        axes.set(xlim=(0, 1), ylim=(0, 1.02), title=f"IoU {IOU} and more")
        axes.set_xlabel("score threshold" if x_axis == "scores" else x_axis)
        axes.set_ylabel("F1" if y_axis == "f1" else y_axis)
        axes.grid(alpha=0.3)
        if 0 < len(curves) <= MAX_NAMED:
            for text in axes.legend(axes.lines, labels, fontsize="small").get_texts():
                text.set_parse_math(False)  # a class may be named $5
        written.append(_save(figure, folder / f"{name}.png"))
    return written


def save_confusion(folder: Path, matrix: np.ndarray, names: list[str]) -> Path:
    """Write confusion.png: rows are true classes, columns what was detected.

    A cell's number counts objects, its colour is their share of the row; the last row holds
    detections of nothing, the last column objects that were missed.
    """
    labels = [*names, "nothing"]
    shares = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    side = max(5.0, 0.45 * len(labels) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    plain = {"fontsize": "small", "parse_math": False}
    axes.set_xticks(range(len(labels)), labels, rotation=90, **plain)
    axes.set_yticks(range(len(labels)), labels, **plain)
    axes.set(xlabel="detected as", ylabel="true class", title="What became of each object")
    figure.supxlabel(CONFUSION_NOTE, fontsize="small")
    if len(labels) <= MAX_NAMED + 1:
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, size=8)
    return _save(figure, folder / "confusion.png")


def _save(figure: Figure, path: Path) -> Path:
    with replacing(path) as place:
        figure.savefig(place, dpi=120)
    return path
