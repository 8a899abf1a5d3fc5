"""The directory of a run: what is allowed to start there, and the small files that describe it."""

import json
from pathlib import Path

import yaml

from gfl.distributed import broadcast_object, is_main
from gfl.engine.checkpoint import load_checkpoint, write_atomically
from gfl.errors import UserError
from gfl.schema import Config


def start_work_dir(work_dir: Path, resume: bool) -> dict | None:
    """Make the work directory; give the checkpoint to resume from, if there is one."""
    last = work_dir / "last.pt"
    problem = None
    if is_main():
        if last.exists() and not resume:
            problem = (
                f"{last} exists: this directory holds a training. Go on with --resume, or choose "
                "another --work-dir."
            )
        else:
            try:
                work_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                problem = f"cannot make work directory {work_dir}: {error.strerror or error}"
    problem = broadcast_object(problem)
    if problem:
        raise UserError(problem)
    return load_checkpoint(last) if resume and last.exists() else None


def describe_run(work_dir: Path, config: Config, class_map: dict) -> None:
    """Write config.yaml (resolved) and class_map.json."""
    _write_text(work_dir / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))
    _write_text(work_dir / "class_map.json", json.dumps(class_map, indent=1) + "\n")


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
