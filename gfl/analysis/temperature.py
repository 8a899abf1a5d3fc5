"""The temperature of a checkpoint: one number by which the doubt of all sides is multiplied."""

import hashlib
import math
import os
from pathlib import Path

from gfl.engine.checkpoint import DamagedCheckpoint, is_checkpoint, load_checkpoint, save_checkpoint
from gfl.errors import UserError

# The key of a checkpoint: {"value": T, "split": ..., "images": ..., "sides": ...}.
KEY = "edge_temperature"


def stored_temperature(content: dict, name: str) -> float:
    """The temperature in an opened checkpoint, 1 where none was stored.

    Raises:
        DamagedCheckpoint: it is no positive number.
    """
    entry = content.get(KEY)
    if entry is None:
        return 1.0
    value = entry.get("value") if isinstance(entry, dict) else None
    if not isinstance(value, float) or not (0 < value < math.inf):
        raise DamagedCheckpoint(f"{name} is damaged: its {KEY} is {entry!r:.80}.")
    return value


def require_storable(path: str | Path, split: str) -> None:
    """Refuse, before the work is done, a file or a split that a temperature does not belong to.

    Raises:
        UserError: the file is no checkpoint of ours, can not be replaced, or the split is not val.
    """
    if split != "val":
        raise UserError(
            f"--store-temperature with --split {split}: a temperature is fitted on val, so that "
            "test can show whether it holds, and train is too well known to the network."
        )
    if not os.path.isfile(path) or not is_checkpoint(path):
        raise UserError(
            f"--store-temperature: {path} is no checkpoint of gfl. Convert a public file first: "
            f"python tools/convert.py {path} --out FILE.pt"
        )
    if not os.access(Path(path).resolve().parent, os.W_OK):  # a new file takes the old one's place
        raise UserError(
            f"--store-temperature: {Path(path).parent} is not yours to write to. Copy {path} to a "
            "folder that is."
        )


def digest(path: str | Path) -> str:
    """By which a file is known again."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def store_temperature(path: str | Path, entry: dict, known: str) -> None:
    """Rewrite a checkpoint with a temperature, whole or not at all; the rest stays as it is.

    Args:
        path: best.pt or last.pt.
        entry: {"value": T, ...}, plain values.
        known: `digest` of the file that the temperature was fitted on.

    Raises:
        UserError: it can not be written, or is another file by now.
    """
    path = Path(path).resolve()  # a link stays a link
    content = load_checkpoint(path)
    if digest(path) != known:
        raise UserError(
            f"--store-temperature: {path} has changed since it was analysed (does a training write "
            "it?), and the temperature belongs to what it was. Nothing is stored; analyse it again."
        )
    try:
        save_checkpoint(path, {**content, KEY: entry})
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
