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
        pictures: (B, 3, H, W) uint8 RGB as decoded, zero-padded at the right and bottom.
        columns, column_weights: (B, 2, w) of the padded network input, see
            `gfl.data.linear_resize`; mirrored where the image is to be, weight 0 on the padding.
        rows, row_weights: (B, 2, h), likewise.
        input_sizes, targets, metas: of the `Batch`.
    """

    pictures: Tensor
    columns: Tensor
    column_weights: Tensor
    rows: Tensor
    row_weights: Tensor
    input_sizes: Tensor
    targets: Targets
    metas: tuple[ImageMeta, ...]

    def __post_init__(self):
        num_images = len(self.metas)
        check_shape("pictures", self.pictures, num_images, 3, None, None)
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
        images = linear_resize(
            here.pictures, here.columns, here.column_weights, here.rows, here.row_weights
        )
        return Batch(images, here.input_sizes, here.targets, self.metas)
