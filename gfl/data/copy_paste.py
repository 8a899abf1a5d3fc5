"""Copy-paste: objects of one picture, cut out by their masks, laid over another one."""

from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from gfl.data.dataset import Sample
from gfl.data.window import MIN_SHARE, MIN_SIDE, lay, random_corner, scaled_size

Mask = np.ndarray | None
"""(H, W) uint8, 1 on the object, 0 elsewhere; None where it is not known."""


def copy_pasted(
    sample: Sample,
    masks: Sequence[Mask],
    second: Sample,
    second_masks: Sequence[Mask],
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> Sample:
    """A sample with some objects of a second one in front.

    The second picture is resized by a random factor, as in `scale_jittered`, and about half of
    its objects are pasted. What they hide is no object any more: boxes shrink to what is seen of
    their mask (of the box, where there is none) and go if that is less than MIN_SHARE.

    Args:
        sample, masks: the picture, and a mask for each of its boxes.
        second, second_masks: where objects are taken from; those without mask stay there.
        factors: of the second picture's size; 1 just fits into the first.
        rng: draws the factor, the place and the objects.

    Source: arXiv 2012.07177 (Simple Copy-Paste) section 3, without blending of the edges.
    """
    frame = sample.image.shape[:2]
    size = scaled_size(second.image.shape[:2], frame, rng.uniform(*factors))
    corner = random_corner(size, frame, rng)
    scale = size[0] / second.image.shape[0] * size[1] / second.image.shape[1]
    drawn = rng.random(len(second_masks)) < 0.5
    if len(drawn):
        drawn[rng.integers(len(drawn))] = True
    pasted, boxes, rows = np.zeros(frame, bool), [], []
    for row, mask in enumerate(second_masks):
        if mask is None or not drawn[row]:
            continue
        laid = lay(mask, size, frame, corner, 0, cv2.INTER_NEAREST_EXACT).astype(bool)
        box = box_of(laid)
        if laid.sum() >= MIN_SHARE * scale * mask.sum() and _is_large(box):
            pasted |= laid
            boxes.append(box)
            rows.append(row)
    if not rows:
        return sample
    image = np.where(pasted[..., None], lay(second.image, size, frame, corner), sample.image)
    seen = [_seen(box, mask, pasted) for box, mask in zip(sample.boxes, masks, strict=True)]
    left = [row for row, box in enumerate(seen) if box is not None]
    return replace(
        sample,
        image=image,
        boxes=np.array([seen[row] for row in left] + boxes, np.float32),
        labels=np.concatenate((sample.labels[left], second.labels[rows])),
    )


def box_of(mask: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy around what is not 0; all 0 where everything is."""
    columns, lines = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, np.float32)
    ends = (columns[0], lines[0], columns[-1] + 1, lines[-1] + 1)
    return np.array(ends, np.float32)


def _is_large(box: np.ndarray) -> bool:
    return bool((box[2:] - box[:2] >= MIN_SIDE).all())


def _seen(box: np.ndarray, mask: Mask, pasted: np.ndarray) -> np.ndarray | None:
    """The box of what is still to be seen of an object, None if that is too little."""
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    own = np.ones((y2 - y1, x2 - x1), bool) if mask is None else mask[y1:y2, x1:x2].astype(bool)
    hidden = own & pasted[y1:y2, x1:x2]
    if not hidden.any():
        return box
    left = own & ~hidden
    if left.sum() < MIN_SHARE * own.sum():
        return None
    seen = box_of(left) + np.array([x1, y1, x1, y1], np.float32)
    seen = np.concatenate((np.maximum(seen[:2], box[:2]), np.minimum(seen[2:], box[2:])))
    return seen if _is_large(seen) else None
