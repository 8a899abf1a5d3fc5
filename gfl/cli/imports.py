"""Imports of a command without the passes of Python's garbage collector over them."""

import atexit
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def imports_uncollected() -> Iterator[None]:
    """Import torch and what comes with it inside this, in a command of ours.

    They are hundreds of thousands of objects that live until the end. The collector would look
    through them again and again while they are made, and once more in each loader process, which
    copies the memory that it touches. So it rests meanwhile and leaves them alone afterwards. At
    exit they are given back to it: some extensions report what is left of them as leaks.

    Nothing is done where torch is imported already: what then lives may be a user's.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)
        gc.enable()
