"""Main memory that is free, within the limit of a container."""

import os
import re
from pathlib import Path


def free_main_memory(root: Path = Path("/")) -> int | None:
    """Bytes that can still be taken, or None where the system does not tell.

    Args:
        root: where the system's files are looked for.
    """
    found = [_available(root), _left_of_limit(root)]
    return min((value for value in found if value is not None), default=None)


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
    """What a container may still take (cgroup version 2 or 1); None without limit.

    Files that were read lately count as used, but give way to whoever asks for memory.
    """
    for place, limit, used, given_way in (
        ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):
        try:
            whole, taken = (int((root / place / name).read_text()) for name in (limit, used))
        except (OSError, ValueError):  # no such file, or "max"
            continue
        try:
            text = (root / place / "memory.stat").read_text()
            taken -= int(re.search(rf"^{given_way} (\d+)$", text, re.MULTILINE)[1])
        except (OSError, TypeError):
            pass
        return min(max(whole - taken, 0), whole)
    return None
