"""What all commands share: how they end."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from gfl.errors import ExportFailed, TrainingFailed, UserError


def run(work: Callable[[], None]) -> int:
    """Do the work of a command; give 0, 2 for a user's mistake, 1 for a run that failed.

    Such errors are one message on stderr. Everything else is a bug and keeps its traceback.
    """
    prefix = f"[rank {os.environ['RANK']}] " if os.environ.get("RANK", "0") != "0" else ""
    try:
        work()
    except UserError as error:
        print(f"{prefix}error: {error}", file=sys.stderr)
        return 2
    except TrainingFailed as error:
        print(f"{prefix}training failed: {error}", file=sys.stderr)
        return 1
    except ExportFailed as error:
        print(f"{prefix}export failed: {error}", file=sys.stderr)
        return 1
    return 0


def is_first_process() -> bool:
    """Whether this process prints results and writes files, known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def require_folder(*paths: str | None) -> None:
    """Refuse output files in folders that do not exist, before the work is done."""
    for path in paths:
        if path is not None and not Path(path).resolve().parent.is_dir():
            raise UserError(f"cannot write {path}: its folder does not exist.")


def write_json(path: str | None, content: object) -> None:
    """Write what was printed, if a file is asked for."""
    if path is None or not is_first_process():
        return
    try:
        Path(path).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
