"""Do the intervals of the distributions hold what they promise? Coverage, temperature, words."""

from dataclasses import asdict, dataclass

import numpy as np
import torch

from gfl.intervals import central_level

# Probabilities of the central intervals that are looked at.
LEVELS = (0.5, 0.8, 0.9, 0.95)
# "Calibrated" is said where each coverage is shown to be within so much of its probability ...
TOLERANCE = 0.05
# ... by at least so many sides and images; with fewer, nothing is said.
MIN_SIDES, MIN_IMAGES = 200, 10
# Standard errors to both sides of a 95 % confidence interval.
CONFIDENCE = 1.96
# Tried temperatures: 5 % apart, 1 among them.
TEMPERATURES = np.exp(np.log(10) * np.linspace(-1, 1, 97))


@dataclass(frozen=True)
class Sides:
    """Sides of correctly found objects that have a distribution and were not clipped.

    Attributes:
        probabilities, positions: (n, bins), as in `Detections`.
        truth: (n,) place of the true side, pixels of the original image.
        images: (n,) number of the image; sides of one image are not independent.
    """

    probabilities: np.ndarray
    positions: np.ndarray
    truth: np.ndarray
    images: np.ndarray

    def __len__(self) -> int:
        return len(self.truth)

    def levels(self, temperature: float = 1.0) -> np.ndarray:
        """(n,) probability of the smallest central interval that reaches the true side.

        With a temperature T each distribution is stretched by T about its expectation. That
        leaves the expectation, and so the box, where it is; dividing the logits by T would not.
        """
        middle = (self.probabilities * self.positions).sum(1)
        place = middle + (self.truth - middle) / temperature
        tensors = (self.probabilities, self.positions, place)
        return central_level(*map(torch.as_tensor, tensors)).numpy()


@dataclass(frozen=True)
class Coverage:
    """How many true sides lie in the central intervals of one probability.

    Attributes:
        level: the probability.
        share: of the sides whose interval holds the true side.
        margin: half of the share's 95 % confidence interval, images taken as the independent units.
    """

    level: float
    share: float
    margin: float


def coverage(levels: np.ndarray, images: np.ndarray, probability: float) -> Coverage:
    """The coverage of the central intervals of a probability.

    Args:
        levels: (n,) of `Sides.levels`, n at least 1.
        images: (n,) number of each side's image.
        probability: of the intervals.
    """
    covered = levels <= probability
    share = covered.mean()
    # The variance of a share whose observations come in clusters (ratio estimator), and at least
    # that of independent sides at the nominal share, which a share of 0 or 1 would hide.
    _, cluster = np.unique(images, return_inverse=True)
    surplus = np.bincount(cluster, covered - share)
    count = len(surplus)
    clustered = np.square(surplus).sum() / len(levels) ** 2 * count / max(count - 1, 1)
    independent = probability * (1 - probability) / len(levels)
    if 0 < share < 1:
        # Near 0 and 1 a share that is off has a small variance of its own: at least the nominal
        # share's, as many times that of independent sides as was found.
        clustered *= max(probability * (1 - probability) / (share * (1 - share)), 1)
    margin = max(
        student_quantile(count - 1) * np.sqrt(clustered), CONFIDENCE * np.sqrt(independent)
    )
    return Coverage(probability, float(share), float(margin))


def student_quantile(freedom: int) -> float:
    """Standard errors to both sides of a 95 % interval whose error was estimated from a few units.

    Args:
        freedom: degrees of freedom, the units less one; below 1 counts as 1.

    Returns:
        The 97.5 % point of Student's distribution, within 1 % from 3 degrees of freedom on and too
        small for fewer.

    Source: Abramowitz and Stegun, 1964, equation 26.7.5.
    """
    z, n = CONFIDENCE, max(freedom, 1)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / n + second / n**2 + third / n**3


def fit_temperature(sides: Sides) -> float:
    """The temperature whose coverage is nearest to the probabilities of `LEVELS`.

    Args:
        sides: at least one.

    Returns:
        The one of `TEMPERATURES` with the smallest mean squared gap; of several, the nearest to 1.
    """
    gaps = []
    for temperature in TEMPERATURES:
        levels = sides.levels(temperature)
        gaps.append(np.mean([((levels <= p).mean() - p) ** 2 for p in LEVELS]))
    gaps = np.array(gaps)
    best = np.flatnonzero(gaps <= gaps.min() + 1e-12)
    return float(TEMPERATURES[best[np.abs(np.log(TEMPERATURES[best])).argmin()]])


def cross_fitted_levels(sides: Sides) -> np.ndarray | None:
    """Levels of all sides, each with the temperature fitted on the other half of the images.

    Returns:
        (n,) in the order of `sides`; None with fewer than two images.
    """
    numbers = np.unique(sides.images)
    if len(numbers) < 2:
        return None
    levels = np.empty(len(sides))
    for half in (0, 1):
        mine = np.isin(sides.images, numbers[half::2])
        other = fit_temperature(_part(sides, ~mine))
        levels[mine] = _part(sides, mine).levels(other)
    return levels


def judge(coverages: list[Coverage], num_sides: int, num_images: int) -> tuple[str, str]:
    """What may be said of measured coverages: a key and a sentence.

    A level is good if its whole confidence interval lies within `TOLERANCE` of the probability,
    bad if all of it lies outside, and open otherwise.

    Returns:
        "calibrated" (all good), "too_narrow", "too_wide" or "uneven" (some bad), "open", or
        "too_few"; and the sentence with the numbers.
    """
    points = f"{100 * TOLERANCE:g} points"
    if num_sides < MIN_SIDES or num_images < MIN_IMAGES:
        return "too_few", (
            f"Too few to say: {num_sides} sides in {num_images} images, at least {MIN_SIDES} sides "
            f"in {MIN_IMAGES} images are needed."
        )
    gaps = [one.share - one.level for one in coverages]
    pairs = list(zip(gaps, (one.margin for one in coverages), strict=True))
    bad = [gap for gap, margin in pairs if abs(gap) - margin > TOLERANCE]
    numbers = ", ".join(f"{100 * one.share:.0f}" for one in coverages)
    nominal = ", ".join(f"{100 * one.level:g}" for one in coverages)
    found = (
        f"the central {nominal} % intervals hold {numbers} % of {num_sides} true sides "
        f"in {num_images} images"
    )
    if not bad:
        if all(abs(gap) + margin <= TOLERANCE for gap, margin in pairs):
            return "calibrated", f"Calibrated within {points} on this split: {found}."
        return "open", (
            f"Neither shown to be calibrated within {points} nor shown not to be: {found}; the "
            "confidence intervals are too wide or reach across the tolerance."
        )
    if all(gap < 0 for gap in bad):
        return (
            "too_narrow",
            f"Not calibrated, the intervals are too narrow (overconfident): {found}.",
        )
    if all(gap > 0 for gap in bad):
        return "too_wide", f"Not calibrated, the intervals are too wide (underconfident): {found}."
    return "uneven", f"Not calibrated, some intervals are too wide, some too narrow: {found}."


def summarise(levels: np.ndarray, images: np.ndarray) -> dict:
    """Coverage at `LEVELS`, the verdict and its sentence, as plain values."""
    measured = [coverage(levels, images, level) for level in LEVELS] if len(levels) else []
    verdict, text = judge(measured, len(levels), len(np.unique(images)))
    return {"levels": [asdict(one) for one in measured], "verdict": verdict, "text": text}


def curve(levels: np.ndarray) -> list[tuple[float, float]]:
    """(probability, share of the sides covered) from 0 to 1, for a plot."""
    ordered = np.sort(levels)
    grid = np.linspace(0, 1, 41)
    shares = np.searchsorted(ordered, grid, side="right") / max(len(ordered), 1)
    return [(float(x), float(y)) for x, y in zip(grid, shares, strict=True)]


def _part(sides: Sides, rows: np.ndarray) -> Sides:
    fields = (sides.probabilities, sides.positions, sides.truth, sides.images)
    return Sides(*(values[rows] for values in fields))
