"""Reading Pascal VOC folders: Annotations/*.xml, JPEGImages/ or images/, ImageSets/Main/*.txt."""

import math
import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import NamedTuple

from gfl.data.findings import Findings
from gfl.data.listing import ListedImage, ListedObject, Listing
from gfl.data.locate import ImageFolder, names_in
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
    """The file that lists the images of a split; it may not exist.

    Without train.txt, trainval.txt is that of train.
    """
    lists = folder / "ImageSets" / "Main"
    own, both = lists / f"{split}.txt", lists / "trainval.txt"
    takes_both = split == "train" and os.path.exists(both) and not os.path.exists(own)
    return both if takes_both else own


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
    stems = sorted(Path(name).stem for name in names_in(xml_folder) if name.endswith(".xml"))
    if not stems:
        raise UserError(
            f"{folder} has no Annotations/*.xml: set data.path to a folder in VOC layout, or "
            "data.format to coco or yolo."
        )
    images = _image_folder(folder)
    chosen = set(stems) if split is None else set(_read_list(voc_list(folder, split)))
    silent = Findings()  # other splits' files are read for their class names alone
    pages = {
        stem: _read_page(xml_folder / f"{stem}.xml", findings if stem in chosen else silent)
        for stem in stems
    }
    for stem in sorted(chosen - set(stems)):
        findings.add("bad_annotation_file", f"{stem}.xml", "listed, but missing")
    id_of = _category_ids(pages, xml_folder)
    usable = {stem: pages[stem] for stem in stems if stem in chosen and pages[stem]}
    listed, objects = _entries(usable, _picture_names(usable, images, findings), id_of)
    count = sum(page.num_objects for page in usable.values())
    categories = {number: name for name, number in id_of.items()}
    size = count, len(chosen)
    return Listing(str(xml_folder), images, categories, listed, objects, *size, lists_classes=False)


def _image_folder(folder: Path) -> Path:
    for name in ("JPEGImages", "images"):
        if os.path.isdir(folder / name):
            return folder / name
    raise UserError(f"{folder} has neither JPEGImages/ nor images/: where are the pictures?")


def _category_ids(pages: dict[str, _Page | None], xml_folder: Path) -> dict[str, int]:
    names = sorted({entry.name for page in pages.values() if page for entry in page.objects})
    if not names:
        raise UserError(f"no xml file in {xml_folder} names an object: there is nothing to learn.")
    return {name: number for number, name in enumerate(names)}


def _picture_names(
    pages: dict[str, _Page], images: Path, findings: Findings
) -> dict[str, str | None]:
    """The picture's file name of each page, by its stem; None where the page is left out."""
    files = ImageFolder(images)
    by_stem = {Path(name).stem: name for name in reversed(names_in(images))}
    names: dict[str, str | None] = {}
    for stem, page in pages.items():
        name = page.file_name
        problem = files.find(name)[1]
        # The list and the xml file go by the stem: another picture's name is a slip.
        another = problem is None and Path(name).stem != stem
        names[stem] = name or stem
        if stem in by_stem and (another or problem == "missing_image"):
            left_out = name and not findings.add("other_file_name", f"{stem}.xml", f"says {name!r}")
            names[stem] = None if left_out else by_stem[stem]
    return names


def _entries(
    pages: dict[str, _Page], picture_names: dict[str, str | None], id_of: dict[str, int]
) -> tuple[list[ListedImage], list[ListedObject]]:
    """Images, numbered from 1, and their objects."""
    listed, objects = [], []
    for image_id, (stem, page) in enumerate(pages.items(), start=1):
        name = picture_names[stem]
        if name is None:
            continue
        listed.append(ListedImage(image_id, name, page.size))
        objects += [
            ListedObject(entry.place, image_id, id_of[entry.name], entry.box, False, math.nan)
            for entry in page.objects
        ]
    return listed, objects


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
    if not legible and not findings.add("missing_size", path.name, "no legible size"):
        return None
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
