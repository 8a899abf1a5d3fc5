"""Copy-paste: objects of one picture, cut out by their masks, laid over another one."""

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np

from gfl.data.dataset import Sample
from gfl.data.window import MIN_SHARE, MIN_SIDE, lay, random_corner, scaled_size

MaskOf = Callable[[int], np.ndarray | None]
"""Row of a box to the mask of its object, (H, W) uint8 of 0 and 1; None where it is not known."""


def copy_pasted(
    sample: Sample,
    mask_of: MaskOf,
    second: Sample,
    second_mask_of: MaskOf,
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> Sample:
    """A sample with some objects of a second one in front.

    The second picture is resized by a random factor, as in `scale_jittered`, and about half of
    its objects are pasted. What they hide is no object any more: boxes shrink to what is seen of
    their mask (of the box, where there is none) and go if that is less than MIN_SHARE.

    Args:
        sample, mask_of: the picture that is pasted onto.
        second, second_mask_of: where objects are taken from; those without mask stay there.
        factors: of the second picture's size; 1 just fits into the first.
        rng: draws the factor, the place and the objects.

    Source: arXiv 2012.07177 (Simple Copy-Paste) section 3, without blending of the edges.
    """
    frame = sample.image.shape[:2]
    size = scaled_size(second.image.shape[:2], frame, rng.uniform(*factors))
    corner = random_corner(size, frame, rng)
    scale = size[0] / second.image.shape[0] * size[1] / second.image.shape[1]
    # 0 where nothing is taken, else the number of the object, counted from 1.
    taken, areas = np.zeros(second.image.shape[:2], np.uint16), {}
    for row in _drawn(len(second.boxes), rng):
        mask = second_mask_of(row)
        if mask is not None:
            areas[row] = scale * np.count_nonzero(mask)
            taken[mask > 0] = row + 1
    laid = lay(taken, size, frame, corner, 0, cv2.INTER_NEAREST_EXACT)
    pasted, boxes, rows = np.zeros(frame, bool), [], []
    for row, area in areas.items():
        own = laid == row + 1
        box = box_of(own)
        if np.count_nonzero(own) >= MIN_SHARE * area and _is_large(box):
            pasted |= own
            boxes.append(box)
            rows.append(row)
    if not rows:
        return sample
    image = np.where(pasted[..., None], lay(second.image, size, frame, corner), sample.image)
    seen = [_seen(box, row, mask_of, pasted) for row, box in enumerate(sample.boxes)]
    left = [row for row, box in enumerate(seen) if box is not None]
    return replace(
        sample,
        image=image,
        boxes=np.array([seen[row] for row in left] + boxes, np.float32),
        labels=np.concatenate((sample.labels[left], second.labels[rows])),
    )


def _drawn(count: int, rng: np.random.Generator) -> list[int]:
    """About half of the objects, at least one of any."""
    drawn = rng.random(count) < 0.5
    if count:
        drawn[rng.integers(count)] = True
    return np.flatnonzero(drawn).tolist()


def box_of(mask: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy around what is not 0; all 0 where everything is."""
    columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, np.float32)
    ends = (columns[0], lines[0], columns[-1] + 1, lines[-1] + 1)
    return np.array(ends, np.float32)


def _is_large(box: np.ndarray) -> bool:
    return bool((box[2:] - box[:2] >= MIN_SIDE).all())


def _seen(box: np.ndarray, row: int, mask_of: MaskOf, pasted: np.ndarray) -> np.ndarray | None:
    """The box of what is still to be seen of an object, None if that is too little."""
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    hides = pasted[y1:y2, x1:x2]
    if not hides.any():
        return box
    mask = mask_of(row)
    own = np.ones(hides.shape, bool) if mask is None else mask[y1:y2, x1:x2] > 0
    left = own & ~hides
    if np.count_nonzero(left) < MIN_SHARE * np.count_nonzero(own):
        return None
    if (left == own).all():
        return box
    seen = box_of(left) + np.array([x1, y1, x1, y1], np.float32)
    seen = np.concatenate((np.maximum(seen[:2], box[:2]), np.minimum(seen[2:], box[2:])))
    return seen if _is_large(seen) else None
