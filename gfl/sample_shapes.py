"""Shapes with soft box edges, as opacities: the objects of the sample data set."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from statistics import NormalDist

import cv2
import numpy as np

CATEGORIES = {"disc": 1, "rectangle": 2, "triangle": 4, "ring": 7, "cross": 9, "star": 12}
MASK_SCALE, DRAW_SCALE = 4, 2


@functools.cache
def unit_displacements(count: int = 64) -> np.ndarray:
    """Returns fixed (count, 4) normal quantiles, mean 0, variance 1, columns nearly uncorrelated.

    Opposite sides never approach by 3.5 or more: a box of MIN_SIDE stays open at MAX_BLUR.
    """
    z = np.array([NormalDist().inv_cdf((k + 0.5) / count) for k in range(count)])
    z /= z.std()
    rng = np.random.default_rng(0)
    while True:
        d = np.stack([rng.permutation(z) for _ in range(4)], axis=1)
        if abs(np.corrcoef(d.T) - np.eye(4)).max() < 0.12 and (d[:, :2] - d[:, 2:]).max() < 3.5:
            return d


def shape_mask(name: str, rows: int, cols: int, form: float = 0.5, turn: int = 0) -> np.ndarray:
    """Returns a (rows, cols) mask of 0 and 1 of an outline that touches all four of its sides.

    ``form`` in [0, 1] varies the outline; bit 0 of ``turn`` exchanges the axes, bit 1 inverts v.
    """
    if name not in CATEGORIES:
        raise ValueError(f"unknown shape: {name!r}")
    u = ((np.arange(cols, dtype=np.float32) + 0.5) / cols)[None, :]
    v = ((np.arange(rows, dtype=np.float32) + 0.5) / rows)[:, None]
    u, v = (v, u) if turn & 1 else (u, v)
    v = 1 - v if turn & 2 else v
    x, y = 2 * u - 1, 2 * v - 1
    if name == "rectangle":
        inside = np.ones((rows, cols), bool)
    elif name in ("disc", "ring"):
        hole = 0.45 + 0.2 * form if name == "ring" else 0.0
        inside = (x * x + y * y <= 1) & (x * x + y * y >= hole**2)
    elif name == "triangle":
        apex = 0.2 + 0.6 * form
        inside = (u >= apex * (1 - v)) & (u <= 1 - (1 - apex) * (1 - v))
    elif name == "cross":
        inside = np.minimum(abs(x), abs(y)) <= 0.24 + 0.2 * form
    else:
        # A point is in a pentagram if and only if it is inside at least four of its five lines.
        tips = np.pi * (0.4 * np.arange(5) - 0.5)
        x, y = x * np.cos(tips).max(), v * (1 + np.sin(tips).max()) - 1
        lines = [x * np.cos(a) + y * np.sin(a) <= np.cos(0.4 * np.pi) for a in tips]
        inside = np.sum(lines, axis=0) >= 4
    return np.ascontiguousarray(inside, dtype=np.float32)


def object_alpha(
    name: str, box: Sequence[float], edge_blur: Sequence[float], form: float = 0.5, turn: int = 0
) -> tuple[np.ndarray, int, int]:
    """Computes the opacity of an object whose box edges are soft.

    ``box`` is the mean position (x, y, w, h) and ``edge_blur`` the standard deviations (left, top,
    right, bottom), all in pixels; ``form`` and ``turn`` are as in shape_mask.

    Returns:
        The opacity as a float32 patch, and the integer x and y of the patch's top left corner.
    """
    x, y, w, h = box
    mask = shape_mask(name, round(h * MASK_SCALE), round(w * MASK_SCALE), form, turn)
    rows, cols = mask.shape
    pad = int(np.ceil(3 * max(edge_blur))) + 2
    x0, y0 = int(np.floor(x)) - pad, int(np.floor(y)) - pad
    out_w, out_h = int(np.ceil(x + w)) + pad - x0, int(np.ceil(y + h)) + pad - y0
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    total = np.zeros((out_h * DRAW_SCALE, out_w * DRAW_SCALE), np.float32)
    sides = np.array([x, y, x + w, y + h]) + unit_displacements() * np.asarray(edge_blur)
    for left, top, right, bottom in sides:
        fx, fy = cols / (right - left), rows / (bottom - top)
        to_x = [fx / DRAW_SCALE, 0, fx * (x0 + 0.5 / DRAW_SCALE - left) - 0.5]
        to_y = [0, fy / DRAW_SCALE, fy * (y0 + 0.5 / DRAW_SCALE - top) - 0.5]
        total += cv2.warpAffine(mask, np.array([to_x, to_y]), total.shape[::-1], flags=flags)
    return cv2.resize(total / len(sides), (out_w, out_h), interpolation=cv2.INTER_AREA), x0, y0
