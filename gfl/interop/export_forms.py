"""What can be exported: three ways in which a network of plain tensors can end.

Each form takes `images` (B, 3, H, W) float32 RGB in 0..255, H and W multiples of 32, and
`input_sizes` (B, 2) int64, (h, w) of each image without its padding at the right and bottom.
Normalisation is inside, and puts 0 on the padding whatever it holds. All outputs are float32 or
int64. Batch size and image size stay free.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gfl.grid import compute_grid
from gfl.models.deformable import DeformableConv2d
from gfl.models.detector import GFLDetector
from gfl.postprocess import Postprocess, class_wise_nms
from gfl.structures import Predictions


class ExportForm(nn.Module):
    """A detector from images to predictions; the forms say how it ends.

    Args:
        model: in eval mode, in float32 or as `halve` leaves it.
        normalize: a `gfl.data.batch.Normalize`.
        postprocess: the rules from predictions to detections.
    """

    outputs: tuple[str, ...]

    def __init__(self, model: GFLDetector, normalize, postprocess: Postprocess):
        super().__init__()
        self.model, self.normalize, self.postprocess = model, normalize, postprocess
        self.box = postprocess.box

    def predictions(self, images: Tensor, input_sizes: Tensor) -> Predictions:
        model = self.model
        images = self.normalize(images, input_sizes)
        logits, sizes = model.tensors(images.to(next(model.parameters()).dtype))
        grid = compute_grid(
            tuple(sizes),
            model.neck.strides,
            model.grid_origin,
            images.device,
            model.head.anchors_per_cell,
        )
        return Predictions(logits.cls_logits, logits.box_logits, grid, logits.quality_logits)


class Raw(ExportForm):
    """`scores` (B, N, C) and `distributions` (B, N, 4, reg_max + 1), probabilities, sides ltrb."""

    outputs = ("scores", "distributions")

    def forward(self, images: Tensor, input_sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.predictions(images, input_sizes)
        return self.postprocess.detection_scores(found), self.box.distributions(found.box_logits)


class Decoded(ExportForm):
    """`boxes` (B, N, 4) xyxy, not clipped, `scores` (B, N, C), `edge_std` (B, N, 4) ltrb; pixels
    of the network input."""

    outputs = ("boxes", "scores", "edge_std")

    def forward(self, images: Tensor, input_sizes: Tensor) -> tuple[Tensor, ...]:
        found = self.predictions(images, input_sizes)
        stride = found.grid.strides[:, None]
        boxes = self.box.boxes(found.box_logits, found.grid.centers, stride)
        edge_std = self.box.edge_std_cells(found.box_logits) * stride
        return boxes, self.postprocess.detection_scores(found), edge_std


class Final(ExportForm):
    """The detections of `Postprocess`, in pixels of the network input and clipped to each image.

    `boxes` (B, D, 4), `scores` (B, D), `labels` (B, D) int64, `edge_std` (B, D, 4), best first,
    and `count` (B,) int64: of image i the first `count[i]` rows hold, the others are 0. D is
    `postprocess.max_per_image`.
    """

    outputs = ("boxes", "scores", "labels", "edge_std", "count")

    def forward(self, images: Tensor, input_sizes: Tensor) -> tuple[Tensor, ...]:
        rules = self.postprocess
        found = self.predictions(images, input_sizes)
        scores, location = self.candidates(rules.detection_scores(found), found.grid.level_counts)
        logits = _rows(found.box_logits, location)
        stride = found.grid.strides[location][..., None]
        boxes = self.box.boxes(logits, found.grid.centers[location], stride)
        limits = input_sizes.flip(1).repeat(1, 2)[:, None].float()
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        has_area = ((boxes[..., 2:] - boxes[..., :2]) > 0).all(-1)
        enters = has_area[:, None] & (scores > rules.score_threshold)
        scores = torch.where(enters, scores, 0.0)

        kept = suppress(boxes, scores, rules.nms_iou, rules.score_threshold, rules.max_per_image)
        num_rows = boxes.shape[1]
        score, place = kept.flatten(1).topk(min(rules.max_per_image, kept[0].numel()))
        label, row = place // num_rows, place % num_rows
        present = score > 0
        edge_std = self.box.edge_std_cells(_rows(logits, row)) * _rows(stride, row)
        return (
            torch.where(present[..., None], _rows(boxes, row), 0.0),
            score,
            torch.where(present, label, 0),
            torch.where(present[..., None], edge_std, 0.0),
            present.sum(1),
        )

    def candidates(self, scores: Tensor, level_counts: list[int]) -> tuple[Tensor, Tensor]:
        """What enters NMS: `Postprocess`'s choice, for whole batches and in a fixed number.

        Args:
            scores: (B, N, C).

        Returns:
            (B, C, M) scores and (B, M) locations of M candidates, top k of each level. Levels are
            filled up with scores of 0, which no threshold lets pass.
        """
        k, num_classes = self.postprocess.pre_nms_top_k, scores.shape[-1]
        classes = torch.arange(num_classes, device=scores.device)[:, None]
        chosen, locations, first = [], [], 0
        for level in scores.split(level_counts, 1):
            if self.postprocess.pre_nms_rule == "locations":
                level_scores = F.pad(level, (0, 0, 0, k))
                location = level_scores.amax(2).topk(k).indices
                chosen.append(_rows(level_scores, location).transpose(1, 2))
            else:
                score, pair = F.pad(level.flatten(1), (0, k)).topk(k)
                location, label = pair // num_classes, pair % num_classes
                chosen.append(torch.where(label[:, None] == classes, score[:, None], 0.0))
            locations.append(first + location.clamp(max=level.shape[1] - 1))
            first = first + level.shape[1]
        return torch.cat(chosen, 2), torch.cat(locations, 1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """(B, N, K) and (B, M) to (B, M, K)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


FORMS: dict[str, type[ExportForm]] = {"raw": Raw, "decoded": Decoded, "nms": Final}


@torch.library.custom_op("gfl::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float, threshold: float, limit: int) -> Tensor:
    """Class-wise NMS in fixed shapes: what is suppressed gets the score 0.

    An operator of its own, so that an exporter can put the operator of its format in its place.

    Args:
        boxes: (B, M, 4) xyxy.
        scores: (B, C, M); those at or below `threshold` take no part.
        iou: see `class_wise_nms`.
        limit: as many as are wanted of an image; more may stay.

    Returns:
        (B, C, M) scores.
    """
    kept = torch.zeros_like(scores)
    for image in range(len(boxes)):
        label, row = (scores[image] > threshold).nonzero(as_tuple=True)
        score = scores[image, label, row]
        stays = class_wise_nms(boxes[image, row], score, label, iou)[:limit]
        kept[image, label[stays], row[stays]] = score[stays]
    return kept


@suppress.register_fake
def _(boxes, scores, iou, threshold, limit):
    return torch.empty_like(scores)


class InFloat32(nn.Module):
    """A part that computes in float32 whatever its neighbours do."""

    def __init__(self, part: nn.Module):
        super().__init__()
        self.part = part.float()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x.float()).to(x.dtype)


def halve(model: GFLDetector) -> None:
    """Turn convolutions to float16, in place.

    Norms (they sum over whole maps), deformable convolutions (their offsets are pixels) and the
    quality predictor stay float32. Logits leave the head in float32, so that softmax, sigmoid and
    boxes are float32 too.
    """
    model.half()
    kept = (nn.GroupNorm, nn.modules.batchnorm._BatchNorm, DeformableConv2d)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, kept):
                setattr(parent, name, InFloat32(child))
    if model.head.quality is not None:
        model.head.quality.float()
