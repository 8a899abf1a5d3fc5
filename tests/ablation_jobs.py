"""Work that tests of ablations do in processes of their own; light, since each imports it anew."""

import os
import signal
import sys
import time
from pathlib import Path

from gfl.errors import TrainingFailed, TrainingStopped, UserError


def give(value):
    return value


def mistake():
    raise UserError("data.path is wrong.")


def fail():
    raise TrainingFailed("memory ran out.")


def bug():
    raise IndexError("ours")


def die(number: int):
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(status: int):
    os._exit(status)


def wait_for_the_end(folder: str):
    """Say that it has begun, wait for SIGTERM, save, stop."""

    def end(*_):
        raise TrainingStopped("stopped after step 3.")

    signal.signal(signal.SIGTERM, end)
    Path(folder, "begun").touch()
    try:
        time.sleep(60)
    finally:
        Path(folder, "saved").touch()


def parent_of_a_child(folder: str):
    """The command that is killed while its child works."""
    from gfl.ablation.child import in_child

    in_child(wait_for_the_end, folder)


def measured(candidates, started):
    """In place of measuring a cost."""
    from gfl.ablation.cost import Measured

    return Measured(candidates[0][0], 3, 5, 0.5, 2, 0.2, 6.0, 2**20, "a device")


def ablate(argv: list[str], rows: list, log: Path, seconds_a_step: float = 0) -> None:
    """The command `ablate` on a table "mine"; its trainings are forks, which start at once."""
    import jobs

    import gfl.ablation.child as child
    import gfl.ablation.study as study
    from gfl.ablation.tables import TABLES
    from gfl.cli.ablate import main

    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    child.START_METHOD = "fork"
    study.measure_cost = measured
    TABLES["mine"] = rows
    jobs.torch.set_num_threads(1)
    if seconds_a_step:
        jobs.slow_steps(seconds_a_step)
    sys.exit(main(argv))
