"""Where a folder in one of COCO's layouts keeps the pictures and annotations of a split."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from gfl.errors import UserError, some

# The splits, and how Roboflow names them.
EXPORTED = {"train": "train", "val": "valid", "test": "test"}


class CocoFiles(NamedTuple):
    """A folder of pictures and the COCO json that lists them."""

    images: Path
    annotations: Path


def _plain(folder: Path, split: str) -> list[CocoFiles]:
    return [CocoFiles(folder / "images", folder / "annotations" / f"{split}.json")]


def _published(folder: Path, split: str) -> list[CocoFiles]:
    """One for each year; those with pictures alone, if there is any."""
    place, pattern = folder / "annotations", re.compile(rf"instances_({split}[0-9]*)\.json")
    found = []
    for match in filter(None, map(pattern.fullmatch, _names(place))):
        images = [folder / match[1], folder / "images" / match[1]]
        images = next(filter(os.path.isdir, images), images[0])
        found.append(CocoFiles(images, place / match[0]))
    return [files for files in found if os.path.isdir(files.images)] or found


def _exported(folder: Path, split: str) -> list[CocoFiles]:
    place = folder / EXPORTED[split]
    return [CocoFiles(place, place / "_annotations.coco.json")]


# In words, and where it keeps a split. The first of which a folder has any split is the folder's:
# no two are mixed. A link that leads nowhere counts, so that reading it names what is wrong.
LAYOUTS = {
    "annotations/{split}.json with images/": _plain,
    "annotations/instances_{split}*.json with {split}*/ or images/{split}*/": _published,
    "{exported}/_annotations.coco.json with the pictures beside it": _exported,
}


def coco_splits(folder: Path) -> dict[str, list[CocoFiles]]:
    """What a folder has of each split: several where there are several years. Empty: no COCO."""
    return _layout(folder)[1]


def picture_folders(folder: Path) -> set[Path]:
    """Those of all splits, as `Path.resolve` gives them."""
    return {files.images.resolve() for found in coco_splits(folder).values() for files in found}


def in_words(split: str, layouts: Iterable[str] = tuple(LAYOUTS)) -> str:
    """Where layouts keep a split, for a message."""
    return " or ".join(layouts).format(split=split, exported=EXPORTED[split])


def find_coco(folder: Path, split: str) -> CocoFiles:
    """The pictures and annotations of a split of `data.path`.

    Raises:
        UserError: the folder has none, or several.
    """
    layouts, splits = _layout(folder)
    found = splits.get(split, [])
    if len(found) == 1:
        return found[0]
    if found:
        images, annotations = found[-1]
        raise UserError(
            f"data.path {folder} has several {split} sets: "
            f"{some(files.annotations.name for files in found)}. Say which one is meant, such as "
            f'"data.{split}={{images: {images}, annotations: {annotations}}}".'
        )
    if not os.path.isdir(folder):
        raise UserError(
            f"data.path {folder} is no folder: expected one with {in_words(split)} (docs/data.md)."
        )
    others = f", as it has {' and '.join(splits)}" if splits else ""
    json_files = _json_files(folder)
    advice = (
        "A training evaluates on val: put one there, or set data.val_fraction=0.1 to divide the "
        "training images."
        if split == "val"
        else f'Put one there, or set "data.{split}={{images: FOLDER, annotations: FILE.json}}".'
    )
    raise UserError(
        f"data.path {folder} has no COCO annotations of {split}: expected "
        f"{in_words(split, layouts)}{others} (docs/data.md), found "
        f"{some(json_files) if json_files else 'no json file'}. {advice}"
    )


def _layout(folder: Path) -> tuple[list[str], dict[str, list[CocoFiles]]]:
    """The layout of a folder in words and its splits; all layouts and no split if it has none."""
    for words, files_of in LAYOUTS.items():
        found = {
            split: [f for f in files_of(folder, split) if os.path.lexists(f.annotations)]
            for split in EXPORTED
        }
        if any(found.values()):
            return [words], {split: files for split, files in found.items() if files}
    return list(LAYOUTS), {}


def _json_files(folder: Path) -> list[str]:
    """Those of the folder and of the folders in it."""
    inside = [f"{name}/{inner}" for name in _names(folder) for inner in _names(folder / name)]
    return [name for name in _names(folder) + inside if name.endswith(".json")]


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except (OSError, ValueError):  # ValueError: characters that no file name has
        return []
