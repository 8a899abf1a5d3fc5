"""The values that travel between the rooms: images, targets, predictions, detections.

Legend of shape letters, for the whole package:

    B images in a batch       N locations of all pyramid levels, finest level first
    C classes                 K box channels of one location, 4 * (reg_max + 1) for distributions
    G objects in an image, padded to the largest count of the batch      I ignore boxes, likewise
    M slots, the locations at which box losses are computed (a superset of the positives)
    D detections of one image                      S bins of a score that is a distribution

Boxes are xyxy, side distances ltrb (left, top, right, bottom). The unit is the pixel; what is
measured in strides ends in `_cells`. Sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gfl.detections import Detections
from gfl.tensors import OnDevice, check_shape

__all__ = [
    "Assignment",
    "Batch",
    "Candidates",
    "Detections",
    "Grid",
    "ImageMeta",
    "Predictions",
    "Targets",
]


@dataclass(frozen=True)
class ImageMeta:
    """Where one image of a batch comes from.

    Attributes:
        image_id: the data set's own id.
        original_size: (h, w) of the image file; in training, of what cropping or composing has
            made of it.
        input_size: (h, w) after resizing, without padding.
        scale: (sx, sy), factors from original to input pixels.
        others: ids of further images that a composed one shows (mosaic, mix-up, copy-paste).
        stands_in_for: in training, why another image could not be read, whose place it takes.
    """

    image_id: int
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    scale: tuple[float, float]
    others: tuple[int, ...] = ()
    stands_in_for: str = ""


@dataclass(frozen=True)
class Targets(OnDevice):
    """The objects of a batch, padded so that all sizes are known to the host. G = 0 is legal.

    Attributes:
        boxes: (B, G, 4) xyxy, pixels of the network input; rows that are not present are 0.
        labels: (B, G) int64 in [0, C); 0 where not present.
        present: (B, G) bool, False for padding rows.
        valid_size: (B, 2) int64, (h, w) of each image's own input size padded to 32.
        ignore_boxes: (B, I, 4) crowd regions, same frame as `boxes`.
        ignore_present: (B, I) bool.
    """

    boxes: Tensor
    labels: Tensor
    present: Tensor
    valid_size: Tensor
    ignore_boxes: Tensor
    ignore_present: Tensor

    def __post_init__(self):
        num_images, num_objects = self.boxes.shape[:2]
        check_shape("boxes", self.boxes, num_images, num_objects, 4)
        check_shape("labels", self.labels, num_images, num_objects)
        check_shape("present", self.present, num_images, num_objects)
        check_shape("valid_size", self.valid_size, num_images, 2)
        check_shape("ignore_boxes", self.ignore_boxes, num_images, None, 4)
        check_shape("ignore_present", self.ignore_present, num_images, self.ignore_boxes.shape[1])


@dataclass(frozen=True)
class Batch(OnDevice):
    """Images and targets of one step.

    Attributes:
        images: (B, 3, H, W) uint8 RGB, zero-padded at the right and bottom. `gfl.data.batch.
            Normalize` makes the network input of it, on the device.
        input_sizes: (B, 2) int64, (h, w) of each image without padding.
        targets: the objects.
        metas: one `ImageMeta` an image.
    """

    images: Tensor
    input_sizes: Tensor
    targets: Targets
    metas: tuple[ImageMeta, ...]

    def __post_init__(self):
        num_images = len(self.metas)
        check_shape("images", self.images, num_images, 3, None, None)
        check_shape("input_sizes", self.input_sizes, num_images, 2)
        check_shape("targets.boxes", self.targets.boxes, num_images, None, 4)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(h, w) of `images`."""
        return self.images.shape[-2], self.images.shape[-1]


@dataclass(frozen=True)
class Grid(OnDevice):
    """All locations of the pyramid, levels concatenated finest first, rows outer, columns inner.

    Where a place of the feature map has several anchors, each is a location: anchors innermost.

    Attributes:
        centers: (N, 2) x, y of each location, the point that box distances start from.
        strides: (N,) pixels between neighbouring locations of the level.
        level_sizes: (h, w) of each level's feature map.
        level_strides: stride of each level.
        origin: name of the grid origin in `gfl.grid.ORIGINS`.
        anchors_per_cell: locations that share a place of the feature map.
    """

    centers: Tensor
    strides: Tensor
    level_sizes: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]
    origin: str
    anchors_per_cell: int = 1

    def __post_init__(self):
        num_locations = sum(self.level_counts)
        check_shape("centers", self.centers, num_locations, 2)
        check_shape("strides", self.strides, num_locations)

    @property
    def level_counts(self) -> list[int]:
        """Number of locations of each level; they sum to N."""
        return [height * width * self.anchors_per_cell for height, width in self.level_sizes]


@dataclass(frozen=True)
class Predictions(OnDevice):
    """What the network says about every location.

    Attributes:
        cls_logits: (B, N, C) classification logits, float32; joint with the IoU in GFL. Where
            scores are distributions, (B, N, C, S) logits of the scores 0, 1 / (S - 1) ... 1.
        box_logits: (B, N, K) what the box representation reads sides from, sides ltrb outer.
        grid: the locations.
        quality_logits: (B, N, 1) logits of a quality that multiplies the class scores, or None.
    """

    cls_logits: Tensor
    box_logits: Tensor
    grid: Grid
    quality_logits: Tensor | None = None

    def __post_init__(self):
        num_images = self.cls_logits.shape[0]
        num_locations = self.grid.strides.shape[0]
        classes = (None,) if self.cls_logits.ndim < 4 else (None, None)
        check_shape("cls_logits", self.cls_logits, num_images, num_locations, *classes)
        check_shape("box_logits", self.box_logits, num_images, num_locations, None)
        if self.quality_logits is not None:
            check_shape("quality_logits", self.quality_logits, num_images, num_locations, 1)

    @property
    def scores_are_distributions(self) -> bool:
        """Whether each class score is the expectation of a distribution."""
        return self.cls_logits.ndim == 4

    def class_scores(self) -> Tensor:
        """(B, N, C) float32 scores in [0, 1] of the classes alone."""
        if self.scores_are_distributions:
            return expected_score(self.cls_logits.float())
        return self.cls_logits.float().sigmoid()

    def joint_scores(self) -> Tensor:
        """(B, N, C) float32 scores in [0, 1]: those of the classes, times a quality if any.

        Source: arXiv 2006.04388 section 3.2; arXiv 2011.12885 equation 2.
        """
        scores = self.class_scores()
        if self.quality_logits is not None:
            scores = scores * self.quality_logits.float().sigmoid()
        return scores


def expected_score(logits: Tensor) -> Tensor:
    """Mean of a distribution over the scores 0, 1 / (S - 1) ... 1: (..., S) logits to (...)."""
    scores = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    mean = logits.softmax(-1) @ (scores / (logits.shape[-1] - 1))
    return mean.clamp(max=1)  # the sum is rounded


@dataclass(frozen=True)
class Candidates:
    """What the network says now, for assigners that ask it; without gradients.

    Attributes:
        scores: (B, N, C) float32 in [0, 1], as they are at test: the classes' times any quality.
        boxes: (B, N, 4) float32 xyxy, pixels of the network input.
    """

    scores: Tensor
    boxes: Tensor

    def __post_init__(self):
        check_shape("scores", self.scores, *self.boxes.shape[:2], None)
        check_shape("boxes", self.boxes, None, None, 4)


@dataclass(frozen=True)
class Assignment:
    """Which object each location answers for.

    Attributes:
        gt_index: (B, N) int64, row of `Targets.boxes`, -1 for background.
        weight: (B, N) float, 0 for locations that take no part in the classification loss.
        slots: (B, M) int64, distinct locations that include every positive; M is known to the
            host, so that box losses need no boolean indexing.
        slot_positive: (B, M) bool.
        score_target: (B, N) the joint score that a positive shall have; None for the IoU of its
            own box.
    """

    gt_index: Tensor
    weight: Tensor
    slots: Tensor
    slot_positive: Tensor
    score_target: Tensor | None = None

    def __post_init__(self):
        num_images, num_locations = self.gt_index.shape
        check_shape("weight", self.weight, num_images, num_locations)
        check_shape("slots", self.slots, num_images, None)
        check_shape("slot_positive", self.slot_positive, *self.slots.shape)
        if self.score_target is not None:
            check_shape("score_target", self.score_target, num_images, num_locations)
