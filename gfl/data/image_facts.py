"""Looking at image files before training: can they be read, how large are they, how do they lie.

What was found is kept in a cache, by path, size and time of change of each file.
"""

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

from PIL import Image

from gfl.data.image import (
    JPEG_END,
    JPEG_FORMATS,
    exif_orientation,
    jpeg_lacks_end,
    read_image,
)
from gfl.errors import UserError
from gfl.files import replacing

# Of the cache file: a change of what is found, or how, gets a new number.
VERSION = 1
THREADS = 8
_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
}


class ImageFacts(NamedTuple):
    """What is known of an image file.

    Attributes:
        height, width: of the upright image, 0 if it can not be read.
        orientation: EXIF's, 1 where there is none.
        notes: kinds of `gfl.data.findings`; unreadable_image and truncated_image are fatal.
        detail: the reason, or the actual format.
    """

    height: int
    width: int
    orientation: int = 1
    notes: tuple[str, ...] = ()
    detail: str = ""


def inspect_image(path: str) -> ImageFacts:
    """Look at one file. JPEG by header and end, PNG by its checksums, others are decoded."""
    try:
        return _inspect(path)
    except UserError as error:
        kind = "truncated_image" if "cut off" in str(error) else "unreadable_image"
        return ImageFacts(0, 0, notes=(kind,), detail=str(error))
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        reason = str(error).split("\n")[0][:200].replace(path, "the file")
        return ImageFacts(0, 0, notes=("unreadable_image",), detail=reason)


def inspect_images(paths: Sequence[str], cache: Path | None = None) -> list[ImageFacts]:
    """Look at each file, those apart that the cache knows unchanged.

    Args:
        paths: files.
        cache: folder of the caches, made if need be; None does without. A folder that can not be
            written costs time, nothing else.
    """
    signatures = [_signature(path) for path in paths]
    file = None if cache is None else cache / f"{_name(paths)}.json"
    known = {} if file is None else _load(file)
    new = [
        index
        for index, path in enumerate(paths)
        if path not in known or known[path][0] != signatures[index] or None in signatures[index]
    ]
    if new:
        with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as threads:
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata
            found = list(threads.map(inspect_image, [paths[index] for index in new]))
        for index, facts in zip(new, found, strict=True):
            known[paths[index]] = (signatures[index], facts)
        if file is not None:
            _store(file, {path: known[path] for path in paths})
    return [known[path][1] for path in paths]


def default_cache() -> Path:
    """$GFL_CACHE, or gfl/ in the user's cache folder."""
    if os.environ.get("GFL_CACHE"):
        return Path(os.environ["GFL_CACHE"]) / "images"
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "gfl" / "images"


def _inspect(path: str) -> ImageFacts:
    with open(path, "rb") as file:
        try:
            image = Image.open(file)
        except Image.UnidentifiedImageError:
            height, width, _ = read_image(path).shape
            return ImageFacts(height, width)
        notes, detail = [], ""
        extensions = _EXTENSIONS.get(image.format, ())
        if extensions and os.path.splitext(path)[1].lower() not in extensions:
            notes.append("wrong_extension")
            detail = f"holds {image.format}"
        width, height = image.size
        content = b""
        if image.format == "PNG":
            file.seek(0)
            content = file.read()
            Image.open(io.BytesIO(content)).verify()
        orientation = exif_orientation(image, content)
        if image.format not in (*JPEG_FORMATS, "PNG"):
            height, width, _ = read_image(path).shape
        elif 5 <= orientation <= 8:
            height, width = width, height
        if image.format in JPEG_FORMATS and _lacks_end(file):
            read_image(path)
            notes.append("missing_end_marker")
    if 2 <= orientation <= 8:
        notes.append("exif_rotated")
    elif orientation != 1:
        notes.append("invalid_exif")
    return ImageFacts(height, width, orientation, tuple(notes), detail)


def _lacks_end(file: BinaryIO) -> bool:
    """As `jpeg_lacks_end`, mostly without reading all of it."""
    file.seek(-len(JPEG_END), os.SEEK_END)
    if file.read() == JPEG_END:
        return False
    file.seek(0)
    return jpeg_lacks_end(file.read())


def _signature(path: str) -> tuple[int | None, int | None]:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None, None
    return status.st_size, status.st_mtime_ns


def _name(paths: Sequence[str]) -> str:
    """One cache file for one list of files."""
    digest = hashlib.sha256(f"{VERSION}".encode())
    for path in paths:
        digest.update(os.fsencode(path) + b"\0")
    return digest.hexdigest()[:32]


def _load(file: Path) -> dict[str, tuple[tuple, ImageFacts]]:
    """What a cache file knows; nothing if it is absent or damaged."""
    try:
        content = json.loads(file.read_text(encoding="utf-8", errors="surrogateescape"))
        return {
            path: ((int(size), int(time)), ImageFacts(*map(int, numbers), tuple(notes), detail))
            for path, (size, time, numbers, notes, detail) in content.items()
        }
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _store(file: Path, known: dict[str, tuple[tuple, ImageFacts]]) -> None:
    """Write a cache file, whole or not at all."""
    content = {
        path: (*signature, facts[:3], facts.notes, facts.detail)
        for path, (signature, facts) in known.items()
        if None not in signature
    }
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            part.write_text(json.dumps(content), encoding="utf-8")
