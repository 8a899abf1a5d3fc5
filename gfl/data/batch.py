"""Samples to a padded batch, and the batch to the network's input."""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from gfl.data.dataset import Sample
from gfl.data.linear_resize import taps
from gfl.data.native_batch import NativeBatch
from gfl.data.transforms import NativeSample
from gfl.structures import Batch, ImageMeta, Targets

# Sides of the network input are multiples of this, so that C5 divides them evenly.
PAD_MULTIPLE = 32


def padded_size(size: tuple[int, int]) -> tuple[int, int]:
    """Round (h, w) up to multiples of 32."""
    return tuple(-(-side // PAD_MULTIPLE) * PAD_MULTIPLE for side in size)


def collate(items: list[tuple[Sample, ImageMeta]]) -> Batch:
    """Pad samples, already in the frame of the network input, to one `Batch`.

    Images are zero-padded at the right and bottom to the largest padded size of the batch.
    """
    samples, metas = zip(*items, strict=True)
    sizes, targets = _targets(samples, metas)
    return Batch(_planes(samples, _largest(targets.valid_size.tolist())), sizes, targets, metas)


def collate_native(
    items: list[tuple[NativeSample, ImageMeta]], pictures: Tensor | None = None
) -> NativeBatch:
    """Pad samples whose boxes alone are in the frame of the network input.

    Args:
        items: samples and metas.
        pictures: memory from `room` in which their images lie already, one behind the other.
    """
    samples, metas = zip(*items, strict=True)
    sizes, targets = _targets(samples, metas)
    height, width = _largest(targets.valid_size.tolist())
    return NativeBatch(
        _end_to_end(samples) if pictures is None else pictures,
        tuple(sample.image.shape[:2] for sample in samples),
        *_taps(samples, metas, 1, width),
        *_taps(samples, metas, 0, height),
        sizes,
        targets,
        metas,
    )


def _largest(sizes: Iterable) -> tuple[int, int]:
    """(h, w) that all sizes fit into."""
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    return height, width


def _targets(samples: Sequence[Sample], metas: Sequence[ImageMeta]) -> tuple[Tensor, Targets]:
    """(B, 2) input sizes, and the objects."""
    boxes, present = _pad([sample.boxes for sample in samples], (4,), np.float32)
    labels, _ = _pad([sample.labels for sample in samples], (), np.int64)
    ignore_boxes, ignored = _pad([sample.ignore_boxes for sample in samples], (4,), np.float32)
    own_sizes = torch.tensor([padded_size(meta.input_size) for meta in metas])
    targets = Targets(boxes, labels, present, own_sizes, ignore_boxes, ignored)
    return torch.tensor([meta.input_size for meta in metas]), targets


def _planes(samples: Sequence[Sample], size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 of images that are at most `size` (h, w) large."""
    height, width = size
    images = room(len(samples), 3, height, width)
    wide = np.empty((height, width, 3), np.uint8)  # whole rows are split in half the time
    for planes, sample in zip(images.numpy(), samples, strict=True):
        image = _checked(sample)
        rows, columns = image.shape[:2]
        if columns < width:
            wide[:rows, :columns], wide[:rows, columns:] = image, 0
            image = wide[:rows]
        cv2.split(np.ascontiguousarray(image, np.uint8), list(planes[:, :rows]))
        planes[:, rows:] = 0
    return images


def _end_to_end(samples: Sequence[Sample]) -> Tensor:
    """(bytes,) uint8 of all images, one behind the other."""
    images = [_checked(sample).reshape(-1) for sample in samples]
    together = room(sum(len(image) for image in images))
    np.concatenate(images, out=together.numpy())
    return together


def _checked(sample: Sample) -> np.ndarray:
    image = np.asarray(sample.image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image {sample.image_id} is {image.shape}, expected (H, W, 3)")
    return image


def room(*shape: int) -> Tensor:
    """uint8 memory for a batch, its content not set.

    A loading process takes memory that the training process reads too, so that nothing is copied.
    """
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


def _taps(
    samples: Sequence[NativeSample], metas: Sequence[ImageMeta], side: int, length: int
) -> tuple[Tensor, Tensor]:
    """Where the rows (side 0) or columns (1) of each input come from, padded: (B, 2, length)."""
    pixels = np.zeros((len(samples), 2, length), np.int64)
    weights = np.zeros((len(samples), 2, length), np.int32)
    for number, (sample, meta) in enumerate(zip(samples, metas, strict=True)):
        new = meta.input_size[side]
        own = taps(sample.image.shape[side], new, side == 0)
        turned = slice(None, None, -1 if sample.flips[1 - side] else 1)
        pixels[number, :, :new], weights[number, :, :new] = (part[:, turned] for part in own)
    return torch.from_numpy(pixels), torch.from_numpy(weights)


def _pad(rows: list[np.ndarray], shape: tuple[int, ...], dtype: type) -> tuple[Tensor, Tensor]:
    """Stack lists of different length to (B, longest, *shape); (B, longest) bool says what is."""
    longest = max(len(row) for row in rows)
    padded = np.zeros((len(rows), longest, *shape), dtype)
    present = np.zeros((len(rows), longest), bool)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
        present[number, : len(row)] = True
    return torch.from_numpy(padded), torch.from_numpy(present)


class Normalize:
    """uint8 images to the network input: (x - mean) / std, and exactly 0 on the padding.

    Args:
        mean, std: of the channels in `color_order`, in 0..255.
        device: where batches are normalised.
        color_order: "rgb", or "bgr" for weights that want blue first (images stay RGB outside).

    Source: mmdet `DetDataPreprocessor` (normalises, then pads with 0).
    """

    def __init__(
        self,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
        device: torch.device | str = "cpu",
        color_order: str = "rgb",
    ):
        self.reverse = color_order == "bgr"
        self.mean = torch.tensor(mean, device=device).view(1, 3, 1, 1)
        self.std = torch.tensor(std, device=device).view(1, 3, 1, 1)

    def __call__(self, images: Tensor, input_sizes: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 RGB and (B, 2) sizes without padding to (B, 3, H, W) float32."""
        images = images.flip(1) if self.reverse else images
        height, width = images.shape[-2:]
        rows = torch.arange(height, device=images.device)[:, None]
        columns = torch.arange(width, device=images.device)[None, :]
        limits = input_sizes[:, :, None, None]
        inside = (rows < limits[:, 0]) & (columns < limits[:, 1])
        return torch.where(inside[:, None], (images - self.mean) / self.std, 0.0)
