"""Whether steps wait for their pictures, and what to change about it."""

import os

# Steps after a start that are not judged: loading processes begin, kernels are chosen.
SKIPPED = 5
# Steps that are judged together.
WINDOW = 50
# A larger share of the time spent waiting is worth a message.
WAITING_SHARE = 0.2


class LoaderWatch:
    """Looks at the time that steps wait for data, window by window; speaks once a run.

    Args:
        workers: loading processes of this training process.
    """

    def __init__(self, workers: int):
        self.workers = workers
        self._spoken = False
        self._seen = 0
        self._start_window()

    def _start_window(self) -> None:
        self._waited = self._total = 0.0
        self._count = 0

    def step(self, data_seconds: float, step_seconds: float) -> str | None:
        """Take the times of a step.

        Args:
            data_seconds: how long it waited for its batches.
            step_seconds: how long it took in all.

        Returns:
            What to tell the user, or None.
        """
        self._seen += 1
        if self._spoken or self._seen <= SKIPPED:
            return None
        self._waited += data_seconds
        self._total += step_seconds
        self._count += 1
        if self._count < WINDOW:
            return None
        share = self._waited / max(self._total, 1e-9)
        self._start_window()
        if share <= WAITING_SHARE:
            return None
        self._spoken = True
        return (
            f"loading is the bottleneck: the last {WINDOW} steps spent {share:.0%} of their time "
            f"waiting for pictures. {_worker_advice(self.workers)}, or make a picture cheaper: "
            "data.cache, data.reduced_decoding, data.resize_on_device (docs/speed.md)"
        )


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS or Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _worker_advice(workers: int) -> str:
    """What to do about data.workers, given the CPUs that the processes of this node share."""
    cpus = usable_cpus()
    own = max(cpus // int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
    now = f"data.workers is {workers}, of {own} CPUs for this process"
    if workers < own:
        return f"{now}: raise it"
    return f"{now}: more of them would not help"
