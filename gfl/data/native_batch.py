"""A batch whose pictures are still as large as in their files: the device resizes them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from gfl.data.linear_resize import linear_resize
from gfl.structures import Batch, ImageMeta, Targets
from gfl.tensors import OnDevice, check_shape


@dataclass(frozen=True)
class NativeBatch(OnDevice):
    """What a loader gives with `data.resize_on_device`; `to(device)` makes a `Batch` of it.

    It has no `images`, so that whoever forgets `to` gets an error and not pictures of another size.

    Attributes:
        pictures: uint8 RGB as decoded, rows of pixels, one picture behind the other.
        sizes: h, w of each picture.
        columns, column_weights: (B, 2, w) of the padded network input, see
            `gfl.data.linear_resize`; mirrored where the image is to be, weight 0 on the padding.
        rows, row_weights: (B, 2, h), likewise.
        input_sizes, targets, metas: of the `Batch`.
    """

    pictures: Tensor
    sizes: tuple[tuple[int, int], ...]
    columns: Tensor
    column_weights: Tensor
    rows: Tensor
    row_weights: Tensor
    input_sizes: Tensor
    targets: Targets
    metas: tuple[ImageMeta, ...]

    def __post_init__(self):
        num_images = len(self.metas)
        check_shape("pictures", self.pictures, sum(self._lengths()))
        check_shape("columns", self.columns, num_images, 2, None)
        check_shape("column_weights", self.column_weights, *self.columns.shape)
        check_shape("rows", self.rows, num_images, 2, None)
        check_shape("row_weights", self.row_weights, *self.rows.shape)

    @property
    def padded_size(self) -> tuple[int, int]:
        """(h, w) of the `Batch` that comes of it."""
        return self.rows.shape[-1], self.columns.shape[-1]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Move it and resize it there."""
        here = self._map(lambda value: value.to(device, non_blocking=non_blocking))
        tables = zip(here.columns, here.column_weights, here.rows, here.row_weights, strict=True)
        parts = here.pictures.split(self._lengths())
        # One after the other: between its two passes a picture takes several times its memory.
        images = [
            linear_resize(part.view(height, width, 3).permute(2, 0, 1), *own)
            for part, (height, width), own in zip(parts, self.sizes, tables, strict=True)
        ]
        return Batch(torch.stack(images), here.input_sizes, here.targets, self.metas)

    def _lengths(self) -> list[int]:
        """Bytes of each picture."""
        return [3 * height * width for height, width in self.sizes]
