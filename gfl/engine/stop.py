"""Ending on a signal: finish the step, save, leave with a status that means "start me again"."""

import os
import signal
import threading
import time

from gfl.distributed import shared_store

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals are one: a terminal's Ctrl-C reaches torchrun and its processes, and
# torchrun then passes it on to them once more.
SAME = 1.0
# Names in the processes' common store.
STEP, EVALUATION = "gfl/stop_step", "gfl/stop_evaluation"


class StopSignal:
    """Takes SIGTERM and SIGINT while it is entered; all processes then stop at the same step.

    The process that got a signal writes a step to torchrun's store, which each process looks up
    once a step: a question to a socket, no collective. That step lies 2 ahead. Processes meet in
    every step's gradients, so none can be more than one step ahead of another, and each reads the
    store after the step was written and before it is reached.

    A second signal, more than a second later, ends the process at once with status 128 + number;
    files are whole at any moment.
    """

    def __init__(self):
        self.number: int | None = None
        self._received = 0.0
        self._step: int | None = None
        self._before: dict = {}

    def __enter__(self):
        # Python delivers signals to the main thread only, and lets only it ask for them.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number: int, _frame) -> None:
        now = time.monotonic()
        if self.number is None:
            self.number, self._received = number, now
            name = signal.Signals(number).name
            text = f"{name}: finishing the step, then saving; a second signal leaves at once\n"
            os.write(2, text.encode())  # print could be what was interrupted
        elif now - self._received > SAME:
            os._exit(128 + number)

    def due(self, step: int) -> bool:
        """Whether to stop after `step` finished steps; every process asks after each step."""
        store = shared_store()
        if store is None:
            return self.number is not None
        if self._step is None:
            if self.number is not None:
                self._step = int(store.compare_set(STEP, "", str(step + 2)))
            elif store.check([STEP]):
                self._step = int(store.get(STEP))
        return self._step is not None and step >= self._step

    def in_evaluation(self) -> bool:
        """Whether any process got a signal, while no process takes steps."""
        store = shared_store()
        if store is None:
            return self.number is not None
        if self.number is not None:
            store.set(EVALUATION, "1")
        return store.check([EVALUATION])
