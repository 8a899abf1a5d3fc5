"""Detections beside the true objects: how well each box lies, and how two rankings agree."""

import numpy as np
from torch import Tensor

from gfl.boxes import pairwise_iou


def best_overlap(boxes: Tensor, labels: Tensor, true_boxes: Tensor, true_labels: Tensor) -> Tensor:
    """How much each detection overlaps the object of its own class that it overlaps most.

    Args:
        boxes: (D, 4) xyxy, any frame.
        labels: (D,) int64.
        true_boxes: (G, 4) xyxy, same frame.
        true_labels: (G,) int64.

    Returns:
        (D,) IoU, 0 where nothing of the class is overlapped.
    """
    if len(true_boxes) == 0:
        return boxes.new_zeros(len(boxes))
    return (pairwise_iou(boxes, true_boxes) * (labels[:, None] == true_labels)).amax(1)


def spearman(first: np.ndarray, second: np.ndarray) -> float | None:
    """Rank correlation of two samples, equal values sharing their mean rank.

    Args:
        first, second: (n,) each.

    Returns:
        In [-1, 1]; None where n < 2 or a sample is constant.
    """
    first, second = _ranks(np.asarray(first)), _ranks(np.asarray(second))
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])


def partial_spearman(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> float | None:
    """Rank correlation of two samples with a third one held fixed.

    Args:
        first, second, third: (n,) each.

    Returns:
        In [-1, 1]; the plain one where the third is constant, None where nothing is left to rank.
    """
    plain = spearman(first, second)
    with_first, with_second = spearman(first, third), spearman(second, third)
    if plain is None or with_first is None or with_second is None:
        return plain
    rest = (1 - with_first**2) * (1 - with_second**2)
    if rest < 1e-12:
        return None
    return float(np.clip((plain - with_first * with_second) / np.sqrt(rest), -1, 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(n,) ranks from 0, ties at their mean."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts + 1) / 2)[group]
