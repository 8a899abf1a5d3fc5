"""All numbers of the report, as plain values that JSON can hold."""

import math

import numpy as np

import gfl
from gfl.analysis.collect import Collected
from gfl.analysis.consistency import consistency, score_bins
from gfl.analysis.coverage import TOLERANCE, cross_fitted_levels, fit_temperature, summarise
from gfl.analysis.doubt import SIDES, doubt_and_blur, doubt_and_error
from gfl.analysis.mending import error_analysis
from gfl.analysis.records import Records
from gfl.analysis.shapes import SHAPES, shapes

NO_DISTRIBUTIONS = (
    "Left out: the box representation {box!r} gives no distributions of the sides (model.box)."
)
NO_SIDES = "Left out: no correctly found object has a side that was not cut off at the border."


def report_numbers(collected: Collected, checkpoint: str, split: str) -> dict:
    """Everything that was measured; keys are stable, what could not be measured is None."""
    config, records = collected.config, collected.split.records
    numbers = {
        "gfl_version": gfl.__version__,
        "checkpoint": checkpoint,
        "weights": collected.weights,
        "split": split,
        "images": len(records.image_ids),
        "objects": len(records.objects.labels),
        "detections": len(records),
        "score_threshold": config.postprocess.score_threshold,
        "classes": list(records.class_names),
        "quality_mode": config.model.quality,
        "box": config.model.box,
        "errors": error_analysis(collected.split),
        "consistency": {**consistency(records), "score_bins": score_bins(records)},
        "quality": collected.quality.summary() if collected.quality else None,
        "shapes": shape_counts(records),
        "doubt": doubt_and_error(records),
        "coverage": _coverage(records, config.model.box, collected.temperature),
        "edge_blur": doubt_and_blur(records),
    }
    return plain(numbers)


def shape_counts(records: Records) -> dict | None:
    """How many sides of true detections have each of `SHAPES`; None without distributions."""
    if records.probabilities is None:
        return None
    true = records.probabilities[records.is_true]
    kinds = shapes(true.reshape(-1, true.shape[-1]))
    return {name: int((kinds == number).sum()) for number, name in enumerate(SHAPES)}


def plain(value):
    """Numbers of numpy as Python's, and those that JSON does not have as None."""
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [plain(one) for one in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _coverage(records: Records, box: str, stored: float) -> dict:
    """Coverage as it is, with the stored temperature, and with one fitted here."""
    sides = records.sides()
    if sides is None:
        return {"left_out": NO_DISTRIBUTIONS.format(box=box)}
    if not len(sides):
        return {"left_out": NO_SIDES}
    found = {
        "sides": len(sides),
        "images": len(np.unique(sides.images)),
        "tolerance": TOLERANCE,
        "plain": summarise(sides.levels(), sides.images),
        "stored_temperature": None if stored == 1 else stored,
        "stored": None if stored == 1 else summarise(sides.levels(stored), sides.images),
        "temperature": fit_temperature(sides),
        "fitted": None,
        "per_side": _per_side(records),
    }
    levels = cross_fitted_levels(sides)
    if levels is not None:
        found["fitted"] = summarise(levels, sides.images)
    return found


def _per_side(records: Records) -> dict:
    """Coverage of each side by itself, without a temperature."""
    found = {}
    for number, name in enumerate(SIDES):
        mine = records.sides(number)
        found[name] = summarise(mine.levels(), mine.images) if len(mine) else None
    return found
