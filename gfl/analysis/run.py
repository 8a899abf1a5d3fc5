"""`analyze`: a checkpoint on a split, to report.html and report.json."""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from gfl.analysis.collect import collect
from gfl.analysis.coverage import MIN_IMAGES, MIN_SIDES
from gfl.analysis.numbers import report_numbers
from gfl.analysis.page import report_page
from gfl.analysis.temperature import digest, require_storable, store_temperature
from gfl.engine.checkpoint import write_atomically
from gfl.errors import UserError

# What each file of a report holds, and hardly another's.
MARKS = {"report.html": b"Written by <code>gfl analyze</code>", "report.json": b'"quality_mode"'}


def analyze(
    checkpoint: str | Path,
    out: str | Path,
    overrides: list[str] | None = None,
    split: str = "val",
    images: int | None = None,
    store: bool = False,
    say: Callable[[str], None] = print,
    outputs: Sequence[str | None] = (),
) -> dict:
    """Measure what a detector's scores, boxes and distributions know, and write the report.

    Args:
        checkpoint: a best.pt or last.pt, or a public .pth.
        out: folder for report.html and report.json; older ones are replaced in one move, files of
            other origin never.
        overrides: "key=value" changes of its config.
        split: "train", "val" or "test".
        images: look at so many images at most; None for all.
        store: put the temperature that was fitted on val into the checkpoint, for `gfl.load`.
        say: takes messages.
        outputs: other files that will be written; those of the data set are refused.

    Returns:
        What report.json holds.

    Raises:
        UserError: the checkpoint, the data or the folder is not as it must be (or holds
            files of these names that are no report), or there are too few sides for a temperature
            that is to be stored.
    """
    if images is not None and images < 1:
        raise UserError(f"images is {images}, expected 1 or more.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("analyze runs in one process: start it without torchrun.")
    if store:
        require_storable(checkpoint, split)
        known = digest(checkpoint)
    out = _make_folder(Path(out))
    collected = collect(checkpoint, overrides or [], split, images, say, outputs)
    numbers = report_numbers(collected, str(checkpoint), split)
    if store:
        entry = _entry(numbers)
        store_temperature(checkpoint, entry, known)
        numbers["coverage"]["stored_now"] = entry["value"]
        say(f"{checkpoint}: temperature {entry['value']:.4g} stored; gfl.load uses it from now on")
    page = report_page(numbers, collected)
    text = json.dumps(numbers, indent=1, allow_nan=False) + "\n"
    for name, content in (("report.html", page), ("report.json", text)):
        _write(out / name, content.encode())
    return numbers


def _entry(numbers: dict) -> dict:
    """What is stored of a fitted temperature."""
    coverage = numbers["coverage"]
    if "left_out" in coverage:
        raise UserError(f"--store-temperature: there is none. {coverage['left_out']}")
    if coverage["sides"] < MIN_SIDES or coverage["images"] < MIN_IMAGES:
        raise UserError(
            f"--store-temperature: {coverage['sides']} sides in {coverage['images']} images are "
            f"too few to fit one, expected {MIN_SIDES} in {MIN_IMAGES} or more."
        )
    return {
        "value": coverage["temperature"],
        "split": numbers["split"],
        "sides": coverage["sides"],
        "images": coverage["images"],
    }


def _make_folder(folder: Path) -> Path:
    """Make the folder, and see before the work is done that a report can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
        for name, mark in MARKS.items():
            if (folder / name).is_dir():
                raise IsADirectoryError(None, f"{name} is a folder there")
            if (folder / name).exists() and mark not in (folder / name).read_bytes():
                raise UserError(
                    f"{folder / name} is not of gfl analyze: choose another folder with --out."
                )
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    return folder


def _write(path: Path, content: bytes) -> None:
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
