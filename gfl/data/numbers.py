"""Numbers of hand-made files: also as text, also whole numbers with a decimal point."""

import math


def read_number(value: object) -> tuple[float | None, bool]:
    """A value as a float, and whether it was text; None for what is no number (true is none)."""
    if type(value) is float:  # nearly all of them
        return value, False
    is_text = isinstance(value, str)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None, False
    try:
        return float(value), is_text
    except (ValueError, OverflowError):
        return None, False


def read_whole(value: object) -> tuple[int | None, bool]:
    """A value as an int of 64 bits, and whether it was text; 7.0 and "7" are 7, 7.5 is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value if abs(value) < 2**63 else None), False
    number, is_text = read_number(value)
    if number is None or not math.isfinite(number) or number != int(number):
        return None, False
    return (int(number) if abs(number) < 2**53 else None), is_text
