"""Repeat-factor sampling: images of rare classes come several times an epoch."""

import math

import numpy as np


def repeat_factors(
    labels: np.ndarray, image_index: np.ndarray, num_images: int, threshold: float
) -> np.ndarray:
    """How often each image comes in an epoch, on average; 1 or more.

    A class c in a share f_c of the images has the factor max(1, sqrt(threshold / f_c)), an image
    the largest of its classes'.

    Args:
        labels, image_index: (m,) class and image of each object.
        num_images: with those that have no object.
        threshold: share of the images under which a class is rare.

    Returns:
        (num_images,) float64.

    Source: arXiv 1908.03195 (LVIS) appendix B.
    """
    pairs = np.unique(np.stack((labels, image_index)), axis=1)  # each class once an image
    factors = np.ones(num_images)
    classes, counts = np.unique(pairs[0], return_counts=True)
    factor_of = np.maximum(1.0, np.sqrt(threshold * num_images / counts))
    np.maximum.at(factors, pairs[1], factor_of[np.searchsorted(classes, pairs[0])])
    return factors


def epoch_length(factors: np.ndarray) -> int:
    """Images of an epoch, the same in each."""
    parts, whole = np.modf(factors)
    return int(whole.sum()) + _times_drawn(parts)


def _times_drawn(parts: np.ndarray) -> int:
    """The sum of the fractions as a whole number; exact, so that their order does not matter."""
    return round(math.fsum(parts))


def epoch_counts(factors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(n,) how often each image comes in one epoch, `epoch_length` in total.

    An image of factor 2.3 comes twice or three times; which, is drawn by one random offset on the
    fractions laid end to end in random order, so that the total does not vary.
    """
    parts, whole = np.modf(factors)
    order = rng.permutation(len(factors))
    ends = np.cumsum(parts[order])
    total = _times_drawn(parts)
    if ends[-1] > 0:
        ends *= total / ends[-1]
    marks = np.floor(ends + rng.random())
    marks[-1] = total  # exactly, whatever the rounding
    counts = whole.astype(np.int64)
    counts[order] += np.diff(marks, prepend=0).astype(np.int64)
    return counts
