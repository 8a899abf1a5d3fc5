"""Ending on a signal: finish the step, save, leave with a status that means "start me again"."""

import contextlib
import os
import signal
import socket
import threading
import time

from gfl.distributed import shared_store

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds within which signals are one: a terminal's Ctrl-C reaches torchrun and its processes, and
# torchrun then passes it on to them once more.
SAME = 1.0
# Names in the processes' common store.
STEP, EVALUATION = "gfl/stop_step", "gfl/stop_evaluation"

# What signals are told to, while a `StopSignal` is entered.
_told: list[socket.socket] = []


def _tell_no_longer() -> None:
    """In a process that was forked: its signals are not those of this one."""
    if _told:
        signal.set_wakeup_fd(-1)
    while _told:
        _told.pop().close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_tell_no_longer)


def _leave_at_a_second(arrivals: socket.socket) -> None:
    """Read the numbers of signals, a byte each, as they arrive, until the other end is closed."""
    first = None
    with arrivals:
        while byte := arrivals.recv(1):
            now = time.monotonic()
            if byte[0] not in SIGNALS:
                continue
            if first is None:
                first = now
            elif now - first > SAME:
                os._exit(128 + byte[0])


class StopSignal:
    """Takes SIGTERM and SIGINT while it is entered; all processes then stop at the same step.

    The process that got a signal writes a step to torchrun's store, which each process looks up
    once a step: a question to a socket, no collective. That step lies 2 ahead. Processes meet in
    every step's gradients, so none can be more than one step ahead of another, and each reads the
    store after the step was written and before it is reached.

    A second signal, more than a second later, ends the process at once with status 128 + number;
    files are whole at any moment. A thread sees to that: Python handles signals between two of the
    main thread's instructions only, of which a backward on a CPU may take many seconds.
    """

    def __init__(self):
        self.number: int | None = None
        self._step: int | None = None
        self._before: dict = {}
        self._told_before = -1

    def __enter__(self):
        # Python delivers signals to the main thread only, and lets only it ask for them.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in SIGNALS}
            arrivals, told = socket.socketpair()
            told.setblocking(False)
            _told.append(told)
            self._told_before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
            threading.Thread(target=_leave_at_a_second, args=(arrivals,), daemon=True).start()
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._told_before)
            _told.pop().close()

    def _receive(self, number: int, _frame) -> None:
        if self.number is None:
            self.number = number
            name = signal.Signals(number).name
            text = f"{name}: finishing the step, then saving; a second signal leaves at once\n"
            with contextlib.suppress(OSError):  # a pipe whose reader the same Ctrl-C has ended
                os.write(2, text.encode())  # print could be what was interrupted

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
