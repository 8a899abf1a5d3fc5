"""What assigners that look at every location have in common: bounded chunks, dense slots."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gfl.assigner.crowd import in_crowd
from gfl.grid import valid_locations
from gfl.structures import Assignment, Grid, Targets

# Locations times objects compared at once, over the batch: about 100 MiB.
MAX_PAIRS = 2**22


def object_chunks(grid: Grid, targets: Targets) -> Iterator[slice]:
    """Slices of the G objects, few enough that all locations can be held against them."""
    num_images, num_objects = targets.labels.shape
    size = max(1, MAX_PAIRS // (num_images * grid.strides.shape[0]))
    for first in range(0, num_objects, size):
        yield slice(first, first + size)


def dense_assignment(
    grid: Grid, targets: Targets, gt_index: Tensor, left_out: Tensor | None, crowd_scale: float
) -> Assignment:
    """An assignment whose slots are all locations.

    Args:
        gt_index: (B, N) int64, -1 for background.
        left_out: (B, N) bool, locations that are neither positive nor background, or None.
        crowd_scale: anchor side in strides by which locations lie in crowd regions, 0 to look at
            none.
    """
    positive = gt_index >= 0
    counts = valid_locations(grid, targets.valid_size)
    if left_out is not None:
        counts = counts & ~left_out
    if crowd_scale:
        counts = counts & (positive | ~in_crowd(grid, targets, crowd_scale))
    slots = torch.arange(gt_index.shape[1], device=gt_index.device).expand_as(gt_index)
    return Assignment(gt_index, counts.float(), slots, positive)
