"""Files of the user's are the old ones or the new ones, never parts."""

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(path: Path) -> Path:
    """A name in the folder of `path`, with its ending, that no file has."""
    return path.with_name(f".{path.stem}.{secrets.token_hex(8)}{path.suffix}")


def is_class_map(path: Path) -> bool:
    """Whether a file is the class_map.json of a training, which tells its directory."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and content.keys() == {"names", "category_ids"}


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to; what is there at the end takes its place in one move.

    An error leaves `path` as it was, and nothing else behind.

    Raises:
        OSError: such as a full disk.
    """
    temporary = beside(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
