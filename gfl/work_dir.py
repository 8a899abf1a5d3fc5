"""The directory of a run: what is allowed to start there, and the small files that describe it."""

import errno
import json
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import yaml

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None

from gfl.distributed import done_by_main
from gfl.engine.checkpoint import load_checkpoint, write_atomically
from gfl.engine.keeper import BEST, LAST, PREVIOUS, find_last, reason, unfinished
from gfl.errors import UserError
from gfl.files import is_class_map
from gfl.progress import tell
from gfl.schema import Config

CONFIG, CLASSES = "config.yaml", "class_map.json"
# How file systems without locks say so (some network disks).
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


def start_work_dir(work_dir: Path, resume: bool) -> tuple[dict | None, str | None]:
    """Make the work directory; give the checkpoint to resume from, and what to say about it.

    Raises:
        UserError: on every process alike: the directory is in use or can not be made, or its
            checkpoints can not be read, or it holds files that no training has made.
    """
    name, note = done_by_main(lambda: _start(work_dir, resume))
    return load_checkpoint(work_dir / name) if name else None, note


def _start(work_dir: Path, resume: bool) -> tuple[str | None, str | None]:
    for name in (LAST, PREVIOUS):
        if (work_dir / name).exists() and not resume:
            raise UserError(
                f"{work_dir / name} exists: this directory holds a training. Go on with --resume "
                f"(its settings are in {work_dir / 'config.yaml'}, which is a config too), or "
                "choose another --work-dir."
            )
    is_begun = any((work_dir / name).exists() for name in (LAST, PREVIOUS))
    if (work_dir / BEST).exists() and not is_begun:
        raise UserError(
            f"{work_dir / BEST} is the outcome of a training whose last.pt is gone: nothing can be "
            "resumed, and a new training would write over it. Choose another --work-dir, or start "
            f"from it with {shlex.quote(f'init_from={work_dir / BEST}')}."
        )
    written = (CONFIG, "log.txt", "metrics.jsonl", CLASSES)
    foreign = [name for name in written if (work_dir / name).exists()]
    if foreign and not is_begun and not is_class_map(work_dir / CLASSES):
        raise UserError(
            f"{work_dir / foreign[0]} is of no training (whose {CLASSES} would lie beside it), and "
            "this one would write over it. Choose another --work-dir."
        )
    try:
        for part in unfinished(work_dir):
            part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot make work directory {work_dir}: {reason(error)}") from None
    return find_last(work_dir) if resume else (None, None)


@contextmanager
def only_one_training(work_dir: Path, option: str = "--work-dir") -> Iterator[None]:
    """Hold the work directory while a training runs in it; the system lets go when it dies.

    Args:
        work_dir: is made where it is missing.
        option: of the command that names it, for the message.

    Raises:
        UserError: on every process alike: another training runs there, or it can not be made.
    """
    held: list[TextIO] = []

    def hold() -> None:
        try:
            os.fspath(work_dir).encode()
        except UnicodeEncodeError:
            problem = f"{work_dir} is no UTF-8, which logs need: choose another {option}."
            raise UserError(problem) from None
        try:
            work_dir.mkdir(parents=True, exist_ok=True)
            held.append(open(work_dir / ".lock", "a"))
            _held.append(held[0])
            _lock(held[0])
        except BlockingIOError:
            problem = f"another training runs in {work_dir}: choose another {option}."
            raise UserError(problem) from None
        except OSError as error:
            problem = f"cannot make work directory {work_dir}: {reason(error)}"
            raise UserError(problem) from None

    try:
        done_by_main(hold)
        yield
    finally:
        for lock in held:
            _held.remove(lock)
            lock.close()


def _lock(file: TextIO) -> None:
    """Hold a file; on a file system that knows no locks, say so and go on."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        tell(f"WARNING: {file.name} can not be locked here: start no second training beside it.")


# Files that this process holds. A loading process outlives it by seconds if it is killed, and would
# hold them meanwhile.
_held: list[TextIO] = []


def _let_go() -> None:
    for file in _held:
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)


def describe_run(work_dir: Path, config: Config, class_map: dict) -> None:
    """Write class_map.json, which tells a training's directory, and config.yaml (resolved)."""
    try:
        _write_text(work_dir / CLASSES, json.dumps(class_map, indent=1) + "\n")
        _write_text(work_dir / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
    except OSError as error:
        raise UserError(f"cannot write to work directory {work_dir}: {reason(error)}") from None


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Lines "key: old -> new" of two nested dicts."""
    lines = []
    for key in {**old, **new}:
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += differences(before, after, f"{prefix}{key}.")
        elif before != after:
            lines.append(f"{prefix}{key}: {before} -> {after}")
    return lines


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
