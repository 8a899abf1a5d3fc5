"""Predicting on sources: pictures with boxes, videos, and one predictions.json."""

import itertools
import json
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gfl.detections import Detections, check_classes
from gfl.drawing import save_picture
from gfl.engine.checkpoint import write_atomically
from gfl.errors import UserError
from gfl.html_page import Picture, html_page, make_picture
from gfl.progress import Progress
from gfl.sources import (
    PREDICTIONS,
    Source,
    Video,
    VideoWriter,
    drawn_names,
    earlier_entries,
    read_or_explain,
)

PAGE = "predictions.html"
# What each page of `gfl.html_page` holds, and hardly another's.
PAGE_MARK = b"This page draws its boxes with JavaScript, which is switched off."


@dataclass(frozen=True)
class Prediction:
    """What to do with the sources.

    Attributes:
        out: folder for everything that is written.
        score: detections below it are neither drawn nor written; None writes all and draws those
            from the classes' recommended scores on.
        classes: names, None for all.
        tile: side of the pieces in which images are looked at, pixels; None for whole images.
        overlap: share of a piece's side that neighbours have in common; None for that of the
            training, or 0.25.
        batch_size: images computed together.
        pictures: whether pictures and videos are written.
        doubt: whether they show each side's standard deviation.
        frames: bound for each video.
        html_limit: how many pictures predictions.html shows at most; None for no such page.
    """

    out: str
    score: float | None = None
    classes: list[str] | None = None
    tile: int | None = None
    overlap: float | None = None
    batch_size: int = 8
    pictures: bool = True
    doubt: bool = True
    frames: int | None = None
    html_limit: int | None = None

    @property
    def distributions(self) -> bool:
        """Whether detections are to carry their side distributions."""
        return self.html_limit is not None


def predict_sources(detector, sources: list[Source], wish: Prediction) -> dict:
    """Predict on every source and write the outcome below `wish.out`.

    A source that can not be read (to its end), or whose output can not be written, is named.
    Ctrl-C, and memory that runs out, write what was found until then to predictions.json.

    Returns:
        {"images", "detections", "per_class": {name: count}, "skipped": {path: reason}}.

    Raises:
        UserError: an unknown class, the folder can not be written, or an output would fall on a
            source or on a file that no earlier run has written; memory ran out on images (a
            video is then named as skipped).
    """
    check_classes(wish.classes, detector.class_names)
    run = _Run(detector, sources, wish)
    try:
        run.all(sources)
    except (KeyboardInterrupt, UserError):
        if run.entries:
            run.finish()
        raise
    return run.finish()


class _Run:
    """What has been found and written so far."""

    def __init__(self, detector, sources: list[Source], wish: Prediction):
        self.detector, self.wish = detector, wish
        self.out = Path(wish.out)
        self.entries: list[dict] = []
        self.page: list[Picture] = []
        self.skipped: dict[str, str] = {}
        self.counts: Counter = Counter()
        # An exported file holds distributions in its raw form alone; the page does without.
        form = getattr(detector, "metadata", {}).get("form", "raw")
        self.distributions = wish.distributions and form == "raw"
        self.drawn_before = self._require_own_files()
        originals = {Path(source.path).resolve() for source in sources if source.camera is None}
        for source in sources:
            target = self.out / source.name
            if target.resolve() in originals:
                raise UserError(f"{target} is a source itself: choose another folder with --out.")
            is_own = source.drawn in self.drawn_before
            if wish.pictures and os.path.lexists(target) and not is_own:
                raise UserError(
                    f"{target} exists, and no {PREDICTIONS} in {self.out} says that an earlier run "
                    "has drawn it: choose another folder with --out."
                )
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot write to {self.out}: {error.strerror or error}") from None

    def _require_own_files(self) -> set[str]:
        """Refuse to replace files of others; give the names of the pictures of earlier runs."""
        entries = earlier_entries(self.out)
        others = [self.out / PREDICTIONS] if entries is None else []
        if self.wish.html_limit is not None and not _is_own_page(self.out / PAGE):
            others.append(self.out / PAGE)
        for path in filter(os.path.lexists, others):
            raise UserError(
                f"{path} is not of gfl predict, or can not be read: choose another folder with "
                "--out."
            )
        return drawn_names(entries or [])

    def all(self, sources: list[Source]) -> None:
        """Detect in every source."""
        for source in sources:
            if source.is_video:
                self.video(source)
        pictures, size = [s for s in sources if not s.is_video], self.wish.batch_size
        if pictures:
            with Progress(len(pictures), "image") as progress:
                for start in range(0, len(pictures), size):
                    batch = pictures[start : start + size]
                    self.pictures(batch)
                    progress.advance(len(batch))

    def pictures(self, sources: list[Source]) -> None:
        """Detect in a batch of image files."""
        read = [(source, read_or_explain(source.path)) for source in sources]
        self.skipped.update((s.path, str(i)) for s, i in read if isinstance(i, UserError))
        batch = [(source, image) for source, image in read if not isinstance(image, UserError)]
        found = self._detect([image for _, image in batch])
        for (source, image), detections in zip(batch, found, strict=True):
            drawn = self._note(source, None, image, detections)
            if drawn is None:
                continue
            try:
                (self.out / source.name).parent.mkdir(parents=True, exist_ok=True)
                save_picture(self.out / source.name, drawn)
            except (UserError, OSError) as error:
                self.skipped[source.path] = f"detected, but its picture is missing: {error}"
            else:
                self.entries[-1]["drawn"] = source.drawn

    def video(self, source: Source) -> None:
        """Detect in the frames of a video, or of a camera until Ctrl-C."""
        first = len(self.entries)
        try:
            frames = Video(source)
            with VideoWriter(self.out / source.name, frames.rate) as writer:
                try:
                    self._frames(source, frames, writer)
                except KeyboardInterrupt:
                    if source.camera is None:
                        raise
            if self.wish.pictures:
                for entry in self.entries[first:]:
                    entry["drawn"] = source.drawn
            short = frames.missing(self.wish.frames)
            if short:
                self.skipped[source.path] = short
        except UserError as error:
            self.skipped[source.path] = str(error)

    def _frames(self, source: Source, frames: Video, writer: VideoWriter) -> None:
        rest = itertools.islice(frames, self.wish.frames)
        number = 0
        with Progress(frames.length, "frame", title=source.path) as progress:
            while batch := list(itertools.islice(rest, self.wish.batch_size)):
                for image, detections in zip(batch, self._detect(batch), strict=True):
                    drawn = self._note(source, number, image, detections)
                    if drawn is not None:
                        writer.write(drawn)
                    number += 1
                    progress.advance()

    def finish(self) -> dict:
        """Write predictions.json and the page; give the summary."""
        names = self.drawn_before - drawn_names(self.entries)
        before = sorted(name for name in names if os.path.lexists(self.out / name))
        if self.entries and before:
            self.entries[0]["drawn_before"] = before
        text = json.dumps(self.entries, indent=1) + "\n"
        self._write(PREDICTIONS, text)
        if self.wish.html_limit is not None:
            page = html_page(self.page, len(self.entries), self.wish.score)
            self._write(PAGE, page)
        return {
            "images": len(self.entries),
            "detections": sum(self.counts.values()),
            "per_class": dict(sorted(self.counts.items())),
            "skipped": self.skipped,
        }

    def _detect(self, images: list[np.ndarray]) -> list[Detections]:
        wish = self.wish
        more = {"score_threshold": wish.score, "distributions": self.distributions}
        if wish.tile is None:
            return self.detector.predict(images, wish.batch_size, **more)
        cut = (wish.tile, wish.overlap, wish.batch_size)
        return [self.detector.predict_tiled(image, *cut, **more) for image in images]

    def _note(
        self, source: Source, frame: int | None, image: np.ndarray, found: Detections
    ) -> np.ndarray | None:
        """Keep an image's detections; give the picture of them, if one is wanted."""
        found = found.filter(self.wish.score or 0.0, self.wish.classes)
        self.counts.update(found.class_names)
        self.entries.append(_entry(source, frame, image, found))
        if len(self.page) < (self.wish.html_limit or 0):
            title = source.path if frame is None else f"{source.path}, frame {frame}"
            self.page.append(make_picture(title, image, found))
        if not self.wish.pictures:
            return None
        return found.filter(self.wish.score).draw(image, self.wish.doubt)

    def _write(self, name: str, text: str) -> None:
        try:
            write_atomically(self.out / name, lambda file: file.write(text.encode()))
        except OSError as error:
            raise UserError(f"cannot write {self.out / name}: {error.strerror or error}") from None


def _is_own_page(path: Path) -> bool:
    try:
        return PAGE_MARK in path.read_bytes()
    except OSError:
        return False


def _entry(source: Source, frame: int | None, image: np.ndarray, found: Detections) -> dict:
    """One image of predictions.json: boxes xyxy and deviations ltrb in its own pixels."""
    rows = zip(
        found.class_names,
        found.labels.tolist(),
        found.scores.tolist(),
        found.boxes.tolist(),
        found.edge_std.tolist(),
        strict=True,
    )
    return {
        "source": source.path,
        **({} if frame is None else {"frame": frame}),
        "width": image.shape[1],
        "height": image.shape[0],
        "drawn": None,  # until it is written
        "detections": [
            {
                "class_name": name,
                "category_id": found.category_ids[label],
                "score": score,
                "box": box,
                "edge_std": deviations,
            }
            for name, label, score, box, deviations in rows
        ],
    }
