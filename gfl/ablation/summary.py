"""What can be said of a few numbers: mean and spread over seeds, an interval of a ratio."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

UNRESOLVED = "not resolved"
RESAMPLES = 10_000
# Five ratios on one side of 1 are no rarer than 1 in 16, by chance.
FEWEST_PAIRS = 6


@dataclass(frozen=True)
class Spread:
    """A quantity over n seeds: mean, sample standard deviation (None for one), extremes."""

    mean: float
    sd: float | None
    low: float
    high: float
    n: int

    @property
    def range(self) -> float:
        """Highest less lowest."""
        return self.high - self.low


@dataclass(frozen=True)
class Difference:
    """Of two means; `spread` is the wider of the two ranges over seeds, None with one seed."""

    value: float
    spread: float | None
    verdict: str


@dataclass(frozen=True)
class Ratio:
    """A median of ratios with its 95 % interval, of so many pairs."""

    median: float
    low: float
    high: float
    pairs: int

    @property
    def verdict(self) -> str:
        """Whether the interval decides: "more", "less" or not resolved, as fewer than six pairs."""
        if self.pairs < FEWEST_PAIRS:
            return UNRESOLVED
        if self.low > 1:
            return "more"
        return "less" if self.high < 1 else UNRESOLVED


def spread(values: Sequence[float]) -> Spread | None:
    """Summary of a sample; None of an empty one."""
    if not len(values):
        return None
    array = np.asarray(values, dtype=float)
    sd = float(array.std(ddof=1)) if len(array) > 1 else None
    low, high = float(array.min()), float(array.max())
    # A sum of equal numbers, divided, can leave them by a rounding.
    mean = min(max(float(array.mean()), low), high)
    return Spread(mean, sd, low, high, len(array))


def difference(found: Spread | None, reference: Spread | None) -> Difference | None:
    """How far two means lie apart, and whether that is more than seeds do.

    Returns:
        "higher" or "lower" where both have two seeds or more and the difference exceeds the range
        (highest less lowest) of each, else "not resolved". None where one of them is missing.
    """
    if found is None or reference is None:
        return None
    delta = found.mean - reference.mean
    if min(found.n, reference.n) < 2:
        return Difference(delta, None, UNRESOLVED)
    widest = max(found.range, reference.range)
    verdict = "higher" if delta > 0 else "lower"
    return Difference(delta, widest, verdict if abs(delta) > widest else UNRESOLVED)


def ratio(times: Sequence[float], reference: Sequence[float], seed: int = 0) -> Ratio:
    """The median of paired ratios and its bootstrap interval.

    Args:
        times: (n,) seconds, one of each round.
        reference: (n,) seconds of the same rounds.
        seed: of the resampling; the same gives the same interval.

    Returns:
        The median of times / reference, and the 2.5 % and 97.5 % points of the medians of
        `RESAMPLES` samples of n pairs, drawn with replacement.

    Source: the percentile bootstrap, Efron and Tibshirani, 1993, chapter 13.
    """
    ratios = np.asarray(times, dtype=float) / np.asarray(reference, dtype=float)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(ratios), (RESAMPLES, len(ratios)))
    medians = np.median(ratios[drawn], axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return Ratio(float(np.median(ratios)), float(low), float(high), len(ratios))
