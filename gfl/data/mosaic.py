"""Mosaic: four pictures around a random centre."""

from collections.abc import Sequence

import numpy as np

from gfl.data.dataset import Sample
from gfl.data.window import lay_sample, random_corner, scaled_size

# The centre lies within these shares of the sides.
CENTER = (0.25, 0.75)
# Range of the factor of each picture where `scale_jitter` states none, as in YOLOv5.
FACTORS = (0.5, 1.5)


def mosaic(
    samples: Sequence[Sample],
    frame: tuple[int, int],
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> Sample:
    """Four pictures in the four parts of one of the size `frame`.

    Each is resized by a random factor and shows a random part of itself; one that is smaller than
    its part touches the centre.

    Args:
        samples: top left, top right, bottom left, bottom right; the first gives the image id.
        frame: (h, w) of the result.
        factors: smallest and largest; 1 is a picture that just fits into `frame`.
        rng: draws the centre, and factor and place of each picture.

    Source: arXiv 2004.10934 (YOLOv4) section 3.3; the factors as in YOLOv5 and YOLOX.
    """
    height, width = frame
    x, y = (min(max(int(rng.uniform(*CENTER) * side), 1), side - 1) for side in (width, height))
    corners = [(0, 0), (x, 0), (0, y), (x, y)]
    tiles = [(y, x), (y, width - x), (height - y, x), (height - y, width - x)]
    parts = []
    for sample, tile, (left, top) in zip(samples, tiles, corners, strict=True):
        size = scaled_size(sample.image.shape[:2], frame, rng.uniform(*factors))
        inner_x, inner_y = random_corner(size, tile, rng)
        if size[1] < tile[1]:
            inner_x = 0 if left else tile[1] - size[1]
        if size[0] < tile[0]:
            inner_y = 0 if top else tile[0] - size[0]
        parts.append(lay_sample(sample, size, tile, (inner_x, inner_y)))
    images = [part.image for part in parts]
    offsets = [np.array(corner * 2, np.float32) for corner in corners]
    pairs = list(zip(parts, offsets, strict=True))
    return Sample(
        np.concatenate([np.concatenate(images[:2], 1), np.concatenate(images[2:], 1)]),
        np.concatenate([part.boxes + offset for part, offset in pairs]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.ignore_boxes + offset for part, offset in pairs]),
        samples[0].image_id,
    )
