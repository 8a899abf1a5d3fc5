"""How far a long task is: a bar on a terminal, now and then a plain line in a file."""

import contextlib
import sys
import time

from tqdm import tqdm

# Between two plain lines; a task that is done sooner says nothing.
SECONDS = 30.0


def tell(message: str) -> None:
    """One message on stderr, above a bar. Where that is a full disk, or a pipe whose reader has
    ended, nobody is told, and the work goes on."""
    with contextlib.suppress(OSError):
        tqdm.write(message, file=sys.stderr)


class Progress:
    """Counts what is done, on stderr.

    Where stderr is no terminal (a file, a pipe, a scheduler's log) no bar is redrawn with carriage
    returns: a line is written every `SECONDS` at most.

    Args:
        total: of the task, None where nobody knows.
        unit: what is counted, singular.
        done: what was done before, such as the steps of a training that is resumed.
        title: said before the numbers.
    """

    def __init__(self, total: int | None, unit: str, done: int = 0, title: str = ""):
        self.total, self.unit, self.done, self.title = total, unit, done, title
        self._first, self._started = done, time.monotonic()
        self._said = self._started
        self._bar: tqdm | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                initial=done,
                total=total,
                unit=unit,
                desc=title or None,
                dynamic_ncols=True,
                mininterval=0.2,
                file=sys.stderr,
            )

    def advance(self, count: int = 1, title: str | None = None, note: str | None = None) -> None:
        """Some more is done.

        Args:
            count: how many.
            title: from now on, another one.
            note: said behind the numbers.
        """
        self.done += count
        self.title = self.title if title is None else title
        if self._bar is not None:
            self._bar.set_description_str(self.title, refresh=False)
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
        elif time.monotonic() - self._said >= SECONDS:
            self._said = time.monotonic()
            tell(self._line(note))

    def close(self) -> None:
        """The end, also of a task that was broken off."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _line(self, note: str | None) -> str:
        """Such as "epoch 2/12: step 40 of 600, 1.5 a second, 0:06:13 left, loss 1.2"."""
        rate = (self.done - self._first) / max(self._said - self._started, 1e-9)
        parts = [f"{self.unit} {self.done}" + (f" of {self.total}" if self.total else "")]
        parts.append(f"{rate:.3g} a second")
        if self.total and rate > 0:
            minutes, seconds = divmod(round((self.total - self.done) / rate), 60)
            parts.append(f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d} left")
        parts += [note] if note else []
        return (f"{self.title}: " if self.title else "") + ", ".join(parts)
