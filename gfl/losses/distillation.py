"""Distillation of side distributions: a student learns how sure its teacher is of each edge."""

import torch
from torch import Tensor

from gfl.assigner.dense import object_chunks
from gfl.boxes import aligned_diou
from gfl.distributed import sum_over_ranks, world_size
from gfl.losses.functional import distribution_kl_loss
from gfl.structures import Assignment, Grid, Predictions, Targets


class LocalizationDistillation:
    """KL from the teacher's side distributions to the student's, in two regions.

        loss_ld        = weight * sum(w * KL) / sum(w)     on the positives, w as for their boxes
        loss_ld_region = weight * mean(KL)                 on the valuable region

    with KL the mean of the four sides. The valuable region of an object lies around its positives:
    locations that are background, whose square anchor has a DIoU with the object of at least
    `region` times a, and less than a, the least DIoU among the object's positives.

    Args:
        num_bins: reg_max + 1.
        weight: of both terms.
        temperature: T of `distribution_kl_loss`.
        region: share of the positives' DIoU from which the valuable region begins; 1 has none.
        anchor_scale: side of a location's square anchor, in strides.

    Source: arXiv 2102.12252 equations 4, 5 and algorithm 1, where a is the assigner's threshold;
    ours serves every assigner.
    """

    def __init__(
        self,
        num_bins: int,
        weight: float = 0.25,
        temperature: float = 10.0,
        region: float = 0.25,
        anchor_scale: float = 8.0,
    ):
        self.num_bins = num_bins
        self.weight, self.temperature = weight, temperature
        self.region, self.anchor_scale = region, anchor_scale

    def __call__(
        self,
        predictions: Predictions,
        teacher: Predictions,
        targets: Targets,
        assignment: Assignment,
        box_weight: Tensor,
        weight_sum: Tensor,
    ) -> dict[str, Tensor]:
        """The two terms.

        Args:
            predictions, teacher: on the same grid.
            targets: the objects.
            assignment: of the student.
            box_weight: (B, M) weight of each slot's box.
            weight_sum: () what the sum over slots is divided by.
        """
        divergence = self._divergence(predictions.box_logits, teacher.box_logits)
        positives = (divergence.gather(1, assignment.slots) * box_weight).sum() / weight_sum
        valuable = self.valuable_region(predictions.grid, targets, assignment).float()
        count = sum_over_ranks(valuable.sum()).clamp(min=1) / world_size()
        return {
            "loss_ld": self.weight * positives,
            "loss_ld_region": self.weight * (divergence * valuable).sum() / count,
        }

    def _divergence(self, box_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """(B, N, K) each to (B, N): mean over the four sides."""
        sides = (4, self.num_bins)
        student, teacher = (x.float().unflatten(-1, sides) for x in (box_logits, teacher_logits))
        return distribution_kl_loss(student, teacher, self.temperature).mean(-1)

    @torch.no_grad()
    def valuable_region(self, grid: Grid, targets: Targets, assignment: Assignment) -> Tensor:
        """(B, N) bool: background around the positives of some object."""
        half = 0.5 * self.anchor_scale * grid.strides[:, None]
        anchors = torch.cat((grid.centers - half, grid.centers + half), 1)
        found = torch.zeros_like(assignment.gt_index, dtype=torch.bool)
        for chunk in object_chunks(grid, targets):
            diou = aligned_diou(anchors[:, None], targets.boxes[:, None, chunk])
            rows = torch.arange(chunk.start, chunk.start + diou.shape[2], device=diou.device)
            is_own = assignment.gt_index[..., None] == rows
            least = diou.masked_fill(~is_own, torch.inf).amin(1, keepdim=True)
            found |= ((diou >= self.region * least) & (diou < least) & least.isfinite()).any(-1)
        return found & (assignment.gt_index < 0) & (assignment.weight > 0)
