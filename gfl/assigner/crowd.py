"""Which locations lie in crowd regions."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from gfl.structures import Assignment, Grid, Targets

# A location belongs to a crowd region if more than this share of its square anchor lies in it
# (mmdet's `ignore_iof_thr` where it is used).
CROWD_SHARE = 0.5
# Crowd regions compared at once: bounds the memory, O(B * N * this).
CROWD_CHUNK = 8


def in_crowd(grid: Grid, targets: Targets, anchor_scale: float) -> Tensor:
    """Which locations lie mostly inside one crowd region of their image.

    A location does if its square anchor, of `anchor_scale` strides, has more than half of its own
    area inside a single one of `Targets.ignore_boxes`. Regions are not joined.

    Returns:
        (B, N) bool, computed in bounded memory and without waiting for the device.

    Source: mmdet `MaxIoUAssigner`, `ignore_iof_thr` 0.5 with `ignore_wrt_candidates`.
    """
    half = anchor_scale * grid.strides[:, None, None] / 2
    centers = grid.centers[:, None]

    def mostly(boxes: Tensor) -> Tensor:
        top_left = torch.maximum(centers - half, boxes[..., :2])
        bottom_right = torch.minimum(centers + half, boxes[..., 2:])
        width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
        return width * height > CROWD_SHARE * (2 * half[..., 0]).square()

    return _in_any(grid, targets, mostly)


class WithoutIgnored:
    """An assigner whose locations with their centre in an ignored region count for nothing.

    They are left out of the classification loss, whatever the size of the region; positives stay.
    `in_crowd` asks for half an anchor, which small regions never hold.

    Args:
        assigner: any other.
    """

    def __init__(self, assigner):
        self.assigner = assigner
        self.needs_candidates = getattr(assigner, "needs_candidates", False)

    def __call__(self, grid: Grid, targets: Targets, *candidates) -> Assignment:
        """As that of the other, with weight 0 there."""
        found = self.assigner(grid, targets, *candidates)
        counts = (found.gt_index >= 0) | ~in_regions(grid, targets)
        return replace(found, weight=found.weight * counts)


def in_regions(grid: Grid, targets: Targets) -> Tensor:
    """(B, N) bool, whether a location's centre lies in one of `Targets.ignore_boxes`."""
    centers = grid.centers[:, None]

    def holds(boxes: Tensor) -> Tensor:
        return ((centers >= boxes[..., :2]) & (centers < boxes[..., 2:])).all(-1)

    return _in_any(grid, targets, holds)


def _in_any(grid: Grid, targets: Targets, test: Callable[[Tensor], Tensor]) -> Tensor:
    """(B, N) bool, whether any of `Targets.ignore_boxes` passes at a location.

    Args:
        grid, targets: locations and regions.
        test: (B, 1, I, 4) regions to (B, N, I) bool.
    """
    shape = (targets.boxes.shape[0], grid.strides.shape[0])
    found = torch.zeros(shape, dtype=torch.bool, device=grid.strides.device)
    for first in range(0, targets.ignore_boxes.shape[1], CROWD_CHUNK):
        chunk = slice(first, first + CROWD_CHUNK)
        passed = test(targets.ignore_boxes[:, None, chunk])
        found |= (passed & targets.ignore_present[:, None, chunk]).any(-1)
    return found
