"""Sharp, flat and two-peaked: the shape of a side's distribution, by rules.

All rules count in bins, so that they mean the same on every level. In this order:

    two-peaked  a valley between two bins that are each at least twice as probable as it, with 15 %
                of the probability or more on both sides of it (its own halved)
    sharp       standard deviation up to 0.6 bins: hardly more than the 0.5 that a perfectly sure
                side half-way between two bins has
    flat        standard deviation of 1.5 bins or more
    ordinary    everything else
"""

import numpy as np

SHAPES = ("sharp", "ordinary", "flat", "two-peaked")
SHARP, FLAT = 0.6, 1.5
# A valley's share of the lower peak, and the probability on the lighter side of it.
VALLEY, MASS = 0.5, 0.15


def std_in_bins(probabilities: np.ndarray) -> np.ndarray:
    """Standard deviation of (n, bins) distributions, in bins: (n,)."""
    bins = np.arange(probabilities.shape[1])
    mean = probabilities @ bins
    return np.sqrt((probabilities * np.square(bins - mean[:, None])).sum(1))


def is_two_peaked(probabilities: np.ndarray) -> np.ndarray:
    """(n,) whether each of (n, bins) distributions has two peaks or more."""
    count, bins = probabilities.shape
    if bins < 3:
        return np.zeros(count, bool)
    valley = probabilities[:, 1:-1]
    before = np.maximum.accumulate(probabilities, 1)[:, :-2]
    behind = np.maximum.accumulate(probabilities[:, ::-1], 1)[:, ::-1][:, 2:]
    left = probabilities.cumsum(1)[:, 1:-1] - valley / 2
    right = probabilities.sum(1, keepdims=True) - left
    deep = valley <= VALLEY * np.minimum(before, behind)
    return (deep & (np.minimum(left, right) >= MASS)).any(1)


def shapes(probabilities: np.ndarray) -> np.ndarray:
    """The row of `SHAPES` of each of (n, bins) distributions: (n,) int."""
    std = std_in_bins(probabilities)
    kind = np.full(len(std), SHAPES.index("ordinary"))
    kind[std >= FLAT] = SHAPES.index("flat")
    kind[std <= SHARP] = SHAPES.index("sharp")
    kind[is_two_peaked(probabilities)] = SHAPES.index("two-peaked")
    return kind
