"""Masks of COCO annotations: polygons and run lengths, kept as run lengths in one flat array."""

import math
from collections.abc import Sequence

import numpy as np
from pycocotools import mask as coco_mask

# A mask whose own box has a smaller IoU with the annotated box is of something else.
MIN_IOU = 0.5


class Masks:
    """The masks of all boxes of a data set, in order of the boxes.

    Args:
        segmentations: as the annotations have them; None where there is none.
        sizes: (n, 2) h, w of each box's image.
        boxes: (n, 4) xyxy.

    Attributes:
        known: (n,) bool, whether a box has a mask that is legible and fits it.
    """

    def __init__(self, segmentations: Sequence[object], sizes: np.ndarray, boxes: np.ndarray):
        rows = zip(segmentations, sizes.tolist(), boxes.tolist(), strict=True)
        runs = [b"" if row[0] is None else _run_lengths(*row) for row in rows]
        self.known = np.array([len(run) > 0 for run in runs], bool)
        self._sizes = sizes
        self._first = np.cumsum([0, *map(len, runs)], dtype=np.int64)
        self._runs = np.frombuffer(b"".join(runs), np.uint8)

    def __getitem__(self, row: int) -> np.ndarray | None:
        """(H, W) uint8, 1 on the object; None where no mask is known."""
        if not self.known[row]:
            return None
        counts = self._runs[self._first[row] : self._first[row + 1]].tobytes()
        height, width = self._sizes[row].tolist()
        return np.ascontiguousarray(coco_mask.decode({"size": [height, width], "counts": counts}))


def _run_lengths(segmentation: object, size: list[int], box: list[float]) -> bytes:
    """Compressed run lengths; empty if the mask is not legible, or of something else."""
    try:
        if isinstance(segmentation, dict):
            mask = _of_run_lengths(segmentation, size)
        else:
            mask = _of_polygons(segmentation, size)
    except (ValueError, TypeError, OverflowError):
        return b""
    x, y, width, height = coco_mask.toBbox(mask).tolist()
    x1, y1, x2, y2 = box
    inter_width = min(x + width, x2) - max(x, x1)
    inter_height = min(y + height, y2) - max(y, y1)
    inter = max(inter_width, 0) * max(inter_height, 0)
    union = width * height + (x2 - x1) * (y2 - y1) - inter
    return mask["counts"] if width * height > 0 and inter >= MIN_IOU * union else b""


def _of_polygons(polygons: object, size: list[int]) -> dict:
    """Raises ValueError or TypeError for what is no list of polygons of three corners or more."""
    height, width = size
    if not isinstance(polygons, list) or not polygons:
        raise ValueError("no polygons")
    clipped = []
    for polygon in polygons:
        points = np.array(polygon, np.float64).reshape(-1, 2)
        if len(points) < 3 or not np.isfinite(points).all():
            raise ValueError("no polygon")
        clipped.append(points.clip(0, (width, height)).ravel().tolist())
    return coco_mask.merge(coco_mask.frPyObjects(clipped, height, width))


def _of_run_lengths(run_lengths: dict, size: list[int]) -> dict:
    """Raises ValueError or TypeError for run lengths that do not make a mask of `size`."""
    counts = run_lengths.get("counts")
    if list(run_lengths.get("size", ())) != size:
        raise ValueError("of another size")
    if isinstance(counts, str):
        mask = coco_mask.decode({"size": size, "counts": counts.encode("ascii")})
        return coco_mask.encode(np.asfortranarray(mask))
    lengths = [int(count) for count in counts]
    if min(lengths, default=-1) < 0 or sum(lengths) != math.prod(size):
        raise ValueError("not as long as the picture")
    return coco_mask.frPyObjects({"size": size, "counts": lengths}, *size)
