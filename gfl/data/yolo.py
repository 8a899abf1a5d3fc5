"""Reading YOLO folders: data.yaml, images, labels/ beside images/."""

import math
import os
from pathlib import Path

import yaml

from gfl.data.findings import Findings
from gfl.data.image import IMAGE_ENDINGS
from gfl.data.listing import ListedImage, ListedObject, Listing
from gfl.data.locate import ImageFolder, raise_unreadable
from gfl.data.numbers import read_number, read_whole
from gfl.errors import UserError
from gfl.yaml_text import parse_yaml


class YoloFolder:
    """A data.yaml: class names, and where each split is.

    `path` in it is relative to its own folder; nothing outside `path` is read. An entry such as
    ../train/images that leads nowhere is looked for without the dots, as exporters write them.

    Args:
        path: the folder, or the yaml file itself.

    Raises:
        UserError: no data.yaml, or one that is not of this form.
    """

    def __init__(self, path: Path):
        self.file = path if path.suffix in (".yaml", ".yml") else path / "data.yaml"
        try:
            content = parse_yaml(self.file.read_text(encoding="utf-8-sig"))
        except OSError as error:
            raise UserError(
                f"cannot read {self.file}: {error.strerror or error}. Set data.path to a folder "
                "with data.yaml, or data.format to coco or voc."
            ) from None
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{self.file} is not valid YAML: {error}") from None
        if not isinstance(content, dict):
            raise UserError(f"{self.file} holds no keys and values, expected names, train, val.")
        self.names = _names(content, self.file)
        root = content.get("path") or "."
        if not isinstance(root, str) or not root.isprintable():
            raise UserError(f"{self.file}: path is {root!r}, expected a folder.")
        self.root = self.file.parent / root
        # An empty entry is none: as a folder it would be the root, with the images of all splits.
        self.entries = {split: content.get(split) or None for split in ("train", "val", "test")}
        self.has_keypoints = content.get("kpt_shape") is not None

    def read(self, split: str, findings: Findings) -> Listing:
        """The images and objects of a split.

        Category ids are the numbers of data.yaml; image ids count from 1 in the order of the file
        names. An image without label file is background; rows of more than five numbers are
        polygons, which become their bounding box, or where data.yaml has `kpt_shape` a box and
        keypoints, which are not looked at.

        Raises:
            UserError: a folder or list that does not exist, lies outside, or has no image.
        """
        files = ImageFolder(self.root)
        names = sorted(set(self._image_names(self.entries[split], split)))
        if not names:
            raise UserError(f"{self.file}: {split} ({self.entries[split]!r}) has no image.")
        images, objects, count = [], [], 0
        for name in names:
            image_id = len(images) + 1
            rows = _read_labels(files, name, findings)
            if rows is None:
                continue
            images.append(ListedImage(image_id, name, None))
            for number, row in enumerate(rows, start=1):
                count += 1
                place = f"{_label_name(name)}: line {number}"
                row = row[:5] if self.has_keypoints else row
                entry = _read_row(row, place, image_id, self.names, findings)
                objects += [entry] if entry else []
        origin = f"{self.file} ({split})"
        return Listing(
            origin, self.root, self.names, images, objects, count, len(names), relative=True
        )

    def _image_names(self, entry: object, split: str) -> list[str]:
        """File names of an entry of data.yaml, relative to the root."""
        if isinstance(entry, list):
            parts = [part if isinstance(part, str) else None for part in entry]
            return [name for part in parts for name in self._image_names(part, split)]
        if not isinstance(entry, str):
            raise UserError(f"{self.file}: {split} is {entry!r}, expected a folder or a .txt list.")
        place = self._place(entry, split)
        if place.suffix != ".txt":
            return [os.path.relpath(file, self.root) for file in _image_files(place)]
        try:
            lines = place.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UserError(f"cannot read {place}: {reason}") from None
        return [self._listed(line.strip(), place) for line in lines if line.strip()]

    def _place(self, entry: str, split: str) -> Path:
        """A folder or list that data.yaml names."""
        bare = entry
        while bare.startswith("../"):
            bare = bare[3:]
        real_root = os.path.realpath(self.root)
        for name in (entry, bare):
            try:
                place = self.root / name
                inside = os.path.commonpath((os.path.realpath(place), real_root)) == real_root
                if inside and place.exists():
                    return place
            except (OSError, ValueError):
                continue
        raise UserError(
            f"{self.file}: {split} is {entry!r}, which is no folder or list within {self.root}."
        )

    def _listed(self, line: str, place: Path) -> str:
        """A line of a list, relative to the root: as it is, or relative to the list's folder."""
        beside = os.path.relpath(os.path.join(place.parent, line), self.root)
        if line.startswith("./"):
            return beside
        files = ImageFolder(self.root)
        as_is = files.find(line)[1]
        return beside if as_is == "missing_image" and files.find(beside)[1] is None else line


def _image_files(folder: Path) -> list[str]:
    """Those of a folder and all folders in it, each folder once; links come last.

    Raises:
        UserError: a folder can not be read.
    """
    found, seen, waiting = [], set(), [str(folder)]
    while waiting:
        for parent, folders, names in os.walk(waiting.pop(0), onerror=raise_unreadable):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()
            places = [os.path.join(parent, name) for name in folders]
            waiting += [place for place in places if os.path.islink(place)]
            images = [name for name in names if name.lower().endswith(IMAGE_ENDINGS)]
            found += [os.path.join(parent, name) for name in images]
    return found


def _names(content: dict, file: Path) -> dict[int, str]:
    names = content.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UserError(f"{file}: names is {names!r:.80}, expected the list of class names.")
    for number, name in names.items():
        if read_whole(number)[0] is None or isinstance(number, str) or number < 0:
            raise UserError(f"{file}: names has the key {number!r}, expected 0, 1, 2, ...")
        if not isinstance(name, str) or not name or not name.isprintable():
            raise UserError(f"{file}: class {number} is named {name!r}: write text, in quotes.")
    if len(set(names.values())) < len(names):
        raise UserError(f"{file}: names {list(names.values())} has a name twice.")
    stated = content.get("nc")
    if stated is not None and stated != len(names):
        raise UserError(f"{file}: nc is {stated!r}, but names has {len(names)} classes.")
    return {int(number): names[number] for number in sorted(names)}


def _label_name(name: str) -> str:
    """images/a/b.jpg to labels/a/b.txt: the last part "images" counts; without one, beside."""
    stem, _ = os.path.splitext(name.replace("\\", "/"))
    parts = list(Path(f"{stem}.txt").parts)
    for number in range(len(parts) - 2, -1, -1):
        if parts[number] == "images":
            parts[number] = "labels"
            break
    return os.path.join(*parts)


def _read_labels(files: ImageFolder, name: str, findings: Findings) -> list[list[str]] | None:
    """The rows of an image's label file, none without file; None if the image is left out."""
    label = _label_name(name)
    path, problem = files.find(label)
    if problem == "missing_image":
        if files.find(name)[1] is None:
            findings.add("missing_label_file", name)
        return []
    if problem == "unsafe_path":
        findings.add("unsafe_path", label, path)
        return None
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.add("bad_annotation_file", label, str(getattr(error, "strerror", 0) or error))
        return None
    return [line.split() for line in lines if line.strip()]


def _read_row(
    row: list[str], place: str, image_id: int, names: dict, findings: Findings
) -> ListedObject | None:
    """One line: class, then centre and size, or corners of a polygon, as fractions."""
    values = [read_number(value)[0] for value in row[1:]]
    corners = len(values) // 2
    is_polygon = len(values) > 4 and len(values) % 2 == 0 and corners >= 3
    if None in values or not (len(values) == 4 or is_polygon):
        findings.add("bad_box", place, f"{' '.join(row)!r:.80}, expected class cx cy w h")
        return None
    category_id = read_whole(row[0])[0]
    if category_id not in names:
        findings.add("unknown_category", place, f"class {row[0]!r:.80}")
        return None
    if is_polygon:
        if not findings.add("polygon", place, f"{corners} corners"):
            return None
        xs, ys = values[0::2], values[1::2]
        box = (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys))
    else:
        cx, cy, width, height = values
        box = (cx - width / 2, cy - height / 2, width, height)
    return ListedObject(place, image_id, category_id, box, False, math.nan)
