"""Reading COCO json files: what we rely on is checked here, and nowhere else."""

import json
from collections import Counter
from pathlib import Path

from gfl.errors import UserError

NUMBER = (int, float)
# Keys that each entry of a list must have, and the types of their values.
REQUIRED = {
    "images": {"id": int, "file_name": str, "width": NUMBER, "height": NUMBER},
    "annotations": {"image_id": int, "category_id": int, "bbox": object},
    "categories": {"id": int, "name": str},
}


def read_coco_json(json_file: Path) -> dict:
    """Read a COCO json and check the parts that we rely on.

    Raises:
        UserError: missing, not JSON, or not COCO; the message names file and place.
    """
    try:
        content = json.loads(json_file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"cannot read annotations {json_file}: {error.strerror or error}. Set data.path, or "
            "annotations of this split, to an existing COCO json."
        ) from None
    except ValueError as error:
        raise UserError(f"{json_file} is not valid JSON: {error}") from None
    for part, types in REQUIRED.items():
        entries = content.get(part) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise UserError(f"{json_file} has no list {part!r}: it is not a COCO detection file.")
        for number, entry in enumerate(entries):
            _check_entry(entry, types, f"{json_file}: {part}[{number}]")
    for number, image in enumerate(content["images"]):
        if min(image["width"], image["height"]) < 1:
            size = f"{image['width']} x {image['height']}"
            raise UserError(f"{json_file}: images[{number}] is {size} pixels, expected 1 or more.")
    for number, annotation in enumerate(content["annotations"]):
        box = annotation["bbox"]
        numbers = [v for v in box if isinstance(v, NUMBER)] if isinstance(box, list) else []
        if len(numbers) != 4 or len(box) != 4:
            raise UserError(
                f"{json_file}: annotations[{number}].bbox is {box!r}, expected four "
                "numbers [x, y, width, height] in pixels."
            )
    if not content["categories"] or not content["images"]:
        raise UserError(f"{json_file} lists no categories or no images: there is nothing to learn.")
    _require_unique(content, json_file)
    return content


def _check_entry(entry: object, types: dict, place: str) -> None:
    missing = [key for key in types if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise UserError(f"{place} lacks {', '.join(missing)}.")
    for key, kind in types.items():
        if not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            names = [k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,))]
            raise UserError(f"{place}.{key} is {entry[key]!r}, expected {' or '.join(names)}.")


def _require_unique(content: dict, json_file: Path) -> None:
    for part, key, what in (
        ("images", "id", "image id"),
        ("categories", "id", "category id"),
        ("categories", "name", "category name"),
    ):
        counts = Counter(entry[key] for entry in content[part])
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            raise UserError(f"{json_file}: {what} {twice[0]!r} occurs twice.")
