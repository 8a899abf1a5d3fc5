"""Running out of memory, in words: what was too large, and what to lower."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch

from gfl.errors import TrainingFailed
from gfl.structures import Batch

# How CPU allocators and CUDA's libraries say it (torch.OutOfMemoryError is a class of its own).
# cuDNN looks for another algorithm where one does not fit, until none is left.
WORDS = (
    "not enough memory",
    "DefaultCPUAllocator",
    "CUDA out of memory",
    "CUDA error: out of memory",
    "unable to find an engine to execute this computation",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
# How torch says that a loading process has died.
LOST_WORKER = ("DataLoader worker", "killed by signal", "exited unexpectedly")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in WORDS)


@contextmanager
def explained(
    batches: Sequence[Batch], advice: str, kind: type[Exception] = TrainingFailed
) -> Iterator[None]:
    """Make one message of memory that ran out while `batches` were worked on.

    Args:
        batches: as they came from the loader, on the CPU.
        advice: the settings to lower.
        kind: what is raised.

    Raises:
        TrainingFailed: or another `kind`, in place of torch's error.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        sizes = [f"{len(batch.metas)} x {batch.padded_size}" for batch in batches]
        boxes = [int(batch.targets.present.sum(1).max()) for batch in batches]
        ids = [meta.image_id for batch in batches for meta in batch.metas]
        first = str(error).splitlines()[0] if str(error) else "no memory left"
        raise kind(
            f"out of memory with images x (height, width) {', '.join(sizes)}, at most "
            f"{max(boxes, default=0)} boxes in an image, image ids {ids[:16]}. Lower {advice}. "
            f"({first[:300]})"
        ) from error


def worker_losses_explained(batches: Iterable) -> Iterator:
    """The batches of a loader, with `lost_worker_explained` around the waiting for each."""
    with lost_worker_explained():
        yield from batches


@contextmanager
def lost_worker_explained() -> Iterator[None]:
    """Make one message of a loading process that has died.

    Raises:
        TrainingFailed: in place of torch's error.
    """
    try:
        yield
    except TrainingFailed:
        raise  # said already
    except RuntimeError as error:
        text = str(error)
        if LOST_WORKER[0] not in text or not any(words in text for words in LOST_WORKER[1:]):
            raise
        raise TrainingFailed(
            f"a loading process has died: {text.splitlines()[0]} Bus error: /dev/shm is too small "
            "(docker run --shm-size=8g, or data.workers=0). Killed: the host's memory ran out "
            "(lower data.workers)."
        ) from error
