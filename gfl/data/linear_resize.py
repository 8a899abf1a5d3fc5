"""Linear resizing of uint8 pictures in integers, on any device, as OpenCV does it on the CPU."""

import functools

import numpy as np
from torch import Tensor

# Weights are whole 2048ths; between the two passes four of their eleven bits are dropped.
ONE = 2048


@functools.lru_cache(maxsize=512)
def taps(old: int, new: int, of_rows: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the pixels of one side come from: (2, new) int64 pixels, (2, new) int32 weights.

    Args:
        old, new: lengths of the side, pixels.
        of_rows: OpenCV takes a pixel of the border once if it is a column, and twice if a row,
            which rounds otherwise.

    Source: OpenCV `modules/imgproc/src/resize.cpp`, INTER_LINEAR of 8 bits; no code.
    """
    centres = ((np.arange(new) + 0.5) * (1 / (new / old)) - 0.5).astype(np.float32)
    first = np.floor(centres)
    share = centres - first
    if not of_rows:
        share[(first < 0) | (first >= old - 1)] = 0
    first = first.astype(np.int64)
    pixels = np.stack((first, first + 1)).clip(0, old - 1)
    weights = np.rint(np.stack((1 - share, share)) * np.float32(ONE)).astype(np.int32)
    return pixels, weights


def linear_resize(
    pictures: Tensor, columns: Tensor, column_weights: Tensor, rows: Tensor, row_weights: Tensor
) -> Tensor:
    """Resize every picture of a batch by `taps` of its own; nothing waits for the device.

    Args:
        pictures: (B, 3, H, W) uint8.
        columns, column_weights: (B, 2, w) int64 and int32; weights of 0 give 0.
        rows, row_weights: (B, 2, h), likewise.

    Returns:
        (B, 3, h, w) uint8, equal to `cv2.resize` with INTER_LINEAR in every bit.
    """
    num_images, channels, old_height, _ = pictures.shape
    height, width = rows.shape[-1], columns.shape[-1]

    def column(side: int) -> Tensor:
        index = columns[:, side, None, None].expand(num_images, channels, old_height, width)
        return pictures.gather(3, index) * column_weights[:, side, None, None]

    blended = (column(0).add_(column(1)) >> 4).short()  # at most 255 * 2048 / 16

    def row(side: int) -> Tensor:
        index = rows[:, side, None, :, None].expand(num_images, channels, height, width)
        return (blended.gather(2, index) * row_weights[:, side, None, :, None]) >> 16

    return ((row(0).add_(row(1)).add_(2)) >> 2).byte()
