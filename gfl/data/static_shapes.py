"""Few shapes of batches: for compilers, which make a program for each."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from gfl.data.batch import padded_size
from gfl.data.transforms import resized_size
from gfl.structures import Batch, Targets

Size = tuple[int, int]

# Numbers of objects are rounded up to one of 8, 32, 128, 512 and so on. Rows that are not present
# cost little: assigner and losses are some percent of a step.
FEWEST_OBJECTS = 8
OBJECTS_FACTOR = 4


def static_batch(batch: Batch, sizes: Sequence[Size]) -> Batch:
    """A batch in one of a few shapes; what it says is the same.

    Args:
        batch: on any device.
        sizes: (h, w) of the images, multiples of 32. A batch that none holds keeps its own.

    Returns:
        Images padded with 0 at the right and bottom to the smallest of `sizes` that holds them,
        objects and crowd regions padded with rows that are not present.
    """
    height, width = batch.images.shape[-2:]
    size = smallest_holding((height, width), sizes) or (height, width)
    images = batch.images
    if size != (height, width):
        images = F.pad(images, (0, size[1] - width, 0, size[0] - height))
    return replace(batch, images=images, targets=static_targets(batch.targets))


def static_targets(targets: Targets) -> Targets:
    """Targets whose G and I are each one of a few numbers."""
    objects = static_count(targets.present.shape[1])
    regions = static_count(targets.ignore_present.shape[1])
    return replace(
        targets,
        boxes=_with_rows(targets.boxes, objects),
        labels=_with_rows(targets.labels, objects),
        present=_with_rows(targets.present, objects),
        ignore_boxes=_with_rows(targets.ignore_boxes, regions),
        ignore_present=_with_rows(targets.ignore_present, regions),
    )


def static_count(count: int) -> int:
    """The smallest of 8, 32, 128, ... that is at least `count`."""
    padded = FEWEST_OBJECTS
    while padded < count:
        padded *= OBJECTS_FACTOR
    return padded


def _with_rows(values: Tensor, count: int) -> Tensor:
    """(B, G, ...) to (B, count, ...), with zeros behind."""
    return F.pad(values, (0, 0) * (values.dim() - 2) + (0, count - values.shape[1]))


def smallest_holding(size: Size, sizes: Sequence[Size]) -> Size | None:
    """Of `sizes` that hold `size` in both directions, the one of least area; None without any."""
    holding = [other for other in sizes if other[0] >= size[0] and other[1] >= size[1]]
    return min(holding, key=lambda other: other[0] * other[1], default=None)


def batch_bounds(
    sizes: np.ndarray, short: int, long: int, group_by_aspect: bool, images: int
) -> tuple[Size, ...]:
    """Sizes of the network's input that together hold every batch of a training.

    Args:
        sizes: (n, 2) h, w of the data set's images.
        short, long: largest bounds of the sides after resizing.
        group_by_aspect: whether wide and tall images are kept apart (`TrainSampler`). An epoch's
            last batches are mixed all the same.
        images: of one batch.

    Returns:
        Multiples of 32, without repetition: of wide images, of tall ones, of both together.
    """
    inputs = np.array([padded_size(resized_size(tuple(s), short, long)) for s in sizes.tolist()])
    is_tall = sizes[:, 0] > sizes[:, 1]
    groups = [inputs[~is_tall], inputs[is_tall]] if group_by_aspect or images == 1 else []
    if images > 1:
        groups.append(inputs)
    bounds = [tuple(group.max(0).tolist()) for group in groups if len(group)]
    return tuple(dict.fromkeys(bounds))
