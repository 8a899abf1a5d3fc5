"""Memory that is free for a training."""

import os
from pathlib import Path

import torch

from gfl.data.main_memory import free_main_memory

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
    free = free_main_memory(root)
    return UNKNOWN if free is None else free


def room_for_images(device: torch.device, fixed: float) -> float:
    """Bytes that the images of one process may take: its share of what is free, less `fixed`.

    Args:
        device: of this process.
        fixed: bytes that the process needs whatever the batch: weights, gradients, moments.
    """
    sharing = 1 if device.type == "cuda" else int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(USABLE[device.type] * free_bytes(device) / sharing - fixed, 0.0)
