"""What a measurement says, and in which words it is printed."""

from dataclasses import asdict, dataclass

import numpy as np

NOT_MEASURED = "not measured here"


@dataclass(frozen=True)
class Spread:
    """Repeats of one measurement: median, 10th and 90th percentile, how many."""

    median: float
    low: float
    high: float
    repeats: int

    @staticmethod
    def of(values) -> "Spread":
        """Of a list of numbers; percentiles are interpolated between neighbours."""
        low, median, high = np.percentile(np.asarray(values, float), [10, 50, 90])
        return Spread(float(median), float(low), float(high), len(values))

    def times(self, factor: float) -> "Spread":
        """In another unit; `factor` is positive."""
        return Spread(self.median * factor, self.low * factor, self.high * factor, self.repeats)

    def per(self, count: float) -> "Spread":
        """Seconds to a rate, `count` things in each; the slowest repeat gives the lowest rate."""
        return Spread(count / self.median, count / self.high, count / self.low, self.repeats)


@dataclass(frozen=True)
class Record:
    """One row of the table.

    Attributes:
        figure: name of the figure that it belongs to.
        name: what was measured.
        unit: of `median`, `low`, `high` and `limit`.
        median, low, high: over the repeats, with the 10th and 90th percentile; None where it can
            not be measured on this machine.
        limit: what it is compared with, median; None where it stands alone.
        limit_name: what the limit is.
        ratio: `median` / `limit`.
        repeats: how many.
        goal: the ratio (or `median`, where there is no limit) that is wanted, or None.
        at_most: whether the goal is an upper bound; else it is a lower one.
        note: what else one has to know.
    """

    figure: str
    name: str
    unit: str
    median: float | None
    low: float | None
    high: float | None
    limit: float | None
    limit_name: str
    ratio: float | None
    repeats: int
    goal: float | None = None
    at_most: bool = True
    note: str = ""

    @property
    def verdict(self) -> str:
        """Whether the goal is reached, in words; empty where there is none."""
        if self.median is None:
            return NOT_MEASURED
        if self.goal is None:
            return ""
        value = self.median if self.ratio is None else self.ratio
        if value > self.goal and self.at_most:
            return "above the goal"
        if value < self.goal and not self.at_most:
            return "below the goal"
        return "goal reached"

    def to_dict(self) -> dict:
        """Plain values, the verdict among them."""
        return {**asdict(self), "verdict": self.verdict}


def record(
    figure: str,
    name: str,
    unit: str,
    spread: Spread,
    limit: Spread | float | None = None,
    limit_name: str = "",
    goal: float | None = None,
    at_most: bool = True,
    note: str = "",
) -> Record:
    """A row of a spread, beside a limit in the same unit."""
    limit = limit.median if isinstance(limit, Spread) else limit
    ratio = None if limit is None else spread.median / limit
    numbers = (spread.median, spread.low, spread.high)
    return Record(
        figure, name, unit, *numbers, limit, limit_name, ratio, spread.repeats, goal, at_most, note
    )


def not_measured(figure: str, name: str, why: str) -> Record:
    """A row of something that this machine has no means to measure."""
    return Record(figure, name, "", None, None, None, None, "", None, 0, note=why)
