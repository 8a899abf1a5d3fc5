"""The loss of one step: assign, pick the positives, the terms, normalise over ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.boxes import aligned_iou, centerness, xyxy_to_ltrb
from gfl.distributed import sum_over_ranks, world_size
from gfl.losses.functional import (
    focal_loss,
    giou_loss,
    quality_focal_loss,
    quality_focal_loss_of_scores,
    score_distribution_loss,
)
from gfl.quality import QUALITY_MODES, QualityMode
from gfl.structures import Assignment, Candidates, Predictions, Targets, expected_score

if TYPE_CHECKING:
    from gfl.losses.distillation import LocalizationDistillation
    from gfl.models.box_representation import BoxRepresentation


@dataclass(frozen=True)
class _Slots:
    """What is known at the M locations of each image that include its positives.

    What ends in `_cells` is in strides of each location, the unit of all box arithmetic here, as
    in the reference.

    Attributes:
        index: (B, M) location.
        positive: (B, M) bool.
        box_logits: (B, M, K).
        boxes_cells, gt_boxes_cells: (B, M, 4) xyxy, predicted and true.
        gt_ltrb_cells: (B, M, 4) true distances.
        gt_labels: (B, M).
        iou: (B, M) of predicted and true box, detached, 0 where not positive.
    """

    index: Tensor
    positive: Tensor
    box_logits: Tensor
    boxes_cells: Tensor
    gt_boxes_cells: Tensor
    gt_ltrb_cells: Tensor
    gt_labels: Tensor
    iou: Tensor


class GFLCriterion:
    """Quality focal loss on all locations, GIoU and distribution focal loss on the positives.

        loss_cls = sum(QFL) / num_positives
        loss_box = giou_weight * sum(w * GIoU loss) / sum(w)
        loss_dfl = dfl_weight * sum(w * mean DFL of the four sides) / sum(w)

    with w = the location's highest joint score, detached. A positive's label in QFL is the IoU of
    its own decoded box with its object, detached, or `Assignment.score_target`. `num_positives` is
    the sum over images of max(positives, 1); both normalisers are taken over all processes,
    `sum(w)` is at least 1.

    That is `quality` "joint". The other rows of `gfl.quality.QUALITY_MODES` change three things:
    without `joint` the class loss is the focal loss of hard labels; w is the row's target, or 1 if
    it has none; a branch adds

        loss_quality = sum over positives of BCE(quality logit, target) / num_positives

    and a target without a branch weighs the positives' class loss as well. The representation
    says which density loss there is: `loss_dfl`, `loss_nll`, or none.

    Nothing waits for the device: box terms run on the assignment's slots, whose number the host
    knows, with weight 0 where a slot is not positive. A batch without objects needs no branch.

    Args:
        assigner: `assigner(grid, targets)` gives an `Assignment`; one whose `needs_candidates` is
            true gets `Candidates` as well.
        box: the representation that `Predictions.box_logits` are in.
        beta: focusing power of QFL.
        cls_weight, giou_weight, dfl_weight: weights of the terms; the last is that of any density
            loss, and 0 computes none.
        quality: how quality is judged.
        focal_alpha, focal_gamma: of the focal loss.
        distillation: adds its terms where a teacher's predictions are given.

    Source: arXiv 2006.04388 equation 8, section 4 and table 1a; mmdet `GFLHead.loss_by_feat`,
    `ATSSHead.loss_by_feat_single`.
    """

    def __init__(
        self,
        assigner: Callable[..., Assignment],
        box: BoxRepresentation,
        beta: float = 2.0,
        cls_weight: float = 1.0,
        giou_weight: float = 2.0,
        dfl_weight: float = 0.25,
        quality: QualityMode = QUALITY_MODES["joint"],
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        distillation: LocalizationDistillation | None = None,
    ):
        self.assigner = assigner
        self.box = box
        self.beta = beta
        self.cls_weight = cls_weight
        self.giou_weight = giou_weight
        self.dfl_weight = dfl_weight
        self.quality = quality
        self.focal_alpha, self.focal_gamma = focal_alpha, focal_gamma
        self.distillation = distillation

    def __call__(
        self, predictions: Predictions, targets: Targets, teacher: Predictions | None = None
    ) -> dict[str, Tensor]:
        """Compute the named losses of a batch; their sum is what is minimised.

        Args:
            predictions: float logits of any precision; all that follows is float32.
            targets: objects in pixels of the network input.
            teacher: what another network says of the same images, on the same grid.

        Returns:
            `loss_cls`, `loss_box`, and `loss_dfl` or what else the quality and the representation
            ask for: () float32 each, weights included.
        """
        with torch.autocast(predictions.cls_logits.device.type, enabled=False):
            return self._losses(predictions, targets, teacher)

    def _losses(
        self, predictions: Predictions, targets: Targets, teacher: Predictions | None
    ) -> dict[str, Tensor]:
        assignment = self._assign(predictions, targets)
        slots = self._slots(predictions, targets, assignment)
        target = self._quality_target(slots)
        weight = self._box_weight(predictions, slots, target)
        num_positives, weight_sum = self._normalisers(slots.positive, weight)

        cls = self._class_loss(predictions, assignment, slots, target).sum()
        giou = (giou_loss(slots.boxes_cells, slots.gt_boxes_cells) * weight).sum()
        losses = {
            "loss_cls": self.cls_weight * cls / num_positives,
            "loss_box": self.giou_weight * giou / weight_sum,
        }
        if self.box.density_name and self.dfl_weight:
            density = self.box.density_loss(slots.box_logits, slots.gt_ltrb_cells)
            density = (density * weight).sum()
            losses[self.box.density_name] = self.dfl_weight * density / weight_sum
        if self.quality.branch:
            logits = _rows(predictions.quality_logits, slots.index)[..., 0].float()
            bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
            losses["loss_quality"] = (bce * slots.positive).sum() / num_positives
        if teacher is not None:
            losses |= self.distillation(
                predictions, teacher, targets, assignment, weight, weight_sum
            )
        return losses

    def _assign(self, predictions: Predictions, targets: Targets) -> Assignment:
        if not getattr(self.assigner, "needs_candidates", False):
            return self.assigner(predictions.grid, targets)
        return self.assigner(predictions.grid, targets, self.candidates(predictions))

    @torch.no_grad()
    def candidates(self, predictions: Predictions) -> Candidates:
        """Scores and boxes of all locations, for assigners that compare them with the objects."""
        grid = predictions.grid
        boxes = self.box.boxes(predictions.box_logits, grid.centers, grid.strides[:, None])
        return Candidates(predictions.joint_scores(), boxes)

    def _slots(self, predictions: Predictions, targets: Targets, assignment: Assignment) -> _Slots:
        grid, index, positive = predictions.grid, assignment.slots, assignment.slot_positive
        box_logits = _rows(predictions.box_logits, index).float()
        stride = grid.strides[index][..., None]
        centers = grid.centers[index] / stride
        gt_row = assignment.gt_index.gather(1, index).clamp(min=0)
        gt_boxes = _rows(targets.boxes, gt_row) / stride
        boxes = self.box.boxes(box_logits, centers)
        return _Slots(
            index,
            positive,
            box_logits,
            boxes,
            gt_boxes,
            gt_ltrb_cells=xyxy_to_ltrb(centers, gt_boxes),
            gt_labels=_rows(targets.labels[..., None], gt_row)[..., 0],
            iou=aligned_iou(boxes.detach(), gt_boxes) * positive,
        )

    def _quality_target(self, slots: _Slots) -> Tensor | None:
        """(B, M) what the quality mode judges positives by, 0 elsewhere; None for nothing."""
        if self.quality.target == "centerness":
            return centerness(slots.gt_ltrb_cells) * slots.positive
        return slots.iou if self.quality.target == "iou" else None

    def _box_weight(self, predictions: Predictions, slots: _Slots, target: Tensor | None) -> Tensor:
        """(B, M) how much each slot's box counts; 0 where it is not positive."""
        if target is not None:
            return target
        weight = slots.positive.float()
        if self.quality.joint:
            logits = _rows(predictions.cls_logits.detach().flatten(2), slots.index).float()
            if predictions.scores_are_distributions:
                scores = expected_score(logits.unflatten(-1, predictions.cls_logits.shape[2:]))
                weight = weight * scores.amax(-1)
            else:
                weight = weight * logits.amax(-1).sigmoid()
        if self.quality.joint and predictions.quality_logits is not None:
            quality = _rows(predictions.quality_logits.detach(), slots.index)[..., 0]
            weight = weight * quality.float().sigmoid()
        return weight

    def _class_loss(
        self,
        predictions: Predictions,
        assignment: Assignment,
        slots: _Slots,
        target: Tensor | None,
    ) -> Tensor:
        """(B, N) loss of all classes at each location."""
        cls_logits = predictions.cls_logits.float()
        label = slots.positive.float()
        if self.quality.joint and assignment.score_target is not None:
            label = assignment.score_target.gather(1, slots.index)
        elif self.quality.joint:
            label = slots.iou
        shape = cls_logits.shape[:3]
        labels = cls_logits.new_zeros(shape).index_put(
            (_image_numbers(slots.index), slots.index, slots.gt_labels), label
        )
        if not self.quality.joint:
            loss = focal_loss(cls_logits, labels, self.focal_alpha, self.focal_gamma)
        elif predictions.scores_are_distributions:
            loss = score_distribution_loss(cls_logits, labels, self.beta)
        elif predictions.quality_logits is None:
            loss = quality_focal_loss(cls_logits, labels, self.beta)
        else:
            loss = quality_focal_loss_of_scores(predictions.joint_scores(), labels, self.beta)
        weight = assignment.weight
        if self.quality.guides_class_loss:
            guided = torch.where(slots.positive, target, weight.gather(1, slots.index))
            weight = weight.scatter(1, slots.index, guided)
        return loss.sum(-1) * weight

    @staticmethod
    def _normalisers(positive: Tensor, weight: Tensor) -> Tensor:
        """(2,) what class and box terms are divided by, the same on every process.

        Sums are taken over all processes, bounded below, then divided by their number: DDP
        averages the gradients, so n processes give exactly what one gives with n times the batch.
        """
        per_image = positive.sum(1).clamp(min=1).float()
        total = sum_over_ranks(torch.stack((per_image.sum(), weight.sum())))
        return total.clamp(min=1) / world_size()


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """Pick rows of each image: (B, N, k), (B, M) to (B, M, k). Zero rows where N is 0."""
    if values.shape[1] == 0:
        return values.new_zeros(*index.shape, values.shape[2])
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[2]))


def _image_numbers(index: Tensor) -> Tensor:
    """(B, M) row numbers 0 ... B-1, to index (B, N, ...) tensors by."""
    return torch.arange(index.shape[0], device=index.device)[:, None].expand_as(index)
