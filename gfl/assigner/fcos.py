"""FCOS's assignment: locations near an object's centre, on the level of its size."""

import torch

from gfl.assigner.dense import dense_assignment, object_chunks
from gfl.boxes import xyxy_to_ltrb
from gfl.grid import check_anchors, valid_locations
from gfl.structures import Assignment, Grid, Targets


class FCOSAssigner:
    """Centre sampling and regression ranges, for all images of a batch at once.

    A location is a positive of an object if it lies inside it, within `center_radius` strides of
    its centre in both directions, and if the longest of its four distances belongs to its level:
    at most `regression_range` strides of the level, and at least the finer level's bound (the
    finest level has no lower, the coarsest no upper bound). Of several objects the one with the
    smallest area has it, the first of equals.

    Nothing waits for the device; objects are looked at in chunks of bounded memory.

    Args:
        center_radius: in strides.
        regression_range: longest distance on a level, in strides (64 pixels at stride 8).
        ignore_crowd: as in `ATSSAssigner`, judged by squares of `anchor_scale` strides.
        anchor_scale: see there.

    Source: arXiv 1904.01355 section 3.2; mmdet `FCOSHead.get_targets` with center_sampling.
    """

    anchors_per_cell = 1

    def __init__(
        self,
        center_radius: float = 1.5,
        regression_range: float = 8.0,
        ignore_crowd: bool = False,
        anchor_scale: float = 8.0,
    ):
        self.center_radius = center_radius
        self.regression_range = regression_range
        self.crowd_scale = anchor_scale if ignore_crowd else 0.0

    @torch.no_grad()
    def __call__(self, grid: Grid, targets: Targets) -> Assignment:
        """Assign every location of a batch; see `ATSSAssigner.__call__`."""
        check_anchors(grid, self.anchors_per_cell)
        shape = targets.boxes.shape[0], grid.strides.shape[0]
        smallest = torch.full(shape, torch.inf, device=grid.strides.device)
        gt_index = torch.full(shape, -1, device=grid.strides.device)
        lower, upper = self._ranges(grid)
        may = valid_locations(grid, targets.valid_size)
        for chunk in object_chunks(grid, targets):
            boxes = targets.boxes[:, None, chunk]
            ltrb = xyxy_to_ltrb(grid.centers[:, None], boxes)
            middle = (boxes[..., :2] + boxes[..., 2:]) / 2
            off_center = (grid.centers[:, None] - middle).abs().amax(-1)
            longest = ltrb.amax(-1)
            positive = (
                (ltrb.amin(-1) > 0)
                & (off_center < self.center_radius * grid.strides[:, None])
                & (longest >= lower[:, None])
                & (longest <= upper[:, None])
                & targets.present[:, None, chunk]
                & may[..., None]
            )
            area = (boxes[..., 2:] - boxes[..., :2]).prod(-1).masked_fill(~positive, torch.inf)
            area, row = area.min(-1)
            gt_index = torch.where(area < smallest, chunk.start + row, gt_index)
            smallest = torch.minimum(area, smallest)
        return dense_assignment(grid, targets, gt_index, None, self.crowd_scale)

    def _ranges(self, grid: Grid):
        """(N,) and (N,): the longest distance of a location's objects is in [lower, upper]."""
        strides = grid.level_strides
        lower = [0.0, *(self.regression_range * stride for stride in strides[:-1])]
        upper = [*lower[1:], torch.inf]
        counts = grid.level_counts
        return tuple(
            torch.cat(
                [
                    torch.full((count,), bound, device=grid.strides.device)
                    for bound, count in zip(bounds, counts, strict=True)
                ]
            )
            for bounds in (lower, upper)
        )
