"""SimOTA: each object takes as many of its cheapest locations as its best boxes add up to."""

import torch
from torch import Tensor

from gfl.assigner.cost import Claims, CostAssigner
from gfl.boxes import xyxy_to_ltrb
from gfl.structures import Grid

# What a location costs more that is not both inside the object and near its centre (YOLOX).
OFF_CENTER = 1e5
# Keeps the logarithms of scores of 0 and 1 finite.
EPSILON = 1e-7


class SimOTAAssigner(CostAssigner):
    """The cheapest locations near an object, their number found anew in each step.

        cost = sum over classes of CE(score, one-hot label) - iou_cost * log(IoU)

    An object's locations are those inside it or within `center_radius` strides of its centre in
    both directions; those that are both come before all others. It takes the k cheapest (the first
    locations of equals), k being the sum of its `dynamic_top_k` highest IoUs, rounded down, at
    least 1. A contested location goes to the object of the lowest cost, the first of equals.

    Args:
        dynamic_top_k: IoUs that are added up, and positives of an object at most.
        iou_cost: lambda in the paper.
        center_radius: in strides.
        ignore_crowd: as in `ATSSAssigner`, judged by squares of `anchor_scale` strides.
        anchor_scale: see there.

    Source: arXiv 2107.08430 section 2.1; YOLOX `get_assignments`, whose IoUs and cheapest are
    taken from the locations of all objects, ours from the object's own.
    """

    def __init__(
        self,
        dynamic_top_k: int = 10,
        iou_cost: float = 3.0,
        center_radius: float = 1.5,
        ignore_crowd: bool = False,
        anchor_scale: float = 8.0,
    ):
        super().__init__(dynamic_top_k, iou_cost, ignore_crowd, anchor_scale)
        self.center_radius = center_radius

    def class_cost(self, scores: Tensor) -> Tensor:
        scores = scores.clamp(EPSILON, 1 - EPSILON)
        miss, false = -scores.log(), -(1 - scores).log()
        return (false.sum(-1, keepdim=True) - false).clamp(min=0) + miss

    def penalty(self, grid: Grid, boxes: Tensor) -> Tensor:
        inside = xyxy_to_ltrb(grid.centers, boxes).amin(-1) > 0
        middle = (boxes[..., :2] + boxes[..., 2:]) / 2
        off_center = (grid.centers - middle).abs().amax(-1)
        near = off_center < self.center_radius * grid.strides
        penalty = torch.full_like(off_center, OFF_CENTER).masked_fill(inside & near, 0)
        return penalty.masked_fill(~(inside | near), torch.inf)

    def num_wanted(self, iou: Tensor) -> Tensor:
        count = min(self.max_claims, iou.shape[-1])
        return iou.topk(count).values.sum(-1, keepdim=True).floor().clamp(min=1)

    def worth(self, claims: Claims) -> Tensor:
        return -claims.cost
