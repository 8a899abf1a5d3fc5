"""Whether /dev/shm, through which loading processes hand over their batches, is large enough."""

import shutil
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")


def free_bytes() -> int | None:
    """Free bytes of /dev/shm; None where the system has no such place."""
    return shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.is_dir() else None


def shortage(
    images: int, size: tuple[int, int], workers: int, prefetch: int | None, processes: int = 1
) -> str | None:
    """Say so if the batches that wait for the network do not fit.

    Args:
        images: of one batch of the loader.
        size: (h, w) of the largest, padded.
        workers: loading processes of each training process.
        prefetch: batches that each prepares ahead.
        processes: training processes on this machine.
    """
    free = free_bytes()
    if not workers or free is None:
        return None
    # One batch more for each worker: the one it is making.
    needed = images * 3 * size[0] * size[1] * workers * ((prefetch or 2) + 1) * processes
    if needed <= free:
        return None
    return (
        f"WARNING: {SHARED_MEMORY} has {free / 2**20:.0f} MiB free, but {workers} loading "
        f"processes may need {needed / 2**20:.0f} MiB for batches of {images} x {size}: they would "
        "end with a bus error. Set data.workers=0, or enlarge it (docker run --shm-size=8g)."
    )
