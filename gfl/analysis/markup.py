"""Pieces of the report's HTML. Text of users is escaped here, and nowhere else needs to be."""

from collections.abc import Iterable, Sequence
from html import escape


def number(value: float | int | None, digits: int = 2) -> str:
    """A number as text; "n/a" for None."""
    if value is None:
        return "n/a"
    return f"{value:d}" if isinstance(value, int) else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "n/a" if value is None else f"{100 * value:.1f} %"


def paragraph(text: str, name: str = "") -> str:
    """A paragraph of plain text."""
    kind = f' class="{name}"' if name else ""
    return f"<p{kind}>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], muted: int | None = None) -> str:
    """A table; all columns but the first and `muted`, which is small text, are numbers."""
    lines = ["<tr>" + "".join(f"<th>{escape(name)}</th>" for name in head) + "</tr>"]
    for row in rows:
        cells = []
        for place, text in enumerate(row):
            kind = "" if place == 0 else ' class="number"'
            if place == muted:
                kind = ' class="muted"'
            cells.append(f"<td{kind}>{escape(text)}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def meanings(rows: Iterable[tuple[str, str, str]]) -> str:
    """A table of numbers, each with a sentence that says what it is."""
    return table(("", "", "what it is"), rows, muted=2)


def figure(drawing: str, caption: str) -> str:
    """A plot with its caption."""
    return f"<figure>{drawing}<figcaption>{escape(caption)}</figcaption></figure>"


def two(*parts: str) -> str:
    """Parts beside each other where there is room."""
    return f'<div class="two">{"".join(f"<div>{part}</div>" for part in parts)}</div>'


def keys(colours: Iterable[tuple[str, str]]) -> str:
    """A legend: a colour of the style and what has it."""
    spans = "".join(
        f'<span><i class="key" style="background: var(--{colour})"></i>{escape(text)}</span>'
        for colour, text in colours
    )
    return f'<p class="keys muted">{spans}</p>'


def folded(title: str, content: str) -> str:
    """Content that is opened by a click."""
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def section(title: str, *parts: str) -> str:
    """A card of the page."""
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def tiles(parts: Iterable[str]) -> str:
    """Pictures in a grid."""
    return f'<div class="tiles">{"".join(parts)}</div>'


def heading(text: str) -> str:
    """A smaller heading within a card."""
    return f"<h3>{escape(text)}</h3>"
