"""Which of the listed images can be used: found, within their folder, readable, listed once."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from gfl.data.findings import Findings
from gfl.data.image_facts import ImageFacts
from gfl.data.listing import Listing
from gfl.data.locate import ImageFolder
from gfl.errors import UserError

Inspect = Callable[[Sequence[str]], Sequence[ImageFacts]]


class UsableImage(NamedTuple):
    """An image that exists and can be read.

    Attributes:
        id, name: as listed.
        path: of the file.
        size: (h, w) of the upright image.
        stated: (h, w) as listed, None where nothing legible is.
        orientation: EXIF's.
    """

    id: int
    name: str
    path: str
    size: tuple[int, int]
    stated: tuple[float, float] | None
    orientation: int


def usable_images(
    listing: Listing, inspect: Inspect, findings: Findings
) -> tuple[list[UsableImage], dict[int, int]]:
    """Find and look at each listed image.

    Args:
        listing: what there should be.
        inspect: paths to facts, such as `gfl.data.image_facts.inspect_images`.
        findings: gets what is repaired or left out.

    Returns:
        The images in order, and the ids of repeated ones that are joined with the first of the
        same file: {id: id of the first}.

    Raises:
        UserError: the folder, or every file, is missing.
    """
    if not os.path.isdir(listing.folder):
        raise UserError(
            f"image folder {listing.folder} does not exist: set data.path or images of the split."
        )
    found, joined = _find(listing, findings)
    if listing.images and not found:
        findings.raise_failures()
        path = Path(listing.folder) / listing.images[0].file_name
        raise UserError(
            f"none of the {len(listing.images)} images of {listing.origin} can be used: is "
            f"{listing.folder} their folder? The first would be {path}."
        )
    origin = Path(listing.origin).name
    usable = []
    facts_of = inspect([path for _, path in found])
    for (image, path), facts in zip(found, facts_of, strict=True):
        place = f"{origin}: {image.file_name}"
        # Every note is recorded, also beside one that leaves the image out.
        if all([findings.add(kind, place, facts.detail or path) for kind in facts.notes]):
            size = (facts.height, facts.width)
            usable.append(
                UsableImage(image.id, image.file_name, path, size, image.size, facts.orientation)
            )
    return usable, joined


def _find(listing: Listing, findings: Findings) -> tuple[list, dict[int, int]]:
    """(listed image, path) of those whose file is there, each file once; ids that are joined."""
    files = ImageFolder(listing.folder)
    origin = Path(listing.origin).name
    found, first_id, joined = [], {}, {}
    for image in listing.images:
        path, problem = files.find(image.file_name)
        place = f"{origin}: {image.file_name}"
        if problem and not findings.add(problem, place, path):
            continue
        file = os.path.normpath(path)  # a.png and ./a.png are one
        if file in first_id:
            if findings.add("duplicate_file", place, f"image ids {first_id[file]} and {image.id}"):
                joined[image.id] = first_id[file]
            continue
        first_id[file] = image.id
        found.append((image, path))
    return found, joined
