"""From predictions to detections: top-k per level, decode, NMS, back to the original image."""

import torch
from torch import Tensor
from torchvision.ops import nms

from gfl.boxes import ltrb_to_xyxy
from gfl.models.box_representation import BoxRepresentation
from gfl.structures import Detections, ImageMeta, Predictions

PRE_NMS_RULES = ("pairs", "locations")
# NMS takes time with the square of the boxes, on a GPU memory too: beyond these, a few classes at a
# time.
BOXES_AT_ONCE = {"cpu": 500, "gpu": 20_000}


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
        max_per_image: detections kept, best first; None for all.
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
        max_per_image: int | None = 100,
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
        self,
        predictions: Predictions,
        metas: tuple[ImageMeta, ...],
        rescale: bool = True,
        device: torch.device | str | None = None,
    ) -> list[Detections]:
        """Decode a batch.

        Args:
            predictions: of B images.
            metas: B entries.
            rescale: give boxes in pixels of the original image, else of the network input.
            device: where the detections shall be; default, where the predictions are. A whole
                batch is moved at once, which takes less time than its images one by one.
        """
        with torch.autocast(predictions.cls_logits.device.type, enabled=False):
            found, counts = self._batch(predictions, metas, rescale)
        if device is not None:
            found = found.to(device)
        rows = torch.arange(sum(counts), device=found.boxes.device)
        return [found.select(part) for part in rows.split(counts)]

    def detection_scores(self, predictions: Predictions) -> Tensor:
        """(B, N, C) joint scores of the classes that detections may have."""
        scores = predictions.joint_scores()
        return scores[..., :-1] if self.background_channel else scores

    def _batch(
        self, predictions: Predictions, metas: tuple, rescale: bool
    ) -> tuple[Detections, list[int]]:
        """Detections image by image, and how many there are of each."""
        grid, scores = predictions.grid, self.detection_scores(predictions)
        image, location, label = self._candidates(scores, grid.level_counts)
        score, box_logits = scores[image, location, label], predictions.box_logits[image, location]
        center, stride = grid.centers[location], grid.strides[location][:, None]
        size = score.new_tensor([meta.input_size[::-1] * 2 for meta in metas])[image]
        scale = score.new_tensor([meta.scale * 2 if rescale else (1.0,) * 4 for meta in metas])
        scale = scale[image]
        boxes = self.box.boxes(box_logits, center, stride).clamp(min=0).minimum(size) / scale

        rows = (boxes[:, 2:] > boxes[:, :2]).all(1).nonzero().squeeze(1)
        class_of_image = image * scores.shape[2] + label
        rows = rows[class_wise_nms(boxes[rows], score[rows], class_of_image[rows], self.nms_iou)]
        rows = rows[_best_of_each(score[rows], image[rows], self.max_per_image)]

        kept_logits, stride, scale = box_logits[rows].float(), stride[rows], scale[rows]
        distributions = positions = None
        if self.distributions:
            distributions = self.box.distributions(kept_logits)
        if distributions is not None:
            width = stride * self.box.bin_width
            positions = bin_positions(center[rows], width, self.box.reg_max) / scale[..., None]
        found = Detections(
            boxes=boxes[rows],
            scores=score[rows],
            labels=label[rows],
            edge_std=self.box.edge_std_cells(kept_logits) * stride / scale,
            distributions=distributions,
            edge_positions=positions,
        )
        return found, image[rows].bincount(minlength=len(metas)).tolist()

    def _candidates(self, scores: Tensor, level_counts: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Image, location and class (each (n,)) of what enters NMS, out of (B, N, C) scores.

        The best k pairs lie at the k locations whose best class is best, so that one comparison
        a location is enough to leave out nearly all of them.
        """
        images, locations, labels, first = [], [], [], 0
        each = torch.arange(len(scores), device=scores.device)[:, None]
        for level in scores.split(level_counts, dim=1):
            count = level.shape[1]
            near = torch.arange(count, device=scores.device).expand(len(scores), -1)
            if count > self.pre_nms_top_k:
                near = level.amax(2).topk(self.pre_nms_top_k).indices.sort().values
                level = level[each, near]
            image, row, label = (level > self.score_threshold).nonzero(as_tuple=True)
            if self.pre_nms_rule == "pairs" and len(image) > self.pre_nms_top_k:
                pairs = level.flatten(1)
                # In the order of their places, as where all pairs are kept: of equals NMS keeps the
                # first, which must not depend on the other images of the batch.
                best = pairs.topk(min(self.pre_nms_top_k, pairs.shape[1])).indices.sort().values
                is_kept = pairs.gather(1, best) > self.score_threshold
                image, number = is_kept.nonzero(as_tuple=True)
                pair = best[image, number]
                row, label = pair // level.shape[2], pair % level.shape[2]
            images.append(image)
            locations.append(first + near[image, row])
            labels.append(label)
            first += count
        return torch.cat(images), torch.cat(locations), torch.cat(labels)


def _best_of_each(scores: Tensor, image: Tensor, count: int | None) -> Tensor:
    """Rows of the `count` highest scores of each image: image by image, best first.

    Args:
        scores: (n,).
        image: (n,) number of the image.
        count: None for all.
    """
    order = scores.argsort(descending=True, stable=True)
    order = order[image[order].argsort(stable=True)]
    if count is None:
        return order
    image = image[order]
    rank = torch.arange(len(image), device=image.device) - torch.searchsorted(image, image)
    return order[rank < count]


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
        labels: (n,) int64; for a batch, a number for each class of each image.

    Returns:
        Indices of the boxes that stay, best first.
    """
    if len(boxes) == 0:
        return labels.new_zeros(0)
    # Each class gets a place of its own. In double, so that the offset costs no precision.
    offset = labels.double() * (boxes.max() - boxes.min() + 1)
    boxes, scores = boxes.double() + offset[:, None], scores.double()
    at_once = BOXES_AT_ONCE["cpu" if boxes.device.type == "cpu" else "gpu"]
    if len(boxes) <= at_once:
        return nms(boxes, scores, iou)
    labels, order = labels.sort(stable=True)
    counts = labels.unique_consecutive(return_counts=True)[1]
    sizes = torch.bincount(counts.cumsum(0) // at_once, weights=counts).long().tolist()
    kept = torch.cat([rows[nms(boxes[rows], scores[rows], iou)] for rows in order.split(sizes)])
    kept = kept.sort().values  # equal scores stay in the order of rows
    return kept[scores[kept].argsort(descending=True, stable=True)]
