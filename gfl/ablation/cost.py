"""What a table costs before it is begun: runs, steps, seconds, bytes."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """What a few steps of one row have shown.

    Attributes:
        row: which one.
        steps_per_epoch: of a run.
        steps: that were timed.
        step_seconds: of a training step, with waiting for its batch.
        eval_batches: of the validation data.
        eval_batch_seconds: of detecting in one, with waiting for it.
        start_seconds: of a process, until its first step.
        checkpoint_bytes: of a last.pt.
        device: what it ran on.
    """

    row: str
    steps_per_epoch: int
    steps: int
    step_seconds: float
    eval_batches: int
    eval_batch_seconds: float
    start_seconds: float
    checkpoint_bytes: int
    device: str


@dataclass(frozen=True)
class Left:
    """What is left to do of a table.

    Attributes:
        runs: that are not finished.
        steps: of all of them.
        evaluations: of all of them.
        begun: number of the runs that have a checkpoint.
        finished: runs that are.
        shared: rows and seeds that have no run of their own, being the same as another.
        timed_rows: rows whose times are still to be taken, 0 where they are on the disk.
        pairs: rounds of timing.
    """

    runs: int
    steps: int
    evaluations: int
    begun: int = 0
    finished: int = 0
    shared: int = 0
    timed_rows: int = 0
    pairs: int = 0


# last.pt, last.previous.pt and best.pt, which is smaller.
FILES_OF_A_RUN = 3


def evaluations_left(epochs: int, eval_epochs: int, epochs_done: int) -> int:
    """Evaluations of a run that are still to come: its own, and the one that judges it."""
    last_is_extra = epochs % eval_epochs > 0 and epochs_done < epochs
    return epochs // eval_epochs - epochs_done // eval_epochs + last_is_extra + 1


def total_seconds(left: Left, measured: Measured) -> float:
    """Seconds of everything that is left; evaluation by pycocotools is not in it."""
    return sum(_parts(left, measured).values())


def cost_lines(left: Left, measured: Measured, rows: int) -> list[str]:
    """What is to be done and how long it takes, a line each."""
    parts = _parts(left, measured)
    evaluation = f"{left.evaluations} x {measured.eval_batches} batches"
    both = measured.step_seconds + measured.eval_batch_seconds
    disk = FILES_OF_A_RUN * left.runs * measured.checkpoint_bytes / 2**30
    return [
        f"runs        {left.runs + left.finished} trainings of {rows} rows"
        + (f" ({left.shared} more are shared)" if left.shared else "")
        + f": {left.finished} finished, {left.begun} begun, {left.runs - left.begun} new",
        f"training    {left.steps} steps x {measured.step_seconds:.3g} s "
        f"({measured.steps} steps of {measured.row}) = {duration(parts['training'])}",
        f"evaluation  {evaluation} x {measured.eval_batch_seconds:.3g} s = "
        f"{duration(parts['evaluation'])}",
        f"starting    {left.runs} x {measured.start_seconds:.3g} s = {duration(parts['starting'])}",
        f"times       {left.pairs} rounds x {left.timed_rows} rows x {both:.3g} s = "
        f"{duration(parts['times'])}",
        f"together    about {duration(total_seconds(left, measured))} on {measured.device}, "
        f"up to {disk:.2g} GiB of disk; other rows may take longer than {measured.row}",
    ]


def duration(seconds: float) -> str:
    """Seconds in words of two units at most: "2 h 5 min", "3 min 1 s", "4.2 s"."""
    if seconds < 60:
        return f"{seconds:.2g} s"
    for size, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if seconds >= size:
            whole, rest = divmod(round(seconds / part), size // part)
            return f"{whole} {name} {rest} {part_name}"
    return f"{round(seconds) // 60} min {round(seconds) % 60} s"


def _parts(left: Left, measured: Measured) -> dict[str, float]:
    pair = measured.step_seconds + measured.eval_batch_seconds
    return {
        "training": left.steps * measured.step_seconds,
        "evaluation": left.evaluations * measured.eval_batches * measured.eval_batch_seconds,
        "starting": left.runs * measured.start_seconds,
        "times": left.pairs * left.timed_rows * pair,
    }
