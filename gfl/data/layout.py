"""Which of the known layouts a folder has: `data.format: auto`."""

import os
from pathlib import Path

from gfl.data.coco_layout import coco_splits, in_words
from gfl.data.locate import names_in
from gfl.errors import UserError, some

# What tells each, in words.
MARKS = {
    "coco": "COCO annotations",
    "voc": "Annotations/*.xml",
    "yolo": "data.yaml",
}


def find_format(folder: Path) -> str:
    """The format of a data folder: "coco", "voc" or "yolo".

    It is told by what lies there, not by the capitals of a folder's name, which some file systems
    do not tell apart.

    Args:
        folder: as `data.path`, so it may be a YOLO yaml file too.

    Raises:
        UserError: it does not exist, or holds none or several of the three.
    """
    if os.path.isfile(folder) and folder.suffix in (".yaml", ".yml"):
        return "yolo"
    if not os.path.isdir(folder):
        raise UserError(
            f"data.path {folder} is no folder: expected one in COCO, VOC or YOLO layout "
            "(docs/data.md)."
        )
    found = [
        name
        for name, is_there in (
            ("coco", bool(coco_splits(folder))),
            ("voc", any(name.endswith(".xml") for name in names_in(folder / "Annotations"))),
            ("yolo", os.path.isfile(folder / "data.yaml")),
        )
        if is_there
    ]
    if len(found) == 1:
        return found[0]
    if found:
        marks = " and ".join(MARKS[name] for name in found)
        raise UserError(
            f"{folder} holds {marks}: say which is meant, data.format={' or '.join(found)}."
        )
    raise UserError(
        f"{folder} has none of {in_words('train')} (COCO), {MARKS['voc']} (VOC), {MARKS['yolo']} "
        "(YOLO): expected a folder in one of these layouts (docs/data.md), found "
        f"{some(names_in(folder))}. Another layout is named split by split: "
        "data.train.images, data.train.annotations."
    )
