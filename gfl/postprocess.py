"""From predictions to detections: top-k per level, decode, NMS, back to the original image."""

import torch
from torch import Tensor
from torchvision.ops import nms

from gfl.boxes import clip_boxes, ltrb_to_xyxy
from gfl.models.box_representation import BoxRepresentation
from gfl.structures import Detections, Grid, ImageMeta, Predictions

PRE_NMS_RULES = ("pairs", "locations")
# NMS takes time with the square of the boxes; from so many on, class by class is quicker on a CPU.
# On a GPU the number of classes at hand would have to be waited for.
MANY_BOXES = 2000


class Postprocess:
    """`postprocess(predictions, metas)` gives one `Detections` an image.

    Args:
        box: the representation that `Predictions.box_logits` are in.
        score_threshold: scores at or below it are dropped.
        pre_nms_top_k: kept per level before NMS.
        pre_nms_rule: what is counted: "pairs" of location and class above the threshold (mmdet
            since PR 6268, the zoo's numbers), or "locations" by their best class, all of whose
            classes are then held against the threshold (the authors' code).
        nms_iou: a box that overlaps a better one of its class by more is suppressed.
        max_per_image: detections kept, best first.
        distributions: whether `Detections` carry the side distributions, if the representation has
            any, and where they lie.
        background_channel: whether the last class channel is no class, see `GFLHead`.

    Source: arXiv 2006.04388 supplement; mmdet `BaseDenseHead._predict_by_feat_single`, `GFLHead`.
    """

    def __init__(
        self,
        box: BoxRepresentation,
        score_threshold: float = 0.05,
        pre_nms_top_k: int = 1000,
        pre_nms_rule: str = "pairs",
        nms_iou: float = 0.6,
        max_per_image: int = 100,
        distributions: bool = False,
        background_channel: bool = False,
    ):
        if pre_nms_rule not in PRE_NMS_RULES:
            raise ValueError(f"pre_nms_rule is {pre_nms_rule!r}, expected one of {PRE_NMS_RULES}")
        self.box = box
        self.score_threshold = score_threshold
        self.pre_nms_top_k = pre_nms_top_k
        self.pre_nms_rule = pre_nms_rule
        self.nms_iou = nms_iou
        self.max_per_image = max_per_image
        self.distributions = distributions
        self.background_channel = background_channel

    @torch.no_grad()
    def __call__(
        self, predictions: Predictions, metas: tuple[ImageMeta, ...], rescale: bool = True
    ) -> list[Detections]:
        """Decode a batch.

        Args:
            predictions: of B images.
            metas: B entries.
            rescale: give boxes in pixels of the original image, else of the network input.
        """
        with torch.autocast(predictions.cls_logits.device.type, enabled=False):
            scores = self.detection_scores(predictions)
            return [
                self._one_image(
                    scores[i], predictions.box_logits[i], predictions.grid, meta, rescale
                )
                for i, meta in enumerate(metas)
            ]

    def detection_scores(self, predictions: Predictions) -> Tensor:
        """(B, N, C) joint scores of the classes that detections may have."""
        scores = predictions.joint_scores()
        return scores[..., :-1] if self.background_channel else scores

    def _one_image(
        self, scores: Tensor, box_logits: Tensor, grid: Grid, meta: ImageMeta, rescale: bool
    ) -> Detections:
        location, label = self._candidates(scores, grid.level_counts)
        score = scores[location, label]
        stride = grid.strides[location][:, None]
        boxes = self.box.boxes(box_logits[location], grid.centers[location], stride)
        boxes = clip_boxes(boxes, meta.input_size)
        scale = boxes.new_tensor(meta.scale * 2) if rescale else boxes.new_ones(4)
        boxes = boxes / scale

        has_area = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(1).nonzero().squeeze(1)
        kept = has_area[
            class_wise_nms(boxes[has_area], score[has_area], label[has_area], self.nms_iou)
        ]
        kept = kept[: self.max_per_image]
        kept_logits = box_logits[location[kept]].float()
        distributions = positions = None
        if self.distributions:
            distributions = self.box.distributions(kept_logits)
        if distributions is not None:
            centers, width = grid.centers[location[kept]], stride[kept] * self.box.bin_width
            positions = bin_positions(centers, width, self.box.reg_max) / scale[:, None]
        return Detections(
            boxes=boxes[kept],
            scores=score[kept],
            labels=label[kept],
            edge_std=self.box.edge_std_cells(kept_logits) * stride[kept] / scale,
            distributions=distributions,
            edge_positions=positions,
        )

    def _candidates(self, scores: Tensor, level_counts: list[int]) -> tuple[Tensor, Tensor]:
        """Location and class (each (n,)) of what enters NMS, out of (N, C) scores."""
        locations, labels, first = [], [], 0
        for level_scores in scores.split(level_counts):
            if self.pre_nms_rule == "locations":
                best = level_scores.amax(1)
                keep = best.topk(min(self.pre_nms_top_k, len(best))).indices
                row, label = (level_scores[keep] > self.score_threshold).nonzero(as_tuple=True)
                location = keep[row]
            else:
                location, label = self._best_pairs(level_scores)
            locations.append(first + location)
            labels.append(label)
            first += len(level_scores)
        return torch.cat(locations), torch.cat(labels)

    def _best_pairs(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Location and class of the best pairs above the threshold, out of (n, C) scores.

        The best k pairs lie at the k locations whose best class is best, so that one comparison
        a location is enough to leave out nearly all of them.
        """
        k = self.pre_nms_top_k
        near = torch.arange(len(scores), device=scores.device)
        if len(scores) > k:
            near = scores.amax(1).topk(k).indices.sort().values
        row, label = (scores[near] > self.score_threshold).nonzero(as_tuple=True)
        location = near[row]
        above = scores[location, label]
        keep = above.topk(min(k, len(above))).indices
        return location[keep], label[keep]


def bin_positions(centers: Tensor, widths: Tensor, reg_max: int) -> Tensor:
    """Where the bins of each side lie: k widths from the location, outwards, for bin k.

    Args:
        centers: (n, 2) x, y of the locations.
        widths: (n, 1) between neighbouring bins, in the unit of `centers`.
        reg_max: the last bin.

    Returns:
        (n, 4, reg_max + 1) in the unit and frame of `centers`: x for left and right, y for top
        and bottom, sides in the order ltrb.
    """
    bins = torch.arange(reg_max + 1, device=centers.device, dtype=centers.dtype)
    ltrb = (bins * widths)[..., None].expand(-1, -1, 4)
    return ltrb_to_xyxy(centers[:, None].expand(-1, reg_max + 1, -1), ltrb).transpose(1, 2)


def class_wise_nms(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """Suppress boxes that overlap a better one of the same class by more than `iou`.

    Args:
        boxes: (n, 4) xyxy.
        scores: (n,).
        labels: (n,) int64.

    Returns:
        Indices of the boxes that stay, best first.
    """
    if len(boxes) == 0:
        return labels.new_zeros(0)
    boxes = boxes.double()
    if len(boxes) > MANY_BOXES and boxes.device.type == "cpu":
        return _nms_class_by_class(boxes, scores.double(), labels, iou)
    # Each class gets a place of its own. In double, so that the offset costs no precision.
    offset = labels.double() * (boxes.max() - boxes.min() + 1)
    return nms(boxes + offset[:, None], scores.double(), iou)


def _nms_class_by_class(boxes: Tensor, scores: Tensor, labels: Tensor, iou: float) -> Tensor:
    """`class_wise_nms`, one class after the other; equal scores stay in the order of rows."""
    of_class = [(labels == label).nonzero().squeeze(1) for label in labels.unique()]
    kept = torch.cat([rows[nms(boxes[rows], scores[rows], iou)] for rows in of_class])
    kept = kept.sort().values
    return kept[scores[kept].argsort(descending=True, stable=True)]
