"""Reading COCO json files: what we rely on is checked here, and nowhere else.

A file that is not COCO, or in which boxes can not be told apart, is refused. A single annotation
that is not legible is a finding.
"""

import json
import math
from pathlib import Path

from gfl.data.findings import Findings
from gfl.data.listing import ListedImage, ListedObject, Listing
from gfl.data.numbers import read_number, read_whole
from gfl.errors import UserError

PARTS = ("images", "annotations", "categories")


def read_coco_json(
    json_file: Path, folder: Path, findings: Findings, masks: bool = False
) -> Listing:
    """Read a COCO json.

    Args:
        json_file: images, annotations, categories.
        folder: of the images.
        findings: gets what is repaired or left out.
        masks: keep the segmentations too.

    Raises:
        UserError: missing, not JSON, or not COCO; the message names file and place.
    """
    content = _load(json_file)
    for part in PARTS:
        if not isinstance(content.get(part) if isinstance(content, dict) else None, list):
            raise UserError(f"{json_file} has no list {part!r}: it is not a COCO detection file.")
    if not content["categories"] or not content["images"]:
        raise UserError(f"{json_file} lists no categories or no images: there is nothing to learn.")
    categories = _categories(content["categories"], json_file, findings)
    images = _images(content["images"], json_file, findings)
    names = {image.id: image.file_name for image in images}
    objects, taken, file = [], set(), json_file.name
    for number, entry in enumerate(content["annotations"]):
        found = _object(number, entry, names, categories, file, findings)
        if found is not None and _has_id(entry, taken, number, file, findings):
            more = {"segmentation": entry.get("segmentation")} if masks else {}
            objects.append(found._replace(**more))
    count = len(content["annotations"])
    num_listed = len({read_whole(entry["id"])[0] for entry in content["images"]})
    return Listing(str(json_file), folder, categories, images, objects, count, num_listed)


def _load(json_file: Path) -> object:
    try:
        return json.loads(json_file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(
            f"cannot read annotations {json_file}: {error.strerror or error}. Set data.path, or "
            "annotations of this split, to an existing COCO json."
        ) from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{json_file} is not valid JSON: {error}") from None


def _require(entry: object, keys: tuple[str, ...], place: str) -> None:
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        raise UserError(f"{place} lacks {', '.join(missing)}.")


def _require_id(entry: dict, place: str, findings: Findings) -> int | None:
    """The entry's id; None where the entry is to be left out."""
    value, is_text = read_whole(entry["id"])
    if value is None:
        raise UserError(f"{place}.id is {entry['id']!r}, expected a whole number (int).")
    if is_text and not findings.add("number_as_text", place, f"id is {entry['id']!r}"):
        return None
    return value


def _require_text(entry: dict, key: str, place: str) -> str:
    if not isinstance(entry[key], str) or not entry[key]:
        raise UserError(f"{place}.{key} is {entry[key]!r}, expected text (str).")
    return entry[key]


def _require_name(entry: dict, place: str) -> str:
    name = _require_text(entry, "name", place)
    if not name.isprintable():
        raise UserError(f"{place}.name is {name!r}, expected characters that can be printed.")
    return name


def _categories(entries: list, json_file: Path, findings: Findings) -> dict[int, str]:
    categories: dict[int, str] = {}
    for number, entry in enumerate(entries):
        place = f"{json_file}: categories[{number}]"
        _require(entry, ("id", "name"), place)
        category_id, name = _require_id(entry, place, findings), _require_name(entry, place)
        if category_id is None:
            continue
        if category_id in categories:
            both = f"{categories[category_id]!r} and {name!r}"
            raise UserError(f"{json_file}: category id {category_id} occurs twice, for {both}.")
        if name in categories.values():
            raise UserError(f"{json_file}: category name {name!r} occurs twice.")
        categories[category_id] = name
    return categories


def _images(entries: list, json_file: Path, findings: Findings) -> list[ListedImage]:
    images: dict[int, ListedImage] = {}
    for number, entry in enumerate(entries):
        place = f"{json_file}: images[{number}]"
        _require(entry, ("id", "file_name"), place)
        image_id = _require_id(entry, place, findings)
        if image_id is None:
            continue
        name = _require_text(entry, "file_name", place)
        sides = [read_number(entry.get(key)) for key in ("height", "width")]
        legible = all(side is not None and 1 <= side < math.inf for side, _ in sides)
        if any(is_text for _, is_text in sides) or not legible:
            stated = f"width {entry.get('width')!r}, height {entry.get('height')!r}"
            if not findings.add("missing_size", f"{json_file.name}: {name}", stated):
                continue
        first = images.get(image_id)
        if first is not None and first.file_name != name:
            raise UserError(
                f"{json_file}: image id {image_id} occurs twice, for {first.file_name!r} and "
                f"{name!r}: boxes can not be assigned. Give each image an id of its own."
            )
        if first is not None:
            findings.add("duplicate_file", f"{json_file.name}: images[{number}]", name)
            continue
        size = tuple(side for side, _ in sides) if legible else None
        images[image_id] = ListedImage(image_id, name, size)
    return list(images.values())


def _object(
    number: int, entry: object, names: dict, categories: dict, file: str, findings: Findings
) -> ListedObject | None:
    """One annotation, or None if it is left out."""
    if not isinstance(entry, dict):
        findings.add("bad_annotation", f"{file}: annotations[{number}]", f"{entry!r:.80}")
        return None
    image_id, image_as_text = read_whole(entry.get("image_id"))

    def add(kind: str, key: str, expected: str = "") -> bool:
        place = f"{file}: annotations[{number}] ({names.get(image_id, 'no image')})"
        return findings.add(kind, place, f"{key} is {entry.get(key)!r:.80}{expected}")

    def leave_out(kind: str, key: str, expected: str = "") -> None:
        add(kind, key, expected)

    if image_id not in names:
        return leave_out("unknown_image", "image_id")
    category_id, category_as_text = read_whole(entry.get("category_id"))
    if category_id not in categories:
        return leave_out("unknown_category", "category_id")
    box = entry.get("bbox")
    values = [read_number(value) for value in box] if isinstance(box, list) else []
    if len(values) != 4 or any(value is None for value, _ in values):
        return leave_out("bad_box", "bbox", ", expected four numbers [x, y, width, height]")
    crowd, crowd_as_text = read_whole(entry.get("iscrowd") or 0)
    if isinstance(entry.get("iscrowd"), bool):
        crowd = int(entry["iscrowd"])
    if crowd not in (0, 1):
        return leave_out("bad_annotation", "iscrowd", ", expected 0 or 1")
    area, area_as_text = read_number(entry.get("area"))
    area = math.nan if area is None or not 0 <= area < math.inf else area
    texts = {
        "image_id": image_as_text,
        "category_id": category_as_text,
        "bbox": any(is_text for _, is_text in values),
        "iscrowd": crowd_as_text,
        "area": area_as_text,
    }
    for key, is_text in texts.items():
        if is_text and not add("number_as_text", key):
            return None
    numbers = tuple(value for value, _ in values)
    return ListedObject(number, image_id, category_id, numbers, bool(crowd), area)


def _has_id(entry: dict, taken: set, number: int, file: str, findings: Findings) -> bool:
    """Whether an annotation stays, as far as its id goes; ids serve to find repetitions only."""
    value, _ = read_whole(entry.get("id"))
    if value is None:
        return findings.add("missing_annotation_id", f"{file}: annotations[{number}]")
    if value in taken:
        place = f"{file}: annotations[{number}]"
        return findings.add("duplicate_annotation_id", place, f"id {value}")
    taken.add(value)
    return True
