"""Reading Pascal VOC folders: Annotations/*.xml, JPEGImages/ or images/, ImageSets/Main/*.txt."""

import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from gfl.data.findings import Findings
from gfl.data.listing import ListedImage, ListedObject, Listing
from gfl.data.locate import ImageFolder
from gfl.data.numbers import read_number
from gfl.errors import UserError


class _Object(NamedTuple):
    name: str
    box: tuple[float, float, float, float]
    place: str


class _Page(NamedTuple):
    """What one xml file says."""

    file_name: str
    size: tuple[float, float] | None
    objects: list[_Object]
    num_objects: int


def voc_list(folder: Path, split: str) -> Path:
    """The file that lists the images of a split; it may not exist."""
    return folder / "ImageSets" / "Main" / f"{split}.txt"


def read_voc(folder: Path, split: str | None, findings: Findings) -> Listing:
    """Read a VOC folder.

    A VOC box counts pixels from 1 and includes the last one: xmin, ymin, xmax, ymax become the
    corners (xmin - 1, ymin - 1) and (xmax, ymax). Objects marked `difficult` are objects like any
    other, in training and in evaluation, and are counted. Classes are the names of all xml files of
    the folder, in alphabetical order, with category ids from 0; image ids count from 1 in the
    order of the file names.

    Args:
        folder: holds Annotations.
        split: name of a list in ImageSets/Main, or None for all xml files.
        findings: gets what is repaired or left out.

    Raises:
        UserError: the layout is another one, or there is no class at all.
    """
    xml_folder = folder / "Annotations"
    stems = sorted(path.stem for path in xml_folder.glob("*.xml"))
    if not stems:
        raise UserError(
            f"{folder} has no Annotations/*.xml: set data.path to a folder in VOC layout, or "
            "data.format to coco or yolo."
        )
    images = next((folder / n for n in ("JPEGImages", "images") if (folder / n).is_dir()), None)
    if images is None:
        raise UserError(f"{folder} has neither JPEGImages/ nor images/: where are the pictures?")
    chosen = set(stems) if split is None else set(_read_list(voc_list(folder, split)))
    silent = Findings()  # other splits' files are read for their class names alone
    pages = {
        stem: _read_page(xml_folder / f"{stem}.xml", findings if stem in chosen else silent)
        for stem in stems
    }
    for stem in sorted(chosen - set(stems)):
        findings.add("bad_annotation_file", f"{stem}.xml", "listed, but missing")
    names = sorted({entry.name for page in pages.values() if page for entry in page.objects})
    if not names:
        raise UserError(f"no xml file in {xml_folder} names an object: there is nothing to learn.")
    id_of = {name: number for number, name in enumerate(names)}
    files = ImageFolder(images)
    by_stem = {path.stem: path.name for path in sorted(images.iterdir(), reverse=True)}
    listed, objects = [], []
    usable = [stem for stem in stems if stem in chosen and pages[stem]]
    for image_id, stem in enumerate(usable, start=1):
        page = pages[stem]
        name = page.file_name
        problem = files.find(name)[1]
        # The list and the xml file go by the stem: another picture's name is a slip.
        another = problem is None and Path(name).stem != stem
        if stem in by_stem and (another or problem == "missing_image"):
            if name and not findings.add("other_file_name", f"{stem}.xml", f"says {name!r}"):
                continue
            name = by_stem[stem]
        listed.append(ListedImage(image_id, name or stem, page.size))
        for entry in page.objects:
            category_id = id_of[entry.name]
            objects.append(
                ListedObject(entry.place, image_id, category_id, entry.box, False, math.nan)
            )
    count = sum(pages[stem].num_objects for stem in usable)
    categories = {number: name for name, number in id_of.items()}
    return Listing(str(xml_folder), images, categories, listed, objects, count)


def _read_list(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read {path}: {reason}") from None
    return [line.strip() for line in lines if line.strip()]


def _read_page(path: Path, findings: Findings) -> _Page | None:
    """One xml file; None if it can not be read."""
    try:
        text = path.read_bytes()
        if b"<!DOCTYPE" in text or b"<!ENTITY" in text:
            raise ValueError("declares entities, which VOC files do not")
        root = ElementTree.fromstring(text)
    except (OSError, ValueError, LookupError, ElementTree.ParseError) as error:
        findings.add("bad_annotation_file", path.name, str(getattr(error, "strerror", 0) or error))
        return None
    sides = [read_number(root.findtext(f"size/{key}"))[0] for key in ("height", "width")]
    legible = all(side is not None and 1 <= side < math.inf for side in sides)
    if not legible:
        findings.add("missing_size", path.name, "no legible size")
    entries = root.findall("object")
    found = [
        _read_object(entry, f"{path.name}: object {number}", findings)
        for number, entry in enumerate(entries)
    ]
    file_name = (root.findtext("filename") or "").strip()
    size = tuple(sides) if legible else None
    return _Page(file_name, size, [entry for entry in found if entry], len(entries))


def _read_object(entry: ElementTree.Element, place: str, findings: Findings) -> _Object | None:
    name = (entry.findtext("name") or "").strip()
    if not name or not name.isprintable():
        findings.add("unknown_category", place, f"name is {name!r}")
        return None
    corners = [
        read_number(entry.findtext(f"bndbox/{key}"))[0] for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    if None in corners:
        findings.add("bad_box", place, "expected bndbox with xmin, ymin, xmax, ymax")
        return None
    if (entry.findtext("difficult") or "").strip() == "1":
        findings.add("difficult", place)
    x1, y1, x2, y2 = corners
    return _Object(name, (x1 - 1, y1 - 1, x2 - x1 + 1, y2 - y1 + 1), place)
