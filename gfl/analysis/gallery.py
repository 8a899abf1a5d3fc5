"""Single sides in their pictures, with the curve of their distribution."""

import base64
from collections import defaultdict
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np

from gfl.analysis.doubt import SIDES
from gfl.analysis.records import Records
from gfl.analysis.shapes import SHAPES, shapes, std_in_bins
from gfl.detections import DEFAULT_THRESHOLD

# Tiles of a shape, of each end of a class, and classes that are shown.
OF_SHAPE, OF_CLASS, CLASSES = 6, 3, 12
# A side so near to the picture's border is not shown, pixels.
NEAR = 4.0
# Longest side of an embedded picture, pixels, and its JPEG quality.
LONGEST, QUALITY = 260, 80


@dataclass(frozen=True)
class Side:
    """One side of a correctly found object: row of the detection, and 0 to 3 for ltrb."""

    row: int
    side: int


@dataclass(frozen=True)
class Gallery:
    """Which sides are shown.

    Attributes:
        by_shape: for each of flat, two-peaked and sharp.
        by_class: class name to the most doubtful and the surest sides, by deviation in bins.
        left_out: classes that have correctly found objects and are not shown.
    """

    by_shape: dict[str, list[Side]]
    by_class: dict[str, tuple[list[Side], list[Side]]]
    left_out: int


def choose_sides(records: Records) -> Gallery | None:
    """Sides worth looking at; None without distributions or correctly found objects.

    Detections from score 0.3 on come first; a picture and a detection occur once in a row of
    tiles where there are others. Sides at the picture's border are easily sure and not shown.
    """
    if records.probabilities is None or not records.is_true.any():
        return None
    rows, sides = np.nonzero(records.is_true[:, None] & ~records.at_border(NEAR))
    probabilities = records.probabilities[rows, sides]
    std, kind = std_in_bins(probabilities), shapes(probabilities)
    certain = records.scores[rows] >= DEFAULT_THRESHOLD

    def first(mine: np.ndarray, key: np.ndarray, count: int) -> list[Side]:
        places = np.flatnonzero(mine)
        order = places[np.lexsort((key[places], ~certain[places]))]
        return _different(order, records.images[rows], rows, sides, count)

    by_shape = {
        "two-peaked": first(kind == SHAPES.index("two-peaked"), -records.scores[rows], OF_SHAPE),
        "flat": first(kind == SHAPES.index("flat"), -std, OF_SHAPE),
        "sharp": first(kind == SHAPES.index("sharp"), std, OF_SHAPE),
    }
    by_class = {}
    labels = records.labels[rows]
    common = np.bincount(labels, minlength=len(records.class_names))
    shown = [k for k in np.argsort(-common, kind="stable") if common[k]]
    for label in shown[:CLASSES]:
        mine = labels == label
        ends = first(mine, -std, OF_CLASS), first(mine, std, OF_CLASS)
        by_class[records.class_names[label]] = ends
    return Gallery(by_shape, by_class, max(len(shown) - CLASSES, 0))


def draw_tiles(wanted: list[Side], records: Records, dataset) -> dict[Side, str]:
    """HTML of each tile; every picture is read once."""
    place = {int(image_id): k for k, image_id in enumerate(np.asarray(dataset.image_ids).tolist())}
    by_image = defaultdict(list)
    for side in dict.fromkeys(wanted):
        by_image[int(records.images[side.row])].append(side)
    tiles = {}
    for image, here in by_image.items():
        picture = dataset[place[records.image_ids[image]]].image
        tiles.update({side: _tile(side, records, picture) for side in here})
    return tiles


def _different(order, images, rows, sides, count: int) -> list[Side]:
    """The first ones, as far as possible of different detections and pictures."""
    chosen: list[int] = []
    for limit in (images, rows, None):
        seen = set() if limit is None else {int(limit[k]) for k in chosen}
        for k in order:
            if len(chosen) == count:
                break
            if k in chosen or (limit is not None and int(limit[k]) in seen):
                continue
            chosen.append(k)
            if limit is not None:
                seen.add(int(limit[k]))
    return [Side(int(rows[k]), int(sides[k])) for k in chosen]


def _tile(chosen: Side, records: Records, picture: np.ndarray) -> str:
    row, side = chosen.row, chosen.side
    box, true = records.boxes[row], records.objects.boxes[records.match[row]]
    # Both boxes, and two deviations of the side.
    reach = 2 * records.edge_std[row, side] * np.array([-1, 1])
    ends = np.stack((box, true)).reshape(-1, 2)
    low, high = ends.min(0), ends.max(0)
    low[side % 2] = min(low[side % 2], box[side] + reach[0])
    high[side % 2] = max(high[side % 2], box[side] + reach[1])
    left, top, right, bottom = _frame(low, high, picture.shape[:2])
    image = _jpeg(picture[top:bottom, left:right])
    error = abs(box[side] - true[side])
    name, score = records.class_names[records.labels[row]], records.scores[row]
    width, height = right - left, bottom - top
    curve = _curve(records.probabilities[row, side], records.positions[row, side], box, side)
    x1, y1, x2, y2 = box
    return (
        f'<figure class="tile"><svg viewBox="{left} {top} {width} {height}" role="img" '
        f'aria-label="{escape(name)}, {SIDES[side]} side"><image href="{image}" x="{left}" '
        f'y="{top}" width="{width}" height="{height}" preserveAspectRatio="none"/>'
        f'<rect class="found" x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" '
        f'height="{y2 - y1:.1f}"/>{curve}{_edge(box, true[side], side, "true-edge")}'
        f"{_edge(box, box[side], side, 'edge')}</svg>"
        f"<figcaption><b>{escape(name)} {score:.2f}</b>, {SIDES[side]}<br>deviation "
        f"{records.edge_std[row, side]:.1f} px, off by {error:.1f} px</figcaption></figure>"
    )


def _frame(low: np.ndarray, high: np.ndarray, size: tuple[int, int]) -> tuple[int, ...]:
    """The part of the picture that is shown, 4 to 3 where the picture has room for it.

    Args:
        low, high: x, y of what must be seen.
        size: (h, w) of the picture.

    Returns:
        left, top, right, bottom, whole pixels.
    """
    span = high - low
    span = span + 0.35 * span.max()
    width = max(span[0], span[1] * 4 / 3)
    ends = []
    for wanted, middle, limit in zip(
        (width, width * 3 / 4), (low + high) / 2, size[::-1], strict=True
    ):
        length = min(max(round(wanted), 1), limit)
        first = min(max(round(middle - length / 2), 0), limit - length)
        ends.append((first, first + length))
    (left, right), (top, bottom) = ends
    return left, top, right, bottom


def _jpeg(image: np.ndarray) -> str:
    factor = LONGEST / max(image.shape[:2])
    size = [max(round(side * factor), 1) for side in image.shape[1::-1]]
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    bgr = cv2.cvtColor(cv2.resize(image, size, interpolation=method), cv2.COLOR_RGB2BGR)
    _, content = cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()


def _edge(box: np.ndarray, place: float, side: int, name: str) -> str:
    """A side as a line, at its own place or at another."""
    x1, y1, x2, y2 = box
    if side % 2 == 0:
        return f'<path class="{name}" d="M{place:.1f} {y1:.1f}V{y2:.1f}"/>'
    return f'<path class="{name}" d="M{x1:.1f} {place:.1f}H{x2:.1f}"/>'


def _curve(probabilities: np.ndarray, positions: np.ndarray, box: np.ndarray, side: int) -> str:
    """The distribution as an area on a line through the middle of the box."""
    seen = np.flatnonzero(probabilities >= 0.01 * probabilities.max())
    rows = np.arange(max(seen.min() - 1, 0), min(seen.max() + 2, len(probabilities)))
    upright = side % 2 == 0
    x1, y1, x2, y2 = box
    base, reach = ((y1 + y2) / 2, 0.42 * (y2 - y1)) if upright else (
        (x1 + x2) / 2, 0.42 * (x2 - x1)
    )  # fmt: skip
    lengths = reach * probabilities[rows] / probabilities.max()
    along = [(positions[rows[0]], base)]
    if upright:
        along += [(p, base - v) for p, v in zip(positions[rows], lengths, strict=True)]
        along = [*along, (positions[rows[-1]], base)]
    else:
        along = [(base, positions[rows[0]])]
        along += [(base + v, p) for p, v in zip(positions[rows], lengths, strict=True)]
        along = [*along, (base, positions[rows[-1]])]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in along)
    return f'<path class="curve" d="M{path}Z"/>'
