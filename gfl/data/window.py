"""A picture resized and laid into a window: cut where it is larger, grey where it is smaller."""

import cv2
import numpy as np

from gfl.data.dataset import Sample

# Grey of what no picture covers, as in YOLOv5 and YOLOX.
FILL = 114
# An object of which a smaller share of its area is left, or a side of fewer pixels, is dropped.
MIN_SHARE, MIN_SIDE = 0.25, 2.0


def lay(
    image: np.ndarray,
    size: tuple[int, int],
    window: tuple[int, int],
    corner: tuple[int, int],
    fill: int = FILL,
    interpolation: int = cv2.INTER_LINEAR,
) -> np.ndarray:
    """Resize a picture or a mask and lay it into a window.

    Args:
        image: (H, W, 3) or (H, W).
        size: (h, w) to resize it to.
        window: (h, w) of the result.
        corner: (x, y) of its top left corner in the window; negative where it is cut off.
        fill: value of what it does not cover.
        interpolation: of OpenCV.
    """
    resized = cv2.resize(image, size[::-1], interpolation=interpolation)
    canvas = np.full((*window, *image.shape[2:]), fill, image.dtype)
    x, y = corner
    rows = slice(max(y, 0), max(min(y + size[0], window[0]), 0))
    columns = slice(max(x, 0), max(min(x + size[1], window[1]), 0))
    part = resized[max(-y, 0) :, max(-x, 0) :]
    seen = canvas[rows, columns]
    seen[:] = part[: seen.shape[0], : seen.shape[1]]
    return canvas


def lay_sample(
    sample: Sample, size: tuple[int, int], window: tuple[int, int], corner: tuple[int, int]
) -> Sample:
    """As `lay`, with the boxes, in pixels of the window.

    Boxes are clipped to the window; objects of which too little is left are dropped (MIN_SHARE,
    MIN_SIDE). Of a crowd region every part of MIN_SIDE stays: it can not be told apart anyway.
    """
    height, width = sample.image.shape[:2]
    factors = np.array((size[1] / width, size[0] / height) * 2, np.float32)
    offset = np.array(corner * 2, np.float32)
    boxes, kept = clip_boxes(sample.boxes * factors + offset, window)
    ignore_boxes, ignored = clip_boxes(sample.ignore_boxes * factors + offset, window, 0.0)
    return Sample(
        lay(sample.image, size, window, corner),
        boxes[kept],
        sample.labels[kept],
        ignore_boxes[ignored],
        sample.image_id,
    )


def clip_boxes(
    boxes: np.ndarray, window: tuple[int, int], min_share: float = MIN_SHARE
) -> tuple[np.ndarray, np.ndarray]:
    """(n, 4) xyxy boxes clipped to (h, w), and (n,) bool: of which enough is left."""
    height, width = window
    clipped = boxes.clip(0, np.array([width, height] * 2, np.float32))
    sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    kept = (sides >= MIN_SIDE).all(1) & (sides.prod(1) >= min_share * before.prod(1))
    return clipped, kept


def scaled_size(
    size: tuple[int, int], frame: tuple[int, int], factor: float = 1.0
) -> tuple[int, int]:
    """(h, w) of a picture of `size` that just fits into `frame` (h, w), times a factor."""
    factor *= min(frame[0] / size[0], frame[1] / size[1])
    return max(int(size[0] * factor + 0.5), 1), max(int(size[1] * factor + 0.5), 1)


def random_corner(
    size: tuple[int, int], window: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int]:
    """(x, y) of a picture of `size` (h, w): anywhere within the window, or around it if larger."""
    rooms = (window[1] - size[1], window[0] - size[0])
    x, y = (int(rng.integers(min(room, 0), max(room, 0) + 1)) for room in rooms)
    return x, y
