"""Where pictures to predict on come from: files, folders, globs, videos, cameras."""

import glob
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gfl.data.image import IMAGE_ENDINGS, read_image
from gfl.errors import UserError
from gfl.files import beside

# Endings that OpenCV writes; pictures of other kinds become .png.
WRITABLE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
PREDICTIONS = "predictions.json"
ENTRY_KEYS = {"source", "width", "height", "detections"}
VIDEO_ENDINGS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v"}
KNOWN_ENDINGS = {*IMAGE_ENDINGS, *VIDEO_ENDINGS}


@dataclass(frozen=True)
class Source:
    """One image file, one video file or one camera.

    Attributes:
        path: the file, or "camera N".
        name: where its output goes, relative to the output folder.
        camera: the camera's number, or None.
    """

    path: str
    name: Path
    camera: int | None = None

    @property
    def is_video(self) -> bool:
        return self.camera is not None or Path(self.path).suffix.lower() in VIDEO_ENDINGS

    @property
    def drawn(self) -> str:
        """What `name` is called in predictions.json: "/" between folders on every system."""
        return Path(self.name).as_posix()


def earlier_entries(out: Path) -> list[dict] | None:
    """The predictions.json of an earlier run in a folder; None if there is none, or another's."""
    try:
        entries = json.loads((out / PREDICTIONS).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(entries, list):
        return None
    ours = all(isinstance(entry, dict) and ENTRY_KEYS <= entry.keys() for entry in entries)
    return entries if ours else None


def drawn_names(entries: list[dict]) -> set[str]:
    """The pictures and videos that the runs behind a predictions.json have written beside it."""
    names = [entry.get("drawn") for entry in entries]
    for entry in entries:
        before = entry.get("drawn_before")
        names += before if isinstance(before, list) else []
    return {name for name in names if isinstance(name, str)}


def find_sources(arguments: list[str], out: str | Path) -> list[Source]:
    """What the user names, in order; the output names are distinct.

    Args:
        arguments: image or video files, folders (searched at every depth), globs, camera numbers.
        out: folder for outputs; what an earlier run wrote there is no source of a folder.

    Raises:
        UserError: a name that is nothing of that, or a folder without images.
    """
    own = Path(out).resolve()
    found: list[Source] = []
    for argument in arguments:
        path = Path(argument)
        # Of a name that is too long, or in a folder that is closed, pathlib raises an OSError.
        if os.path.isdir(path):
            named = (f for f in path.rglob("*") if f.suffix.lower() in KNOWN_ENDINGS)
            inside = (file for file in named if os.path.isfile(file))
            inner = path.resolve() in own.parents and earlier_entries(own) is not None
            files = sorted(f for f in inside if not (inner and own in f.resolve().parents))
            if not files:
                raise UserError(f"folder {path} holds no image or video that can be read.")
            found += [Source(str(file), file.relative_to(path)) for file in files]
        elif os.path.isfile(path):
            if path.suffix.lower() not in KNOWN_ENDINGS:
                known = ", ".join(sorted(KNOWN_ENDINGS))
                raise UserError(f"{path} is neither image nor video by its ending: {known}.")
            found.append(Source(argument, Path(path.name)))
        elif argument.isascii() and argument.isdigit():
            found.append(
                Source(f"camera {argument}", Path(f"camera_{argument}.mp4"), int(argument))
            )
        else:
            files = sorted(filter(os.path.isfile, glob.glob(argument, recursive=True)))
            if not files:
                raise UserError(
                    f"{argument} is no file, folder, camera number or pattern that matches a file."
                )
            found += find_sources(files, out)
    return _with_distinct_names(found)


def _with_distinct_names(sources: list[Source]) -> list[Source]:
    taken: set[Path] = set()
    distinct = []
    for source in sources:
        wanted = _output_name(source)
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = wanted.with_stem(f"{wanted.stem}_{number}")
        taken.add(name)
        distinct.append(Source(source.path, name, source.camera))
    return distinct


def _output_name(source: Source) -> Path:
    if source.is_video:
        return source.name.with_suffix(".mp4")
    writable = source.name.suffix.lower() in WRITABLE_ENDINGS
    return source.name if writable else source.name.with_suffix(".png")


class Video:
    """Frames of a video file or a camera, one at a time, (H, W, 3) uint8 RGB.

    Attributes:
        rate: frames a second, 25 where the file states none or one that can not be.
        length: number of frames that the file states, or None where it is not known.
        count: frames that were read.
    """

    count = 0

    def __init__(self, source: Source):
        """Raises UserError if it can not be opened."""
        self._capture = cv2.VideoCapture(source.path if source.camera is None else source.camera)
        if not self._capture.isOpened():
            raise UserError(f"cannot read {source.path}: no such camera, or no video OpenCV knows.")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.rate = rate if 0 < rate <= 1000 else 25.0  # others no writer takes
        length = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        self.length = length if source.camera is None and length > 0 else None

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            read, frame = self._capture.read()
            if not read:
                self._capture.release()
                return
            self.count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)

    def missing(self, wanted: int | None) -> str | None:
        """What to say if the file ended before `wanted` frames (None: all), else None.

        Some formats state a length that is off by a few.
        """
        if not self.count:
            return "no frame could be read: it is empty or damaged"
        due = min(self.length or 0, wanted or self.length or 0)
        if due - self.count <= max(1, due // 50):
            return None
        return f"only {self.count} of {due} frames could be read: it is cut off or damaged"


class VideoWriter:
    """Writes frames to a video file; the first one decides the size.

    As a context: the file is there when it is left, and is none of an error that leaves it.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate, self._writer, self._count = path, rate, None, 0
        self._temporary = beside(path)

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind, *_) -> None:
        if self._writer is None:
            return
        self._writer.release()
        try:
            if kind is None:
                self._require_whole()
                os.replace(self._temporary, self.path)
        except OSError as error:
            raise UserError(f"cannot write video {self.path}: {error.strerror}.") from None
        finally:
            self._temporary.unlink(missing_ok=True)

    def write(self, frame: np.ndarray) -> None:
        """Add an (H, W, 3) uint8 RGB frame; raises UserError if the file can not be written."""
        if self._writer is None:
            code, size = cv2.VideoWriter_fourcc(*"mp4v"), frame.shape[1::-1]
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot write video {self.path}: {error.strerror}.") from None
            self._writer = cv2.VideoWriter(str(self._temporary), code, self.rate, size)
            if not self._writer.isOpened():
                raise UserError(f"cannot write video {self.path}.")
        self._writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        self._count += 1

    def _require_whole(self) -> None:
        """OpenCV says nothing of a disk that is full."""
        written = cv2.VideoCapture(str(self._temporary))
        count = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if count < self._count:
            raise UserError(
                f"cannot write video {self.path}: {count} of {self._count} frames are in the file "
                "(is the disk full?)."
            )


def read_or_explain(path: str) -> np.ndarray | UserError:
    """The image, or why there is none."""
    try:
        return read_image(path)
    except UserError as error:
        return error
