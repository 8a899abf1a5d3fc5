"""Intervals of a side's distribution: what the bins say between and beyond their own places.

A bin stands for the stretch from half a bin before it to half a bin behind it, over which its
probability is spread evenly. The cumulative distribution is then piecewise linear, with the bins'
expectation, and its inverse is defined for every probability.
"""

import torch
from torch import Tensor


def central_interval(probabilities: Tensor, positions: Tensor, p: float) -> Tensor:
    """The interval that leaves (1 - p) / 2 of the probability on each of its two sides.

    Args:
        probabilities: (..., bins), each row sums to 1.
        positions: (..., bins) evenly spaced places of the bins, rising or falling.
        p: probability of the interval, in (0, 1).

    Returns:
        (..., 2) lower and upper end, in the unit of `positions`.
    """
    ends = [_quantile(probabilities, positions, level) for level in ((1 - p) / 2, (1 + p) / 2)]
    return torch.stack(ends, -1).sort(-1).values.to(positions.dtype)


def central_level(probabilities: Tensor, positions: Tensor, places: Tensor) -> Tensor:
    """The probability of the smallest central interval that reaches a place.

    Args:
        probabilities, positions: (..., bins), as in `central_interval`.
        places: (...) in the unit of `positions`.

    Returns:
        (...) in [0, 1], float64; 0 at the median, 1 outside of all bins.
    """
    step = (positions[..., 1] - positions[..., 0]).double()
    # In bins, counted from the outer end of the first one.
    along = (places.double() - positions[..., 0].double()) / step + 0.5
    number = along.floor().clamp(0, probabilities.shape[-1] - 1).long()[..., None]
    before, inside = _cumulated(probabilities)
    part = (along[..., None] - number).clamp(0, 1)
    below = (before.gather(-1, number) + inside.gather(-1, number) * part).squeeze(-1)
    return (2 * below - 1).abs()


def _quantile(probabilities: Tensor, positions: Tensor, level: float) -> Tensor:
    """Where the distribution along its bins reaches a level in (0, 1)."""
    before, inside = _cumulated(probabilities)
    number = ((before + inside) < level).sum(-1, keepdim=True).clamp(max=inside.shape[-1] - 1)
    part = (level - before.gather(-1, number)) / inside.gather(-1, number).clamp(min=1e-12)
    along = (number + part.clamp(0, 1) - 0.5).squeeze(-1)
    first, step = positions[..., 0].double(), (positions[..., 1] - positions[..., 0]).double()
    return first + along * step


def _cumulated(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """What lies before each bin, and what is in it; the whole is exactly one."""
    inside = probabilities.double()
    inside = inside / inside.sum(-1, keepdim=True)
    return inside.cumsum(-1) - inside, inside
