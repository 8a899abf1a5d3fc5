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
    picture: Tensor, columns: Tensor, column_weights: Tensor, rows: Tensor, row_weights: Tensor
) -> Tensor:
    """Resize a picture by its `taps`; nothing waits for the device.

    Args:
        picture: (3, H, W) uint8.
        columns, column_weights: (2, w) int64 and int32; weights of 0 give 0.
        rows, row_weights: (2, h), likewise.

    Returns:
        (3, h, w) uint8, equal to `cv2.resize` with INTER_LINEAR in every bit.
    """
    left, right = (picture[:, :, of] * by for of, by in zip(columns, column_weights, strict=True))
    blended = (left.add_(right) >> 4).short()  # at most 255 * 2048 / 16
    upper, lower = (
        blended[:, of] * by[:, None] >> 16 for of, by in zip(rows, row_weights, strict=True)
    )
    return (upper.add_(lower).add_(2) >> 2).byte()
