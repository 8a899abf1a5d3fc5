"""Precision, recall and F1 of each class over the score, and which class is taken for which."""

from dataclasses import dataclass

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# A detection counts as right from this IoU on.
IOU = 0.5


@dataclass(frozen=True)
class Curve:
    """What cutting a class's detections at each of their scores gives, at IoU 0.5.

    Attributes:
        scores: (n,) falling.
        precision, recall, f1: (n,) of the detections from that score on.
        threshold: the score of the best F1, or None for a class without objects or hits.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray

    @property
    def threshold(self) -> float | None:
        if not len(self.f1) or self.f1.max() == 0:
            return None
        return float(self.scores[self.f1.argmax()])


def class_curves(evaluation: COCOeval) -> dict[int, Curve]:
    """The curve of each category id, by the matching of an evaluation.

    Args:
        evaluation: after `evaluate()`, with bounding boxes of all sizes as its first area.
    """
    parameters = evaluation.params
    step = int(np.argmin(np.abs(parameters.iouThrs - IOU)))
    images = len(parameters.imgIds)
    areas = len(parameters.areaRng)
    curves = {}
    for number, category_id in enumerate(parameters.catIds):
        first = number * areas * images  # order: category, area, image
        seen = [item for item in evaluation.evalImgs[first : first + images] if item is not None]
        objects = sum(int((np.asarray(item["gtIgnore"]) == 0).sum()) for item in seen)
        scores = np.concatenate([item["dtScores"] for item in seen] or [np.zeros(0)])
        hits = np.concatenate([item["dtMatches"][step] > 0 for item in seen] or [np.zeros(0, bool)])
        ignored = np.concatenate([item["dtIgnore"][step] for item in seen] or [np.zeros(0)])
        kept = ignored == 0
        order = np.argsort(-scores[kept], kind="mergesort")
        right = np.cumsum(hits[kept][order].astype(float))
        recall = right / max(objects, 1)
        precision = right / np.arange(1, len(right) + 1)
        both = np.maximum(precision + recall, 1e-12)
        f1 = 2 * precision * recall / both
        curves[category_id] = Curve(scores[kept][order], precision, recall, f1)
    return curves


def confusion_matrix(
    truth: COCO, results: list[dict], thresholds: dict[int, float]
) -> tuple[np.ndarray, list[int]]:
    """Counts of (true class, detected class), the last of each being "nothing".

    In each image, detections from their class's threshold on are matched to objects of any class,
    best score first, each to the free object that it overlaps most, from IoU 0.5 on. Crowd
    regions are neither objects nor make a detection in them wrong.

    Args:
        truth: ground truth with index.
        results: COCO result entries.
        thresholds: score of each category id from which detections count.

    Returns:
        (C + 1, C + 1) int matrix, rows truth, columns detected; and the category ids in order.
    """
    ids = sorted(thresholds)
    place = {category_id: number for number, category_id in enumerate(ids)}
    matrix = np.zeros((len(ids) + 1, len(ids) + 1), int)
    nothing = len(ids)
    detected: dict[int, list[dict]] = {}
    for entry in results:
        if entry["score"] >= thresholds.get(entry["category_id"], np.inf):
            detected.setdefault(entry["image_id"], []).append(entry)
    for image_id in truth.getImgIds():
        annotations = [a for a in truth.imgToAnns[image_id] if a["category_id"] in place]
        objects = [a for a in annotations if not a.get("iscrowd")]
        crowds = [a for a in annotations if a.get("iscrowd")]
        found = sorted(detected.get(image_id, []), key=lambda entry: -entry["score"])
        overlaps = _overlaps(found, objects)
        in_crowd = _overlaps(found, crowds, of_first=True).max(1, initial=0) >= IOU
        free = np.ones(len(objects), bool)
        for row, entry in enumerate(found):
            candidates = np.where(free, overlaps[row], 0) if len(objects) else np.zeros(0)
            best = int(candidates.argmax()) if len(candidates) else -1
            column = place[entry["category_id"]]
            if best >= 0 and candidates[best] >= IOU:
                free[best] = False
                matrix[place[objects[best]["category_id"]], column] += 1
            elif not in_crowd[row]:
                matrix[nothing, column] += 1
        for missed in np.flatnonzero(free):
            matrix[place[objects[missed]["category_id"]], nothing] += 1
    return matrix, ids


def _overlaps(first: list[dict], second: list[dict], of_first: bool = False) -> np.ndarray:
    """(n, m) IoU of xywh boxes, or the share of the first one's area that the second covers."""
    a = np.array([entry["bbox"] for entry in first], float).reshape(-1, 4)
    b = np.array([entry["bbox"] for entry in second], float).reshape(-1, 4)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum((a[:, :2] + a[:, 2:])[:, None], (b[:, :2] + b[:, 2:])[None])
    shared = np.clip(high - low, 0, None).prod(-1)
    area_a, area_b = a[:, 2:].prod(-1)[:, None], b[:, 2:].prod(-1)[None]
    whole = area_a if of_first else area_a + area_b - shared
    return shared / np.maximum(whole, 1e-12)
