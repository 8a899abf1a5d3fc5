"""The values that travel between the rooms: images, targets, predictions, detections.

Legend of shape letters, for the whole package:

    B images in a batch       N locations of all pyramid levels, finest level first
    C classes                 K box channels of one location, 4 * (reg_max + 1)
    G objects in an image, padded to the largest count of the batch      I ignore boxes, likewise
    M slots, the locations at which box losses are computed (a superset of the positives)
    D detections of one image

Boxes are xyxy, side distances ltrb (left, top, right, bottom). The unit is the pixel; what is
measured in strides ends in `_cells`. Sizes are (height, width).
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor


def _check(name: str, value: Tensor, *shape: int | None) -> None:
    """Compare a tensor's shape with the expected one; None accepts any size."""
    if torch.compiler.is_compiling():
        return
    matches = value.dim() == len(shape) and all(
        want is None or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not matches:
        expected = tuple("any" if want is None else want for want in shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")


class _OnDevice:
    """`to` and `pin_memory` for dataclasses of tensors (and of such dataclasses)."""

    def _map(self, function):
        moved = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | _OnDevice)
        }
        return replace(self, **moved)

    def to(self, device: torch.device | str, non_blocking: bool = False):
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self._map(lambda value: value.pin_memory())


@dataclass(frozen=True)
class ImageMeta:
    """Where one image of a batch comes from.

    Attributes:
        image_id: the data set's own id.
        original_size: (h, w) of the image file.
        input_size: (h, w) after resizing, without padding.
        scale: (sx, sy), factors from original to input pixels.
    """

    image_id: int
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    scale: tuple[float, float]


@dataclass(frozen=True)
class Targets(_OnDevice):
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
        _check("boxes", self.boxes, num_images, num_objects, 4)
        _check("labels", self.labels, num_images, num_objects)
        _check("present", self.present, num_images, num_objects)
        _check("valid_size", self.valid_size, num_images, 2)
        _check("ignore_boxes", self.ignore_boxes, num_images, None, 4)
        _check("ignore_present", self.ignore_present, num_images, self.ignore_boxes.shape[1])


@dataclass(frozen=True)
class Batch(_OnDevice):
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
        _check("images", self.images, num_images, 3, None, None)
        _check("input_sizes", self.input_sizes, num_images, 2)
        _check("targets.boxes", self.targets.boxes, num_images, None, 4)


@dataclass(frozen=True)
class Grid(_OnDevice):
    """All locations of the pyramid, levels concatenated finest first, rows outer, columns inner.

    Attributes:
        centers: (N, 2) x, y of each location, the point that box distances start from.
        strides: (N,) pixels between neighbouring locations of the level.
        level_sizes: (h, w) of each level's feature map.
        level_strides: stride of each level.
        origin: name of the grid origin in `gfl.grid.ORIGINS`.
    """

    centers: Tensor
    strides: Tensor
    level_sizes: tuple[tuple[int, int], ...]
    level_strides: tuple[int, ...]
    origin: str

    def __post_init__(self):
        num_locations = sum(height * width for height, width in self.level_sizes)
        _check("centers", self.centers, num_locations, 2)
        _check("strides", self.strides, num_locations)

    @property
    def level_counts(self) -> list[int]:
        """Number of locations of each level; they sum to N."""
        return [height * width for height, width in self.level_sizes]


@dataclass(frozen=True)
class Predictions(_OnDevice):
    """What the network says about every location.

    Attributes:
        cls_logits: (B, N, C) joint classification-IoU logits, float32.
        box_logits: (B, N, K) logits of the side distributions, sides ltrb outer, bins inner.
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
        _check("cls_logits", self.cls_logits, num_images, num_locations, None)
        _check("box_logits", self.box_logits, num_images, num_locations, None)
        if self.quality_logits is not None:
            _check("quality_logits", self.quality_logits, num_images, num_locations, 1)

    def joint_scores(self) -> Tensor:
        """(B, N, C) float32 scores in [0, 1]: the joint logit's sigmoid, times a quality if any.

        Source: arXiv 2006.04388 section 3.2; arXiv 2011.12885 equation 2.
        """
        scores = self.cls_logits.float().sigmoid()
        if self.quality_logits is not None:
            scores = scores * self.quality_logits.float().sigmoid()
        return scores


@dataclass(frozen=True)
class Assignment:
    """Which object each location answers for.

    Attributes:
        gt_index: (B, N) int64, row of `Targets.boxes`, -1 for background.
        weight: (B, N) float, 0 for locations that take no part in the classification loss.
        slots: (B, M) int64, distinct locations that include every positive; M is known to the
            host, so that box losses need no boolean indexing.
        slot_positive: (B, M) bool.
    """

    gt_index: Tensor
    weight: Tensor
    slots: Tensor
    slot_positive: Tensor

    def __post_init__(self):
        num_images, num_locations = self.gt_index.shape
        _check("weight", self.weight, num_images, num_locations)
        _check("slots", self.slots, num_images, None)
        _check("slot_positive", self.slot_positive, *self.slots.shape)


@dataclass(frozen=True)
class Detections(_OnDevice):
    """The boxes found in one image, best first.

    Attributes:
        boxes: (D, 4) xyxy, pixels of the original image.
        scores: (D,) joint classification-IoU scores in [0, 1].
        labels: (D,) int64 in [0, C).
        edge_std: (D, 4) standard deviation of each side's distribution, order ltrb, pixels of
            the original image.
        distributions: (D, 4, reg_max + 1) probabilities of each side's bins, or None.
        names: the C class names, where they are known.
        category_ids: the training data's own id of each class, where they are known.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    edge_std: Tensor
    distributions: Tensor | None = None
    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()

    def __post_init__(self):
        count = self.scores.shape[0]
        _check("boxes", self.boxes, count, 4)
        _check("scores", self.scores, count)
        _check("labels", self.labels, count)
        _check("edge_std", self.edge_std, count, 4)
        if self.distributions is not None:
            _check("distributions", self.distributions, count, 4, None)

    def __len__(self) -> int:
        return self.scores.shape[0]

    @property
    def class_names(self) -> list[str]:
        """The D names of the detections' classes."""
        return [self.names[label] for label in self.labels.tolist()]
