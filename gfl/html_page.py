"""One self-contained HTML file that shows detections with the doubt of each of their sides."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from gfl.detections import DEFAULT_THRESHOLD, Detections
from gfl.drawing import COLORS, SURE

TEMPLATE = Path(__file__).parent / "html" / "predictions.html"
# Longest side of an embedded picture, pixels, and its JPEG quality.
LONGEST, QUALITY = 1280, 85


@dataclass(frozen=True)
class Picture:
    """One picture of the page.

    Attributes:
        title: what it is called on the page, any text.
        size: (h, w) of the original, which the boxes refer to.
        jpeg: the picture, made smaller if its longer side is above `LONGEST`.
        found: what is in it, best first; with `distributions` and `edge_positions` or without.
    """

    title: str
    size: tuple[int, int]
    jpeg: bytes
    found: Detections


def make_picture(title: str, image: np.ndarray, found: Detections) -> Picture:
    """A `Picture` of an (H, W, 3) uint8 RGB image, compressed at once to need little memory."""
    size = image.shape[:2]
    factor = LONGEST / max(size)
    if factor < 1:
        width, height = (max(round(side * factor), 1) for side in size[::-1])
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return Picture(title, size, content.tobytes(), found.to("cpu"))


def html_page(pictures: Sequence[Picture], total: int, score: float | None = None) -> str:
    """The page: pictures in the given order, without any reference to other files.

    Args:
        pictures: what is shown.
        total: how many there were; the page says so if that is more.
        score: boxes below it are hidden at first; default, each class's recommended threshold
            where it is known, or `DEFAULT_THRESHOLD`. The reader can choose another.

    Returns:
        ASCII text; the same for the same arguments.
    """
    found = [picture.found for picture in pictures]
    content = {
        "total": total,
        "sure": SURE,
        "score": DEFAULT_THRESHOLD if score is None else score,
        "recommended": score is None and any(one.thresholds for one in found),
        "classes": _classes(found),
        "pictures": [_picture(picture) for picture in pictures],
    }
    # In a script element only "<" could end it; written as an escape it is the same JSON.
    text = json.dumps(content, separators=(",", ":")).replace("<", "\\u003c")
    return TEMPLATE.read_text(encoding="ascii").replace("/*DATA*/", text)


def _classes(found: list[Detections]) -> dict[int, dict]:
    """Of each label that occurs, in order: its name, colour and threshold."""
    classes = {}
    for one in found:
        for label in one.labels.tolist():
            classes[label] = {
                "name": one.names[label] if one.names else str(label),
                "color": COLORS[label % len(COLORS)],
                "threshold": one.thresholds[label] if one.thresholds else DEFAULT_THRESHOLD,
            }
    return dict(sorted(classes.items()))


def _picture(picture: Picture) -> dict:
    found = picture.found
    boxes = [
        {"label": label, "score": round(score, 6), "box": _rounded(box, 3), "edge_std": std}
        for label, score, box, std in zip(
            found.labels.tolist(),
            found.scores.tolist(),
            found.boxes.tolist(),
            _rounded(found.edge_std.tolist(), 3),
            strict=True,
        )
    ]
    if found.distributions is not None and found.edge_positions is not None:
        # Bins are evenly spaced: the first and the last position say where all of them are.
        ends = found.edge_positions[..., [0, -1]].tolist()
        for box, sides, places in zip(boxes, found.distributions.tolist(), ends, strict=True):
            box.update(distributions=_rounded(sides, 4), ends=_rounded(places, 3))
    return {
        "title": picture.title,
        "width": picture.size[1],
        "height": picture.size[0],
        "jpeg": "data:image/jpeg;base64," + base64.b64encode(picture.jpeg).decode(),
        "boxes": boxes,
    }


def _rounded(values: list, digits: int) -> list:
    """Numbers of a list of any depth, with so many decimals."""
    return [_rounded(v, digits) if isinstance(v, list) else round(v, digits) for v in values]
