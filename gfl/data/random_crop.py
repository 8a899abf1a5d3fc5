"""A random crop that keeps all boxes whole."""

import numpy as np

from gfl.data.dataset import Sample

# Smallest side of a crop, as a share of the picture's, as in SSD.
MIN_CROP = 0.3


def random_crop(sample: Sample, rng: np.random.Generator) -> Sample:
    """A random part of a picture in which every object and crowd region lies wholly.

    Pictures full of objects hardly change: no part could be left out.

    `albumentations.BBoxSafeRandomCrop` rounds the far sides down, into a box, leaves pictures
    without objects as they are, and bounds no side from below; hence our own.
    """
    height, width = sample.image.shape[:2]
    both = np.concatenate((sample.boxes, sample.ignore_boxes))
    left, right = _interval(both[:, 0], both[:, 2], width, rng)
    top, bottom = _interval(both[:, 1], both[:, 3], height, rng)
    offset = np.array([left, top] * 2, np.float32)
    return Sample(
        sample.image[top:bottom, left:right],
        sample.boxes - offset,
        sample.labels,
        sample.ignore_boxes - offset,
        sample.image_id,
    )


def _interval(
    starts: np.ndarray, ends: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Whole pixels [first, last) of a side that hold all [start, end] and MIN_CROP of the side."""
    shortest = max(int(np.ceil(MIN_CROP * side)), 1)
    first = min(int(starts.min(initial=side)), side - shortest)
    first = int(rng.integers(max(first, 0) + 1))
    last = max(int(np.ceil(ends.max(initial=0))), first + shortest)
    return first, int(rng.integers(last, side + 1)) if last < side else side
