"""The loss of one step: assign, pick the positives, three terms, normalise over ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gfl.boxes import aligned_iou, ltrb_to_xyxy, xyxy_to_ltrb
from gfl.distributed import sum_over_ranks, world_size
from gfl.losses.functional import giou_loss, quality_focal_loss, quality_focal_loss_of_scores
from gfl.structures import Assignment, Grid, Predictions, Targets

if TYPE_CHECKING:
    from gfl.models.box_representation import GeneralBox


class GFLCriterion:
    """Quality focal loss on all locations, GIoU and distribution focal loss on the positives.

        loss_cls = sum(QFL) / num_positives
        loss_box = giou_weight * sum(w * GIoU loss) / sum(w)
        loss_dfl = dfl_weight * sum(w * mean DFL of the four sides) / sum(w)

    with w = the location's highest joint score, detached. A positive's label in QFL is the IoU of
    its own decoded box with its object, detached. `num_positives` is the sum over images of
    max(positives, 1); both normalisers are taken over all processes, `sum(w)` is at least 1.

    Nothing waits for the device: box terms run on the assignment's slots, whose number the host
    knows, with weight 0 where a slot is not positive. A batch without objects needs no branch.

    Args:
        assigner: `assigner(grid, targets)` gives an `Assignment`.
        box: the representation that `Predictions.box_logits` are in.
        beta: focusing power of QFL.
        cls_weight, giou_weight, dfl_weight: weights of the terms.

    Source: arXiv 2006.04388 equation 8 and section 4; mmdet `GFLHead.loss_by_feat`.
    """

    def __init__(
        self,
        assigner: Callable[[Grid, Targets], Assignment],
        box: GeneralBox,
        beta: float = 2.0,
        cls_weight: float = 1.0,
        giou_weight: float = 2.0,
        dfl_weight: float = 0.25,
    ):
        self.assigner = assigner
        self.box = box
        self.beta = beta
        self.cls_weight = cls_weight
        self.giou_weight = giou_weight
        self.dfl_weight = dfl_weight

    def __call__(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        """Compute the named losses of a batch; their sum is what is minimised.

        Args:
            predictions: float logits of any precision; all that follows is float32.
            targets: objects in pixels of the network input.

        Returns:
            `loss_cls`, `loss_box`, `loss_dfl`: () float32 each, weights included.
        """
        with torch.autocast(predictions.cls_logits.device.type, enabled=False):
            return self._losses(predictions, targets)

    def _losses(self, predictions: Predictions, targets: Targets) -> dict[str, Tensor]:
        grid = predictions.grid
        assignment = self.assigner(grid, targets)
        slots, positive = assignment.slots, assignment.slot_positive
        cls_logits = predictions.cls_logits.float()
        box_logits = _rows(predictions.box_logits, slots).float()

        # Strides are the unit of all box arithmetic here, as in the reference.
        stride = grid.strides[slots][..., None]
        centers = grid.centers[slots] / stride
        gt_row = assignment.gt_index.gather(1, slots).clamp(min=0)
        gt_boxes = _rows(targets.boxes, gt_row) / stride
        boxes = ltrb_to_xyxy(centers, self.box.ltrb_cells(box_logits))

        gt_labels = targets.labels.gather(1, gt_row)
        slot_iou = aligned_iou(boxes.detach(), gt_boxes) * positive
        score_target = torch.zeros_like(cls_logits).index_put(
            (_image_numbers(slots), slots, gt_labels), slot_iou
        )
        if predictions.quality_logits is None:
            qfl = quality_focal_loss(cls_logits, score_target, self.beta)
        else:
            scores = predictions.joint_scores()
            qfl = quality_focal_loss_of_scores(scores, score_target, self.beta)
        qfl = (qfl.sum(-1) * assignment.weight).sum()

        weight = _rows(cls_logits.detach(), slots).amax(-1).sigmoid() * positive
        if predictions.quality_logits is not None:
            weight = weight * _rows(predictions.quality_logits.detach(), slots)[..., 0].sigmoid()
        giou = (giou_loss(boxes, gt_boxes) * weight).sum()
        dfl = self.box.density_loss(box_logits, xyxy_to_ltrb(centers, gt_boxes))
        dfl = (dfl * weight).sum()

        num_positives, weight_sum = self._normalisers(positive, weight)
        return {
            "loss_cls": self.cls_weight * qfl / num_positives,
            "loss_box": self.giou_weight * giou / weight_sum,
            "loss_dfl": self.dfl_weight * dfl / weight_sum,
        }

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
