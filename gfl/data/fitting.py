"""Sizes that fit a data set: the side to resize pictures to, and the reach of distributions."""

import math

import numpy as np

from gfl.data.coverage import box_distances

# Of objects and of pictures, in choosing a side.
SHARE = 0.9
# Of the sides of each level's objects that a distribution must reach.
REACHED = 0.999
# The least side that is taken where pictures have as much: that of light detectors in public.
LEAST_SIDE = 320
# The largest that is taken, unless data.auto_largest says otherwise.
LARGEST_SIDE = 640
# What sides are multiples of, as padding is.
MULTIPLE = 32
# How far from an object's centre its locations lie, in strides: ATSS takes the 9 nearest ones.
OFF_CENTRE = 1.5
# Where reg_max is chosen from.
LEAST_REACH, LARGEST_REACH = 8, 32


def fitting_side(
    boxes: np.ndarray,
    index: np.ndarray,
    sizes: np.ndarray,
    stride: int,
    largest: int | None = None,
) -> tuple[int, str]:
    """The side that the long side of pictures is resized to, and why.

    So large that nine of ten objects are `stride` pixels wide and high, and 320 at least; no larger
    than what nine of ten pictures do not exceed, and than `largest`; a multiple of 32.

    Args:
        boxes: (m, 4) xyxy, pixels of their image.
        index: (m,) the image of each box.
        sizes: (n, 2) h, w of the images.
        stride: of the finest level, pixels.
        largest: bound; None is 640.
    """
    longs = sizes.max(1).astype(np.float64)
    shorter = (boxes[:, 2:] - boxes[:, :2]).min(1).astype(np.float64)
    wanted = stride * longs[index] / np.maximum(shorter, 1e-6)
    need = _up(_quantile(wanted, SHARE))
    pictures, bound = _up(_quantile(longs, SHARE)), largest or LARGEST_SIDE
    side = max(min(max(need, LEAST_SIDE), pictures, bound), 2 * MULTIPLE)
    cell = f"{stride} pixels (a cell of the finest level) wide and high"
    if need <= side:
        why = f"{SHARE:.0%} of the objects are {cell} from {need} on"
        if need < side == LEAST_SIDE:
            why += f"; {LEAST_SIDE} is the least"
        elif need < side:
            why += f"; {LEAST_SIDE} is the least, but pictures are no larger than {side}"
        return side, why
    limit = f"{(longs <= side).mean():.0%} of the pictures are no larger"
    if side == bound < pictures:
        limit = (
            "data.auto_largest is the bound (a larger one, or predicting with --tile, sees more)"
        )
    share = (wanted <= side).mean()
    return side, f"{share:.0%} of the objects are {cell}, {SHARE:.0%} would need {need}; {limit}"


def fitting_reg_max(
    boxes: np.ndarray,
    sizes: np.ndarray,
    train_size: tuple[int, int],
    strides: tuple[int, ...],
    anchor_scale: float,
    bin_width: float = 1.0,
    least: int = 0,
) -> tuple[int, str]:
    """The reg_max that reaches 99.9 % of the sides on each level, and why; from 8 to 32.

    Locations of an object lie around its centre: 1.5 strides are added to half of its sides.

    Args:
        boxes, sizes, train_size, strides, anchor_scale, bin_width: see
            `gfl.data.coverage.reg_max_coverage`.
        least: no smaller one is chosen, whatever fits.
    """
    level, distances = box_distances(boxes, sizes, train_size, strides, anchor_scale, bin_width)
    reach = distances + OFF_CENTRE / bin_width
    needs = {
        stride: _quantile(reach[level == number], REACHED)
        for number, stride in enumerate(strides)
        if (level == number).any()
    }
    stride, need = max(needs.items(), key=lambda pair: pair[1], default=(strides[0], 0.0))
    reg_max = max(min(max(math.ceil(need), LEAST_REACH), LARGEST_REACH), least)
    beyond = 100 * float((reach > reg_max).mean()) if reach.size else 0.0
    return reg_max, (
        f"{REACHED:.1%} of the sides need {math.ceil(need)} at stride {stride}, where they "
        f"are longest; {beyond:.3g} % of all lie beyond {reg_max}"
    )


def fitting_val_fraction(images: int) -> tuple[float, str]:
    """How much of the training images becomes val, and why: a tenth, of fewer than 200 a fifth."""
    fraction = 0.1 if images >= 200 else 0.2
    return fraction, f"there is no val, and {images} training images to divide"


def _quantile(values: np.ndarray, share: float) -> float:
    """The least of the values that this share of them does not exceed; 0 of nothing."""
    if not values.size:
        return 0.0
    return float(np.quantile(values, share, method="inverted_cdf"))


def _up(side: float) -> int:
    return MULTIPLE * math.ceil(side / MULTIPLE)
