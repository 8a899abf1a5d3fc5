"""The exceptions that end a command with one message, and words for messages."""

import difflib
from collections.abc import Iterable

# Items of a list that a message names.
SHOWN = 10


class UserError(ValueError):
    """A mistake in a config, a file or a command: what we got, what we expected, what to do.

    Only this class becomes exit status 2 with a plain message; anything else is a bug of ours
    and keeps its traceback.
    """


class TrainingFailed(RuntimeError):
    """Training can not go on (a loss that stays non-finite): one message, exit status 1."""


class ExportFailed(RuntimeError):
    """An exported network does not compute what the original does: one message, exit status 1."""


# How `TrainingStopped` goes on where a training is a command of its own.
RESUME_ADVICE = "The same command with --resume goes on"


class TrainingStopped(RuntimeError):
    """Training ended by a signal with everything saved: exit status 75, "start me again"."""


def printable(text: str) -> str:
    """Text of unknown origin for a terminal or a log: control characters and halves of characters
    escaped, lines kept."""
    return "".join(
        char
        if char.isprintable() or char == "\n"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )


def some(names: Iterable[object]) -> str:
    """A list for a message, cut where it is long: ['a', 'b', ... 78 more]."""
    names = list(names)
    more = f", ... {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"[{', '.join(map(repr, names[:SHOWN]))}{more}]"


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """End a sentence: "; did you mean 'x'?" for the closest choice, "." when nothing is close."""
    by_lower = {str(choice).lower(): str(choice) for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else "."


def choose(kind: str, name: str, table: dict):
    """Look `name` up in a table of parts; a miss names the choices.

    Raises:
        UserError: `name` is not in `table`.
    """
    if name not in table:
        raise UserError(
            f"unknown {kind} {name!r}{did_you_mean(name, table)} "
            f"Choices: {', '.join(sorted(table))}."
        )
    return table[name]
