"""The learning-rate range test: how the loss answers to a rate that rises step by step.

Source: Smith, Cyclical Learning Rates for Training Neural Networks (arXiv 1506.01186), section 3.3;
the exponential rise, the smoothing and the end at a multiple of the least loss are those of later
public practice (fastai's finder).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gfl.errors import UserError

# Weight of the past in the smoothed loss.
SMOOTHING = 0.9
# The test ends when the smoothed loss is that many times its least.
GROWTH = 4.0


@dataclass(frozen=True)
class RateRange:
    """What a range test has seen.

    Attributes:
        rates: of each step taken.
        losses: before the step of that rate; the last may be not finite.
        smoothed: exponential average of the losses without the pull of its start.
        ending: why the test stopped before its last rate, None where it did not.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    ending: str | None

    @property
    def least(self) -> int:
        """Number of the step with the least smoothed loss."""
        return int(np.nanargmin(self.smoothed))

    @property
    def steepest(self) -> int | None:
        """Number of the step where the smoothed loss falls fastest, up to `least`; None if nowhere.

        Slopes are per factor of the rate, over a tenth of the steps.
        """
        half = max(len(self.rates) // 20, 1)
        centres = range(half, self.least - half + 1)
        slopes = {i: self.smoothed[i + half] - self.smoothed[i - half] for i in centres}
        best = min(slopes, key=slopes.__getitem__, default=None)
        return best if best is not None and slopes[best] < 0 else None

    @property
    def suggestion(self) -> tuple[float, float] | None:
        """Lower and upper rate to try: of the steepest fall, and a tenth of the least loss's.

        None where the loss did not fall.
        """
        if self.steepest is None:
            return None
        pair = self.rates[self.steepest], self.rates[self.least] / 10
        return min(pair), max(pair)


def range_test(
    step: Callable[[float], float], lowest: float, highest: float, steps: int
) -> RateRange:
    """Take steps at rates that rise from `lowest` to `highest` by one factor, until one diverges.

    Args:
        step: takes one optimiser step at a rate and gives the loss before it.
        lowest, highest: of the rates.
        steps: at most.

    Raises:
        UserError: the first loss is not finite.
    """
    rates, losses, smoothed = [], [], []
    average, ending = 0.0, None
    for number in range(steps):
        rate = lowest * (highest / lowest) ** (number / (steps - 1))
        loss = step(rate)
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        rates.append(rate)
        losses.append(loss)
        smoothed.append(average / (1 - SMOOTHING ** (number + 1)))
        if not math.isfinite(loss):
            if not number:
                raise UserError(
                    f"the loss is {loss} before any step, so no rate would help: try "
                    "train.precision=fp32, and look at the data (gfl check-data)."
                )
            ending = "the loss is not finite"
            break
        if smoothed[-1] > GROWTH * min(smoothed):
            ending = f"the smoothed loss is {GROWTH:g} times its least"
            break
    return RateRange(tuple(rates), tuple(losses), tuple(smoothed), ending)
