"""How well the scores of detections rank their boxes by how they lie."""

from collections import defaultdict

import torch
from pycocotools.coco import COCO
from torch import Tensor

from gfl.analysis.matching import best_overlap, spearman


def score_iou_correlation(results: list[dict], truth: COCO) -> float | None:
    """Rank correlation of score and best IoU with an object of the same class, all detections.

    Args:
        results: COCO result entries.
        truth: the true objects; crowd regions are left out.

    Returns:
        In [-1, 1]; None where there are fewer than two detections, or one of the two is constant.
    """
    detections, objects = defaultdict(list), defaultdict(list)
    for entry in results:
        detections[entry["image_id"]].append(entry)
    for entry in truth.dataset["annotations"]:
        if not entry["iscrowd"]:
            objects[entry["image_id"]].append(entry)
    scores, overlaps = [], []
    for image_id, found in detections.items():
        iou = best_overlap(*_boxes(found), *_boxes(objects[image_id]))
        scores += [entry["score"] for entry in found]
        overlaps += iou.tolist()
    return spearman(scores, overlaps)


def _boxes(entries: list[dict]) -> tuple[Tensor, Tensor]:
    """(n, 4) xyxy float64 boxes and (n,) category ids."""
    boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]  # COCO's entries are xywh
    return boxes, torch.tensor([entry["category_id"] for entry in entries], dtype=torch.int64)
