"""Drawing on arrays: boxes with their doubt, grids of pictures. Files only, no display needed."""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from gfl.errors import UserError
from gfl.files import replacing

# Distinct on light and dark pictures, RGB.
COLORS = (
    (230, 60, 50), (60, 120, 240), (40, 170, 80), (240, 170, 20), (170, 70, 200),
    (20, 180, 190), (250, 110, 170), (140, 110, 60), (120, 200, 40), (100, 100, 220),
)  # fmt: skip
# The band of one standard deviation is laid on in steps, so that it fades outwards.
BAND_STEPS = 3
BAND_OPACITY = 0.14
# Below this many pixels a side counts as sure and has its line only.
SURE = 1.0
# A name beside a box can be read in pictures whose short side has that many pixels; no picture is
# enlarged beyond that long side.
LEGIBLE, WIDEST = 400, 1333
# What no picture of a grid covers; unlike the black of padding.
EMPTY = 215


def draw_boxes(
    image: np.ndarray,
    boxes: Sequence,
    labels: Sequence[int],
    class_names: Sequence[str] | dict[int, str],
    scores: Sequence[float] | None = None,
    edge_std: Sequence | None = None,
) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB image with xyxy boxes in its own pixels.

    Args:
        boxes, labels: one each.
        class_names: name of each label.
        scores: written beside the names.
        edge_std: (left, top, right, bottom) standard deviations of each box, pixels: a doubtful
            side gets a band of one standard deviation to both sides, that fades outwards.

    Raises:
        UserError: the image is something else.
    """
    _require_picture(image)
    image = np.ascontiguousarray(image.copy())
    size = max(min(image.shape[:2]) / 600, 1.0)
    corners = [tuple(round(float(v)) for v in box) for box in boxes]
    colors = [COLORS[int(label) % len(COLORS)] for label in labels]
    for box, color, deviations in zip(corners, colors, edge_std or (), strict=False):
        _draw_bands(image, box, deviations, color)
    for box, color in zip(corners, colors, strict=True):  # lines stay clear above all bands
        cv2.rectangle(image, box[:2], box[2:], color, round(size), cv2.LINE_AA)
    for row, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        text = class_names[int(label)]
        if scores is not None:
            text += f" {float(scores[row]):.2f}"
        _draw_text(image, text, box, COLORS[int(label) % len(COLORS)], size)
    return image


def draw_dots(image: np.ndarray, points: Sequence, kinds: Sequence[int]) -> np.ndarray:
    """A copy of an (H, W, 3) uint8 RGB image with a dot at each (x, y), one colour a kind."""
    _require_picture(image)
    image = np.ascontiguousarray(image.copy())
    radius = max(round(min(image.shape[:2]) / 150), 2)
    for point, kind in zip(points, kinds, strict=True):
        x, y = (round(float(v)) for v in point)
        cv2.circle(image, (x, y), radius + 1, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(image, (x, y), radius, COLORS[kind % len(COLORS)], -1, cv2.LINE_AA)
    return image


def _require_picture(image: np.ndarray) -> None:
    shape, kind = getattr(image, "shape", None), getattr(image, "dtype", None)
    if not isinstance(image, np.ndarray) or kind != np.uint8 or shape[2:] != (3,):
        about = "" if shape is None else f" of shape {tuple(shape)}, {kind}"
        raise UserError(
            f"a picture is a {type(image).__name__}{about}; expected an (H, W, 3) uint8 RGB array, "
            "as gfl.read_image(path) gives it."
        )


def _draw_text(image: np.ndarray, text: str, box: Sequence, color: tuple, size: float) -> None:
    font, scale, width = cv2.FONT_HERSHEY_SIMPLEX, 0.35 * size, max(round(size * 0.7), 1)
    (across, height), base = cv2.getTextSize(text, font, scale, width)
    left, top = round(float(box[0])), max(round(float(box[1])) - height - base, 0)
    cv2.rectangle(image, (left, top), (left + across, top + height + base), color, -1)
    place, white = (left, top + height), (255, 255, 255)
    cv2.putText(image, text, place, font, scale, white, width, cv2.LINE_AA)


def _draw_bands(image: np.ndarray, box: tuple, deviations: Sequence, color: tuple) -> None:
    x1, y1, x2, y2 = box
    for side, deviation in enumerate(float(v) for v in deviations):
        if deviation < SURE:
            continue
        for step in range(1, BAND_STEPS + 1):
            reach = round(deviation * step / BAND_STEPS)
            if side in (0, 2):
                edge = (x1, y1, x2, y2)[side]
                _tint(image, edge - reach, y1, edge + reach + 1, y2 + 1, color)
            else:
                edge = (x1, y1, x2, y2)[side]
                _tint(image, x1, edge - reach, x2 + 1, edge + reach + 1, color)


def _tint(image: np.ndarray, x1: int, y1: int, x2: int, y2: int, color: tuple) -> None:
    """Blend a colour into a rectangle, as far as it lies on the image."""
    part = image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)]
    part[:] = (part * (1 - BAND_OPACITY) + np.array(color) * BAND_OPACITY).astype(np.uint8)


def enlarged(image: np.ndarray) -> tuple[np.ndarray, int]:
    """A small (H, W, 3) picture with its pixels repeated, so that names beside boxes can be read.

    Returns:
        The picture, and the whole factor by which its boxes are to be multiplied.
    """
    short, long = sorted(image.shape[:2])
    factor = max(min(-(-LEGIBLE // short), WIDEST // long), 1)
    return image.repeat(factor, axis=0).repeat(factor, axis=1), factor


def tile_pictures(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures side by side on light grey, in a grid with few empty cells."""
    count = len(pictures)
    least = int(np.ceil(np.sqrt(count)))
    columns = min(range(least, min(least + 1, count) + 1), key=lambda c: (-count % c, c))
    height = max(picture.shape[0] for picture in pictures)
    width = max(picture.shape[1] for picture in pictures)
    canvas = np.full((-(-count // columns) * height, columns * width, 3), EMPTY, np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


def save_picture(path: str | Path, image: np.ndarray) -> None:
    """Write an (H, W, 3) uint8 RGB picture; the ending decides the format.

    Raises:
        UserError: the place can not be written to (an old file there stays as it was), the ending
            is unknown, or the picture is something else.
    """
    _require_picture(image)
    path = Path(path)
    try:
        done, content = cv2.imencode(path.suffix, cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        if not done:
            height, width = image.shape[:2]
            raise UserError(
                f"cannot write {path}: {path.suffix} holds no picture of {width} x {height} "
                "pixels; .png does."
            )
        with replacing(path) as temporary:
            temporary.write_bytes(content)
    except cv2.error:
        raise UserError(f"cannot write {path}: pictures end in .jpg, .png or the like.") from None
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
