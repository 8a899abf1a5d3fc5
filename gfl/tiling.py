"""Large images in tiles: one list of detections out of those of all of them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import NamedTuple

import torch
from torch import Tensor

from gfl.data.tile_layout import tile_places
from gfl.data.tiles import TileViews
from gfl.detections import Detections, concatenate
from gfl.errors import UserError
from gfl.postprocess import class_wise_nms

# A box whose edge is that near to a window's inner border may be a part of an object, pixels.
BORDER = 3.0
# A part is dropped when so much of its area lies in a whole box of its class.
COVERED = 0.6
# Cut boxes that are compared with the whole ones at once: bounds the memory.
CHUNK = 256


class Tiling(NamedTuple):
    """How an image is divided: arguments of `tile_places`."""

    tile: int
    overlap: float
    whole: bool

    @classmethod
    def chosen(
        cls, trained, tile: int | None, overlap: float | None, whole: bool | None
    ) -> "Tiling":
        """What is stated; else that of the training (`data.tiles`); else 1024, 0.25 and True."""
        usual = cls(1024, 0.25, True)
        if trained is not None:
            usual = cls(trained.size, trained.overlap, trained.whole)
        asked = (tile, overlap, whole)
        tile, overlap, whole = (
            value if stated is None else stated for stated, value in zip(asked, usual, strict=True)
        )
        if not isinstance(tile, Integral) or tile < 32 or not 0 <= overlap < 0.95:
            raise UserError(
                f"tile is {tile!r}, overlap {overlap!r}: expected 32 pixels or more, and 0 to 0.95."
            )
        return cls(tile, overlap, whole)

    def places(self, size: tuple[int, int]) -> list[tuple[int, int, int, int]]:
        """Of an image of (h, w)."""
        return tile_places(size, self.tile, self.overlap, self.whole)


class TileJoin:
    """Detections of tiles, given one tile after another, to those of whole pictures.

    What is held is the detections of pictures whose tiles have not all come.

    Args:
        tiles: of one data set; each of its tiles comes once.
        image_ids: of the whole pictures.
        nms_iou, max_per_image: as in `merge`.
    """

    def __init__(
        self, tiles: TileViews, image_ids: Sequence[int], nms_iou: float, max_per_image: int
    ):
        self.tiles, self.image_ids = tiles, image_ids
        self.nms_iou, self.max_per_image = nms_iou, max_per_image
        self.missing = Counter(tiles.image.tolist())
        self.found: dict[int, dict[int, Detections]] = {}

    def __call__(self, tile: int, detections: Detections) -> dict[int, Detections]:
        """{image id: its detections} with the last tile of a picture, {} before."""
        image = int(self.tiles.image[tile])
        self.found.setdefault(image, {})[tile] = detections
        self.missing[image] -= 1
        if self.missing[image]:
            return {}
        parts = dict(sorted(self.found.pop(image).items()))
        if len(parts) == 1:
            return {int(self.image_ids[image]): detections}
        places = [tuple(self.tiles.places[number].tolist()) for number in parts]
        size = tuple(int(side) for side in self.tiles.whole.sizes[image])
        limits = (self.nms_iou, self.max_per_image)
        return {int(self.image_ids[image]): merge(list(parts.values()), places, size, *limits)}


def merge(
    parts: list[Detections],
    places: list[tuple[int, int, int, int]],
    size: tuple[int, int],
    nms_iou: float,
    max_per_image: int,
) -> Detections:
    """One list of detections of an image from those of its windows.

    Boxes cut by an inner border of their window give way to boxes that are not: first a class-wise
    NMS over all, in which a cut box never suppresses a whole one, then cut boxes that lie in a
    whole one of their class are dropped too (their IoU may be small).

    Args:
        parts: of each window, boxes in pixels of the window.
        places: the windows.
        size: (h, w) of the image.
        nms_iou: as in `Postprocess`.
        max_per_image: detections kept, best first.
    """
    moved = [_moved(part, place) for part, place in zip(parts, places, strict=True)]
    cut = torch.cat([_is_cut(d.boxes, p, size) for d, p in zip(moved, places, strict=True)])
    every = concatenate(moved)
    # Whole boxes come first, each group in the order of its scores.
    rank = every.scores - cut.to(every.scores)
    kept = class_wise_nms(every.boxes, rank, every.labels, nms_iou)
    kept = kept[~_lies_in_a_whole_one(every, cut, kept)]
    best = every.scores[kept].sort(descending=True, stable=True).indices
    return every.select(kept[best][:max_per_image])


def _moved(part: Detections, place: tuple[int, int, int, int]) -> Detections:
    offset = part.boxes.new_tensor([*place[:2], *place[:2]])
    positions = part.edge_positions
    if positions is not None:
        positions = positions + offset[:, None]
    return replace(part, boxes=part.boxes + offset, edge_positions=positions)


def _is_cut(boxes: Tensor, place: tuple[int, int, int, int], size: tuple[int, int]) -> Tensor:
    """Whether a box touches a border of its window that is none of the image."""
    x1, y1, x2, y2 = place
    inner = boxes.new_tensor([x1 > 0, y1 > 0, x2 < size[1], y2 < size[0]]).bool()
    near = (boxes - boxes.new_tensor([x1, y1, x2, y2])).abs() < BORDER
    return (near & inner).any(1)


def _lies_in_a_whole_one(every: Detections, cut: Tensor, kept: Tensor) -> Tensor:
    """(len(kept),) whether a cut box is covered by a kept whole box of its class."""
    lies = torch.zeros_like(cut[kept])
    wholes = kept[~cut[kept]]
    boxes, labels = every.boxes[wholes], every.labels[wholes]
    for rows in cut[kept].nonzero()[:, 0].split(CHUNK):
        parts = every.boxes[kept[rows]]
        low = torch.maximum(parts[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(parts[:, None, 2:], boxes[None, :, 2:])
        shared = (high - low).clamp(min=0).prod(-1)
        area = (parts[:, 2:] - parts[:, :2]).prod(-1).clamp(min=1e-6)
        same = every.labels[kept[rows]][:, None] == labels[None]
        lies[rows] = ((shared / area[:, None] > COVERED) & same).any(1)
    return lies
