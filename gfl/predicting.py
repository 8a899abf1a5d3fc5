"""Predicting on sources: pictures with boxes, videos, and one predictions.json."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from gfl.detections import Detections
from gfl.drawing import save_picture
from gfl.engine.checkpoint import write_atomically
from gfl.errors import UserError
from gfl.html_page import Picture, html_page, make_picture
from gfl.sources import Source, Video, VideoWriter, read_or_explain

# Endings that OpenCV writes; pictures of other kinds become .png.
WRITABLE = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


@dataclass(frozen=True)
class Prediction:
    """What to do with the sources.

    Attributes:
        out: folder for everything that is written.
        score: detections below it are neither drawn nor written; None writes all and draws those
            from the classes' recommended scores on.
        classes: names, None for all.
        tile: side of the pieces in which images are looked at, pixels; None for whole images.
        overlap: share of a piece's side that neighbours have in common.
        batch_size: images computed together.
        pictures: whether pictures and videos are written.
        frames: bound for each video.
        html_limit: how many pictures predictions.html shows at most; None for no such page.
    """

    out: str
    score: float | None = None
    classes: list[str] | None = None
    tile: int | None = None
    overlap: float = 0.25
    batch_size: int = 8
    pictures: bool = True
    frames: int | None = None
    html_limit: int | None = None

    @property
    def distributions(self) -> bool:
        """Whether detections are to carry their side distributions."""
        return self.html_limit is not None


def predict_sources(detector, sources: list[Source], wish: Prediction) -> dict:
    """Predict on every source and write the outcome below `wish.out`.

    Returns:
        {"images", "detections", "per_class": {name: count}, "skipped": {path: reason}}.

    Raises:
        UserError: the folder can not be written, or an output would fall on a source.
    """
    out = Path(wish.out)
    targets = {source.name: _target(out, source) for source in sources}
    originals = {Path(source.path).resolve() for source in sources if source.camera is None}
    for target in targets.values():
        if target.resolve() in originals:
            raise UserError(f"{target} is a source itself: choose another folder with --out.")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {out}: {error.strerror or error}") from None
    entries: list[dict] = []
    page: list[Picture] = []
    skipped: dict[str, str] = {}
    counts: Counter = Counter()

    def keep(source: Source, frame: int | None, image: np.ndarray, found: Detections) -> np.ndarray:
        """Note an image's detections, give the picture of them."""
        found = found.filter(wish.score or 0.0, wish.classes)
        counts.update(found.class_names)
        entries.append(_entry(source, frame, image, found))
        if len(page) < (wish.html_limit or 0):
            title = source.path if frame is None else f"{source.path}, frame {frame}"
            page.append(make_picture(title, image, found))
        return found.filter(wish.score).draw(image) if wish.pictures else image

    pictures = [source for source in sources if not source.is_video]
    with tqdm(total=len(pictures), unit="image", disable=not pictures) as bar:
        for source, image, found in _detect_pictures(detector, pictures, wish, skipped, bar):
            drawn = keep(source, None, image, found)
            if wish.pictures:
                targets[source.name].parent.mkdir(parents=True, exist_ok=True)
                save_picture(targets[source.name], drawn)
    for source in (source for source in sources if source.is_video):
        video = Video(source)
        writer = VideoWriter(targets[source.name], video.rate)
        frames = itertools.islice(video, wish.frames)
        shown, seen = itertools.tee(frames)
        found_frames = detector.stream(seen, wish.batch_size, distributions=wish.distributions)
        with tqdm(total=video.length, unit="frame", desc=source.path) as bar:
            for number, (image, found) in enumerate(zip(shown, found_frames, strict=True)):
                drawn = keep(source, number, image, found)
                if wish.pictures:
                    writer.write(drawn)
                bar.update()
        writer.close()
    text = json.dumps(entries, indent=1) + "\n"
    write_atomically(out / "predictions.json", lambda file: file.write(text.encode()))
    if wish.html_limit is not None:
        html = html_page(page, len(entries), wish.score)
        write_atomically(out / "predictions.html", lambda file: file.write(html.encode()))
    return {
        "images": len(entries),
        "detections": sum(counts.values()),
        "per_class": dict(sorted(counts.items())),
        "skipped": skipped,
    }


def _detect_pictures(
    detector, sources: list[Source], wish: Prediction, skipped: dict, bar
) -> Iterator[tuple[Source, np.ndarray, Detections]]:
    """Readable pictures with what is in them; the others are noted in `skipped`."""
    options = {"distributions": wish.distributions}
    for start in range(0, len(sources), wish.batch_size):
        batch = []
        for source in sources[start : start + wish.batch_size]:
            image = read_or_explain(source.path)
            if isinstance(image, UserError):
                skipped[source.path] = str(image)
            else:
                batch.append((source, image))
            bar.update()
        images = [image for _, image in batch]
        if wish.tile is None:
            found = detector.predict(images, wish.batch_size, **options)
        else:
            found = [
                detector.predict_tiled(image, wish.tile, wish.overlap, wish.batch_size, **options)
                for image in images
            ]
        for (source, image), detections in zip(batch, found, strict=True):
            yield source, image, detections


def _target(out: Path, source: Source) -> Path:
    ending = source.name.suffix.lower()
    if source.is_video:
        return out / source.name.with_suffix(".mp4")
    return out / (source.name if ending in WRITABLE else source.name.with_suffix(".png"))


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
