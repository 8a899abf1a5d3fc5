"""Memory that a loading process frees and needs again at once: kept, not given back."""

import ctypes
import sys

# Of glibc's malloc.h. Blocks up to the largest size that it allows (32 MiB) come from the heap,
# whose end is given back only if so much of it is free.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_BLOCK, _KEPT = 32 * 2**20, 256 * 2**20


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB that it has freed; nothing without glibc.

    Every picture is some blocks of a megabyte or more. By default each goes back to the system and
    comes anew, page by page, which takes about as long as resizing.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)
