"""Memory that is free for a training."""

import os
import re
from pathlib import Path

import torch

# Of what is free, how much a training's images may take: the rest is for what others do meanwhile,
# on a GPU for the allocator's gaps.
USABLE = {"cpu": 0.5, "cuda": 0.8}
# Assumed where the system does not tell.
UNKNOWN = 4 * 2**30


def free_bytes(device: torch.device, root: Path = Path("/")) -> int:
    """Free memory of a device: the GPU's, or the main memory within the container's limit.

    Args:
        device: of this process.
        root: where the system's files are looked for.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = [_available(root), _left_of_limit(root)]
    return min((value for value in found if value is not None), default=UNKNOWN)


def room_for_images(device: torch.device, fixed: float) -> float:
    """Bytes that the images of one process may take: its share of what is free, less `fixed`.

    Args:
        device: of this process.
        fixed: bytes that the process needs whatever the batch: weights, gradients, moments.
    """
    sharing = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(USABLE[device.type] * free_bytes(device) / sharing - fixed, 0.0)


def _available(root: Path) -> int | None:
    """What Linux gives without swapping; elsewhere half of the machine's memory, if it tells."""
    try:
        text = (root / "proc/meminfo").read_text()
        return 1024 * int(re.search(r"MemAvailable:\s+(\d+) kB", text)[1])
    except (OSError, TypeError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, ValueError, OSError):
        return None


def _left_of_limit(root: Path) -> int | None:
    """What a container may still take (cgroup version 2 or 1); None without limit."""
    for limit, used in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current"),
        (
            "sys/fs/cgroup/memory/memory.limit_in_bytes",
            "sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            whole, taken = (int((root / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        return max(whole - taken, 0)
    return None
