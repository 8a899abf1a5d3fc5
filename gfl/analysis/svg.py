"""Small plots as inline SVG. Colours are classes of the page's style, light or dark."""

import math
from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 520, 360
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 14, 44
# Width of a dot.
DOT = 4.8


class Plot:
    """A plot with two linear axes.

    Args:
        x, y: (low, high) of each axis.
        x_label, y_label: with units.
        title: what it shows, for people who can not see it.
        x_ticks, y_ticks: values that are written; default, a few round ones.
    """

    def __init__(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        x_label: str,
        y_label: str,
        title: str,
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
    ):
        self._x, self._y, self._title = x, y, title
        self._parts = [
            f'<rect class="plot" x="{LEFT}" y="{TOP}" width="{WIDTH - LEFT - RIGHT}" '
            f'height="{HEIGHT - TOP - BOTTOM}"/>'
        ]
        for value in round_ticks(*x) if x_ticks is None else x_ticks:
            place = self.at(value, y[0])[0]
            self._parts += [
                f'<path class="grid" d="M{place:.1f} {TOP}V{HEIGHT - BOTTOM}"/>',
                _text(place, HEIGHT - BOTTOM + 16, f"{value:g}", "middle"),
            ]
        for value in round_ticks(*y) if y_ticks is None else y_ticks:
            place = self.at(x[0], value)[1]
            self._parts += [
                f'<path class="grid" d="M{LEFT} {place:.1f}H{WIDTH - RIGHT}"/>',
                _text(LEFT - 7, place + 4, f"{value:g}", "end"),
            ]
        middle = (TOP + HEIGHT - BOTTOM) / 2
        self._parts += [
            _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, x_label, "middle", "label"),
            f'<g transform="rotate(-90 13 {middle})">'
            + _text(13, middle, y_label, "middle", "label")
            + "</g>",
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point lies in the drawing; what is beyond an axis lies on its end."""
        across = (x - self._x[0]) / ((self._x[1] - self._x[0]) or 1)
        up = (y - self._y[0]) / ((self._y[1] - self._y[0]) or 1)
        across, up = min(max(across, 0.0), 1.0), min(max(up, 0.0), 1.0)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    def points(self, points: Iterable[Sequence[float]], name: str) -> None:
        """Dots of the style's class `name`."""
        places = (self.at(x, y) for x, y in points)
        # One path of many short strokes with round ends is far smaller than many circles.
        path = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in places)
        if path:
            self._parts.append(f'<path class="dots {name}" stroke-width="{DOT:g}" d="{path}"/>')

    def line(self, points: Iterable[Sequence[float]], name: str) -> None:
        """A line through points."""
        places = [self.at(x, y) for x, y in points]
        if places:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
            self._parts.append(f'<path class="line {name}" d="M{path}"/>')

    def diagonal(self) -> None:
        """Where x equals y."""
        low, high = max(self._x[0], self._y[0]), min(self._x[1], self._y[1])
        self.line([(low, low), (high, high)], "diagonal")

    def marker(self, x: float, y: float, name: str, note: str) -> None:
        """A dot that tells `note` when it is pointed at."""
        across, up = self.at(x, y)
        self._parts.append(
            f'<circle class="marker {name}" cx="{across:.1f}" cy="{up:.1f}" r="4">'
            f"<title>{escape(note)}</title></circle>"
        )

    def whisker(self, x: float, low: float, high: float, name: str) -> None:
        """An upright line from one y to another."""
        self.line([(x, low), (x, high)], f"whisker {name}")

    def svg(self) -> str:
        """The drawing."""
        return _drawing(WIDTH, HEIGHT, self._title, self._parts)


def bars(rows: Sequence[tuple[str, float, str]], title: str, name: str = "first") -> str:
    """Horizontal bars.

    Args:
        rows: label, value (negative ones have no bar) and what is written behind the bar.
        title: for people who can not see it.
        name: the style's class.
    """
    left, right, step = 112, 92, 28
    highest = max((value for _, value, _ in rows), default=0) or 1
    parts = []
    for number, (label, value, text) in enumerate(rows):
        y, length = number * step + 4, max(value, 0) / highest * (WIDTH - left - right)
        parts += [
            _text(left - 8, y + 15, label, "end", "label"),
            f'<rect class="bar {name}" x="{left}" y="{y}" width="{length:.1f}" height="20"/>',
            _text(left + length + 6, y + 15, text, "start"),
        ]
    return _drawing(WIDTH, len(rows) * step + 4, title, parts)


def shares(rows: Sequence[tuple[str, int]], title: str) -> str:
    """One bar divided by counts, each part of the style's class `part-0`, `part-1`, ..."""
    total = sum(count for _, count in rows) or 1
    parts, left = [], 0.0
    for number, (label, count) in enumerate(rows):
        width = count / total * (2 * WIDTH)
        note = f"{label}: {count} ({100 * count / total:.1f} %)"
        parts.append(
            f'<rect class="part-{number}" x="{left:.1f}" y="0" width="{width:.1f}" height="26">'
            f"<title>{escape(note)}</title></rect>"
        )
        left += width
    return _drawing(2 * WIDTH, 26, title, parts)


def round_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Up to `most` values between two ends: multiples of 1, 2 or 5 times a power of ten."""
    span = high - low
    if span <= 0:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / (most - 1)))
    step = next(f * power for f in (1, 2, 5, 10) if span / (f * power) <= most - 1 + 1e-9)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _text(x: float, y: float, text: str, anchor: str, name: str = "tick") -> str:
    return (
        f'<text class="{name}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    )


def _drawing(width: float, height: float, title: str, parts: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(title)}">'
        f"{''.join(parts)}</svg>"
    )
