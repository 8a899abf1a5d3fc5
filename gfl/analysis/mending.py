"""What AP50 gains by mending each kind of mistake, judged by pycocotools."""

import numpy as np
from pycocotools.cocoeval import COCOeval

from gfl.analysis import tide
from gfl.analysis.matched import MatchedSplit
from gfl.data.coco_truth import coco_of


def error_analysis(split: MatchedSplit) -> dict:
    """AP50, and of each of `tide.KINDS` how many there are and what AP50 gains without them.

    Returns:
        {"AP50", "right", "ignored", "kinds": {name: {"count", "gain"}}}; AP50 and gains are
        fractions, None where there is no object. A class all of whose objects are taken out of the
        truth has AP 1 then if nothing is detected of it, else 0; tidecv leaves the former out.
    """
    records = split.records
    mistakes = tide.find_mistakes(
        split.overlaps,
        _rows_by_image(records.images, len(records.image_ids)),
        _rows_by_image(records.objects.images, len(records.image_ids)),
        records.labels,
        records.objects.labels,
        records.match,
        records.ignored,
    )
    has_objects = {annotation["category_id"] for annotation in split.annotations}
    ap50 = _ap(split.evaluation, split.results, has_objects)
    kinds = {}
    for name, count in mistakes.counts().items():
        gain = None
        if ap50 is not None:
            gain = _mended_ap(split, name, mistakes, has_objects) - ap50 if count else 0.0
        kinds[name] = {"count": count, "gain": gain}
    return {
        "AP50": ap50,
        "right": int(records.is_true.sum()),
        "ignored": int(records.ignored.sum()),
        "kinds": kinds,
    }


def _mended_ap(
    split: MatchedSplit, name: str, mistakes: tide.Mistakes, category_ids: set[int]
) -> float:
    stay, become, there = tide.mended(name, mistakes, split.records.scores, split.records.match)
    results = []
    for row in np.flatnonzero(stay):
        entry = split.results[row]
        if become[row] >= 0:
            target = split.annotations[become[row]]
            entry = {**entry, "category_id": target["category_id"], "bbox": target["bbox"]}
        results.append(entry)
    truth = split.truth
    if not there.all():
        gone = {split.annotations[row]["id"] for row in np.flatnonzero(~there)}
        annotations = [a for a in split.truth.dataset["annotations"] if a["id"] not in gone]
        truth = coco_of({**split.truth.dataset, "annotations": annotations})
    return _ap(split.evaluate(results, truth), results, category_ids)


def _ap(evaluation: COCOeval, results: list[dict], category_ids: set[int]) -> float | None:
    """Mean AP of some classes; None for none."""
    precision = evaluation.eval["precision"]  # (1, recall, class, 1, max detections), -1 for none
    detected = {entry["category_id"] for entry in results}
    every = []
    for number, category_id in enumerate(evaluation.params.catIds):
        if category_id in category_ids:
            ap = float(precision[0, :, number, 0, -1].mean())
            every.append(float(category_id not in detected) if ap < 0 else ap)
    return float(np.mean(every)) if every else None


def _rows_by_image(images: np.ndarray, count: int) -> list[np.ndarray]:
    """Rows that belong to each of `count` images."""
    return [np.flatnonzero(images == image) for image in range(count)]
