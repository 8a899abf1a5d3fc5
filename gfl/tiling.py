"""Large images in pieces: windows that overlap, and one list of detections out of all of them."""

from dataclasses import replace

import torch
from torch import Tensor

from gfl.detections import Detections, concatenate
from gfl.postprocess import class_wise_nms

# A box whose edge is that near to a window's inner border may be a part of an object, pixels.
BORDER = 3.0
# A part is dropped when so much of its area lies in a whole box of its class.
COVERED = 0.6


def windows(size: tuple[int, int], tile: int, overlap: float) -> list[tuple[int, int, int, int]]:
    """Windows (x1, y1, x2, y2) of at most `tile` pixels that cover an image of (h, w).

    Neighbours share `overlap` of their side or a little more, so that an object up to that size
    is whole in one of them.
    """
    starts = [_starts(side, tile, overlap) for side in size]
    return [
        (x, y, min(x + tile, size[1]), min(y + tile, size[0])) for y in starts[0] for x in starts[1]
    ]


def _starts(side: int, tile: int, overlap: float) -> list[int]:
    if side <= tile:
        return [0]
    step = max(int(tile * (1 - overlap)), 1)
    count = -(-(side - tile) // step) + 1
    return [round(i * (side - tile) / (count - 1)) for i in range(count)]


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
    boxes, labels, parts = every.boxes[kept], every.labels[kept], cut[kept]
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1).clamp(min=1e-6)
    covered = shared / area[:, None] > COVERED
    same = labels[:, None] == labels[None]
    return parts & (covered & same & ~parts[None]).any(1)
