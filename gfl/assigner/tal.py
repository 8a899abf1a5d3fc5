"""Task-aligned assignment: positives are the locations that score and lie best already."""

import torch
from torch import Tensor

from gfl.assigner.atss import MIN_INSIDE
from gfl.assigner.cost import TINY, Claims, CostAssigner
from gfl.boxes import xyxy_to_ltrb
from gfl.structures import Grid


class TaskAlignedAssigner(CostAssigner):
    """The locations inside an object with the highest alignment, for all images at once.

        alignment = score ** score_power * IoU ** iou_power

    with the predicted score of the object's class and the IoU of the predicted box. The
    `alignment_top_k` highest (the first locations of equals) are the object's; a contested
    location goes to the highest IoU, the first object of equals. Logarithms are compared, so that
    no power is too small for a float: a score or an IoU of 0 counts as 1e-38.

    Args:
        alignment_top_k: positives of an object at most.
        score_power, iou_power: alpha and beta in the paper.
        soft_label: "iou", a positive's class label is the IoU of its own box as in GFL, or
            "aligned": its alignment, scaled so that an object's highest is its highest IoU.
        ignore_crowd: as in `ATSSAssigner`, judged by squares of `anchor_scale` strides.
        anchor_scale: see there.

    Source: arXiv 2108.07755 section 3.2, equation 3; mmdet `TaskAlignedAssigner`.
    """

    def __init__(
        self,
        alignment_top_k: int = 13,
        score_power: float = 1.0,
        iou_power: float = 6.0,
        soft_label: str = "iou",
        ignore_crowd: bool = False,
        anchor_scale: float = 8.0,
    ):
        super().__init__(alignment_top_k, iou_power, ignore_crowd, anchor_scale)
        self.score_power, self.soft_label = score_power, soft_label

    def class_cost(self, scores: Tensor) -> Tensor:
        return -self.score_power * scores.clamp(TINY, 1).log()

    def penalty(self, grid: Grid, boxes: Tensor) -> Tensor:
        inside = xyxy_to_ltrb(grid.centers, boxes).amin(-1) > MIN_INSIDE
        return torch.zeros_like(inside, dtype=boxes.dtype).masked_fill(~inside, torch.inf)

    def num_wanted(self, iou: Tensor) -> Tensor:
        return torch.full_like(iou[..., :1], self.max_claims)

    def worth(self, claims: Claims) -> Tensor:
        return claims.iou

    def score_target(self, claims: Claims, gt_index: Tensor) -> Tensor | None:
        """(B, N) normalised alignment of the positives, 0 elsewhere; None for `soft_label` iou."""
        if self.soft_label == "iou":
            return None
        location = claims.location.flatten(1)
        rows = torch.arange(claims.cost.shape[1], device=location.device)[:, None]
        owner = gt_index.gather(1, location).view_as(claims.location)
        own = claims.wanted & (owner == rows)
        least = claims.cost.masked_fill(~own, torch.inf).amin(-1, keepdim=True)
        highest = claims.iou.masked_fill(~own, 0).amax(-1, keepdim=True)
        target = ((least - claims.cost).exp() * highest).masked_fill(~own, 0)
        nothing = target.new_zeros(gt_index.shape)
        return nothing.scatter_reduce(1, location, target.flatten(1), "amax")
