"""Work in a process of its own: memory comes back, a crash loses nothing else, signals get there.

The process ends by itself, with everything saved, when the one that started it is gone.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from gfl.errors import TrainingFailed, TrainingStopped, UserError

# A process that used CUDA can not be forked.
START_METHOD = "spawn"
DONE, FAILED, MISTAKE, STOPPED = "done", "failed", "mistake", "stopped"


@dataclass(frozen=True)
class Outcome:
    """How work ended: its value, or why there is none.

    Attributes:
        status: "done", "failed", "mistake" (a UserError) or "stopped" (by a signal).
        value: what it gave, or the message.
    """

    status: str
    value: object


def in_child(work: Callable, *args, stopped: Callable[[], bool] = lambda: False) -> Outcome:
    """Call `work(*args)` in a new process and wait.

    Args:
        work: a function of a module, which the new process imports.
        args: plain values.
        stopped: asked several times a second; once true, the process gets SIGTERM, finishes what
            it has to and ends.
    """
    context = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, work, args))
    process.start()
    theirs.close()
    told = False
    with ours:
        while not ours.poll(0.1):
            if stopped() and not told:
                process.terminate()
                told = True
        try:
            outcome = Outcome(*ours.recv())
        except EOFError:
            outcome = None
        process.join()
    if outcome is not None:
        return outcome
    if told:
        return Outcome(STOPPED, "it was stopped")
    code = process.exitcode
    if code < 0:
        hint = " (out of memory?)" if -code == signal.SIGKILL else ""
        return Outcome(FAILED, f"its process was ended by {signal.Signals(-code).name}{hint}")
    return Outcome(FAILED, f"its process ended with status {code}")


def _work(connection, work: Callable, args: tuple) -> None:
    # The terminal's Ctrl-C comes to this process too; a training takes it, else the parent tells.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(connection,), daemon=True).start()
    try:
        outcome = (DONE, work(*args))
    except TrainingStopped as error:
        outcome = (STOPPED, str(error))
    except UserError as error:
        outcome = (MISTAKE, str(error))
    except TrainingFailed as error:
        outcome = (FAILED, str(error))
    except Exception as error:  # a bug of ours: its traceback is shown, the other runs go on
        traceback.print_exc(file=sys.stderr)
        outcome = (FAILED, f"{type(error).__name__}: {error}")
    with contextlib.suppress(BrokenPipeError):  # the parent is gone; what was done is saved
        connection.send(outcome)


def _follow(connection) -> None:
    """End this process when the parent's end of the pipe is closed: it was killed."""
    try:
        connection.poll(None)
    except OSError:
        return
    os.kill(os.getpid(), signal.SIGTERM)
