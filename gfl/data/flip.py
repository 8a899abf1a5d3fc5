"""Boxes of mirrored and upside-down pictures."""

import numpy as np

# Square pixels; what has less is left out, as albumentations does.
NO_AREA = np.float32(1e-7)


def flip_boxes(
    boxes: np.ndarray, size: tuple[int, int], flips: dict[int, bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of a picture that may have been flipped, clipped to it.

    They become fractions of the picture, in float32 up to the first flip that is asked for and in
    float64 from there on. This rounds, also where nothing is flipped; but it is what albumentations
    does, which gave these boxes before, and a seed shall give the same ones as ever.

    Args:
        boxes: (n, 4) float32 xyxy, pixels.
        size: (h, w) of the picture.
        flips: axis of the boxes (0 for x, 1 for y) to whether it is turned round, in this order.

    Returns:
        (m, 4) float32 boxes, and (n,) bool, which of those given they are: not those without area.

    Raises:
        ValueError: a box that lies outside of the picture, or whose corners are exchanged.

    Source: albumentations 2.0, the order of its roundings; no code.
    """
    if not len(boxes):
        return boxes.astype(np.float32), np.ones(0, bool)
    sides = np.array(size[::-1] * 2, np.float64)
    fractions = (boxes / sides).astype(np.float32).clip(0, 1)
    if not (fractions[:, 2:] > fractions[:, :2]).all():
        raise ValueError(f"boxes {boxes.tolist()} do not all lie in their image of {size} (h, w)")
    kept = np.ones(len(boxes), bool)
    for number, (axis, turned) in enumerate(flips.items()):
        if turned:
            low, high = fractions[:, axis], fractions[:, axis + 2]
            fractions[:, axis], fractions[:, axis + 2] = 1 - high, 1 - low
        if number == 0:
            widths, heights = ((fractions[:, 2:] - fractions[:, :2]) * sides[:2]).T
            kept = widths * heights >= NO_AREA
            fractions = fractions[kept].astype(np.float64)
    return (fractions * sides).astype(np.float32), kept
