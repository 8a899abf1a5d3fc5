"""From detections by image to `Records`, matched by pycocotools itself."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from pycocotools.cocoeval import COCOeval

from gfl.analysis.records import Objects, Records
from gfl.boxes import pairwise_iou
from gfl.detections import Detections
from gfl.engine.evaluate import coco_evaluation, to_coco_results

# A detection is right from this IoU on.
IOU = 0.5


@dataclass(frozen=True)
class MatchedSplit:
    """Detections of a split beside its truth, in COCO's form and as arrays.

    Attributes:
        truth: a pycocotools COCO.
        results: COCO result entries, one for each of the n rows of `records`.
        annotations: the m objects of `records.objects`, crowd regions apart.
        names: class name of each category id.
        max_per_image: detections of an image that count.
        evaluation: pycocotools', of all of it at `IOU`.
        records: all of it as flat arrays.
        overlaps: for each image, (D, G) IoU of its detections and objects, any class.
    """

    truth: object
    results: list[dict]
    annotations: list[dict]
    names: dict[int, str]
    max_per_image: int
    evaluation: COCOeval
    records: Records
    overlaps: list[np.ndarray]

    def evaluate(self, results: list[dict], truth) -> COCOeval:
        """pycocotools' evaluation of others in their place, at `IOU`."""
        return coco_evaluation(truth, results, self.names, self.max_per_image, IOU)


def match_split(
    truth,
    found: Mapping[int, Detections],
    class_names: tuple[str, ...],
    category_ids: tuple[int, ...],
    max_per_image: int = 100,
    blur: Mapping[tuple, list[float]] | None = None,
) -> MatchedSplit:
    """Match the detections of a split to its objects, one to one as COCO does.

    Args:
        truth: a pycocotools COCO with the images, their sizes, and the objects.
        found: detections of each image id.
        class_names, category_ids: of the labels.
        max_per_image: detections of an image that count, at least 100.
        blur: (image id, *bbox) to four numbers, true blur of the edges of some objects.
    """
    image_ids = tuple(sorted(found))
    parts = [found[image_id] for image_id in image_ids]
    names = dict(zip(category_ids, class_names, strict=True))
    results = to_coco_results({i: found[i] for i in image_ids}, category_ids)
    evaluation = coco_evaluation(truth, results, names, max_per_image, IOU)
    annotations = [a for a in truth.dataset["annotations"] if not a.get("iscrowd")]
    row_of = {entry["id"]: row for row, entry in enumerate(annotations)}
    match, ignored = _matches(evaluation, len(results), row_of)
    objects = _objects(annotations, image_ids, category_ids, match, blur)
    iou, iou_any, overlaps = _overlaps(parts, objects, match)
    sizes = [(truth.imgs[i]["height"], truth.imgs[i]["width"]) for i in image_ids]
    records = Records(
        image_ids=image_ids,
        sizes=np.array(sizes, float).reshape(-1, 2),
        class_names=tuple(class_names),
        images=np.repeat(np.arange(len(parts)), np.array([len(part) for part in parts], int)),
        labels=_joined(parts, "labels").astype(np.int64),
        scores=_joined(parts, "scores"),
        boxes=_joined(parts, "boxes", 4),
        edge_std=_joined(parts, "edge_std", 4),
        probabilities=_joined_bins(parts, "distributions"),
        positions=_joined_bins(parts, "edge_positions"),
        match=match,
        ignored=ignored,
        iou=iou,
        iou_any=iou_any,
        objects=objects,
    )
    return MatchedSplit(
        truth, results, annotations, names, max_per_image, evaluation, records, overlaps
    )


def _matches(
    evaluation: COCOeval, count: int, row_of: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) row of each detection's object or -1, and (n,) whether it lies in a crowd region."""
    match, ignored = np.full(count, -1), np.zeros(count, bool)
    for item in evaluation.evalImgs:
        if item is None:
            continue
        # Ids of results are their places in the list, counted from 1 by pycocotools.
        rows = np.array(item["dtIds"], int) - 1
        ignored[rows] = item["dtIgnore"][0].astype(bool)
        match[rows] = [row_of.get(int(i), -1) for i in item["dtMatches"][0]]
    match[ignored] = -1
    return match, ignored


def _objects(annotations, image_ids, category_ids, match, blur) -> Objects:
    image_of = {image_id: row for row, image_id in enumerate(image_ids)}
    label_of = {category_id: label for label, category_id in enumerate(category_ids)}
    boxes = np.array([a["bbox"] for a in annotations], float).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    is_found = np.zeros(len(annotations), bool)
    is_found[match[match >= 0]] = True
    true_blur = None
    if blur:
        keys = [(a["image_id"], *a["bbox"]) for a in annotations]
        true_blur = np.array([blur.get(key, [np.nan] * 4) for key in keys]).reshape(-1, 4)
    return Objects(
        images=np.array([image_of[a["image_id"]] for a in annotations], int),
        labels=np.array([label_of[a["category_id"]] for a in annotations], int),
        boxes=boxes,
        found=is_found,
        blur=true_blur,
    )


def _overlaps(
    parts: list[Detections], objects: Objects, match: np.ndarray
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """IoU with the matched or nearest object of the class, with any object, and of all pairs."""
    same, nearest, pairs, first = [], [], [], 0
    for image, part in enumerate(parts):
        there = objects.images == image
        boxes = torch.from_numpy(objects.boxes[there])
        iou = pairwise_iou(part.boxes.double(), boxes).numpy()
        of_class = part.labels.numpy()[:, None] == objects.labels[there]
        own = (iou * of_class).max(1, initial=0.0)
        # The nearest object may be another detection's.
        mine = match[first : first + len(part)]
        place = np.searchsorted(np.flatnonzero(there), mine)
        rows = np.flatnonzero(mine >= 0)
        own[rows] = iou[rows, place[rows]]
        same.append(own)
        nearest.append(iou.max(1, initial=0.0))
        pairs.append(iou)
        first += len(part)
    nothing = np.zeros(0)
    return np.concatenate(same or [nothing]), np.concatenate(nearest or [nothing]), pairs


def _joined(parts: list[Detections], field: str, columns: int | None = None) -> np.ndarray:
    shape = (0,) if columns is None else (0, columns)
    values = [getattr(part, field).double().numpy() for part in parts]
    return np.concatenate([np.zeros(shape), *values])


def _joined_bins(parts: list[Detections], field: str) -> np.ndarray | None:
    """(n, 4, bins) float32, or None where there are none."""
    values = [getattr(part, field) for part in parts]
    if not values or any(value is None for value in values):
        return None
    return torch.cat(values).numpy()
