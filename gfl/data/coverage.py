"""Whether the side distributions can express the boxes of a data set."""

import math
from typing import NamedTuple

import numpy as np


class LevelCoverage(NamedTuple):
    """The boxes of one pyramid level.

    Attributes:
        stride: of the level, pixels.
        edges: four for each box of the level.
        exceeding: those that lie beyond reg_max.
        reg_max: of the model.
        needed: the reg_max that reaches all edges.
        is_coarsest: whether a coarser level would take some of its boxes.
    """

    stride: int
    edges: int
    exceeding: int
    reg_max: int
    needed: int
    is_coarsest: bool

    @property
    def advice(self) -> str:
        """In words."""
        share = 100 * self.exceeding / max(self.edges, 1)
        more = " or add a level" if self.is_coarsest else ""
        return (
            f"{share:.3g} % of the edges at stride {self.stride} ({self.exceeding} of "
            f"{self.edges}) exceed reg_max {self.reg_max}: use model.reg_max={self.needed}{more}"
        )


def reg_max_coverage(
    boxes: np.ndarray,
    sizes: np.ndarray,
    train_size: tuple[int, int],
    strides: tuple[int, ...],
    anchor_scale: float,
    reg_max: int,
    bin_width: float = 1.0,
) -> list[LevelCoverage]:
    """Count, level by level, the box edges that a side distribution can not reach.

    The assigner's own choice depends on every location; here a box belongs to the level whose
    anchor (side anchor_scale * stride) is nearest to it in size, on a logarithmic scale: that is
    where ATSS finds its highest IoUs. Edges are seen from the centre of the box, the best case.

    Args:
        boxes: (m, 4) xyxy, pixels of their image.
        sizes: (m, 2) h, w of the image of each box.
        train_size: bounds of the (short, long) side after resizing, pixels.
        strides: of the levels, pixels.
        anchor_scale: anchor side in strides.
        reg_max: number of the last bin.
        bin_width: distance between bins, in strides.
    """
    level, distances = box_distances(boxes, sizes, train_size, strides, anchor_scale, bin_width)
    found = []
    for number, stride in enumerate(strides):
        here = distances[level == number]
        needed = max(math.ceil(here.max(initial=0)), reg_max)
        exceeding = 2 * int((here > reg_max).sum())
        coarsest = stride == max(strides)
        found.append(LevelCoverage(stride, 2 * here.size, exceeding, reg_max, needed, coarsest))
    return found


def box_distances(
    boxes: np.ndarray,
    sizes: np.ndarray,
    train_size: tuple[int, int],
    strides: tuple[int, ...],
    anchor_scale: float,
    bin_width: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """The level of each box, and how far its sides are from its centre.

    Args:
        boxes, sizes, train_size, strides, anchor_scale, bin_width: see `reg_max_coverage`.

    Returns:
        (m,) numbers of levels, and (m, 2) half widths and heights in bins of that level.
    """
    short, long = train_size
    sizes = sizes.astype(np.float64).reshape(-1, 2)
    factor = np.minimum(short / sizes.min(1, initial=np.inf), long / sizes.max(1, initial=0))
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64) * factor[:, None]
    anchors = anchor_scale * np.array(strides, np.float64)
    side = np.sqrt(sides.prod(1))
    level = np.abs(np.log(side[:, None] / anchors)).argmin(1)
    return level, sides / 2 / (bin_width * np.array(strides, np.float64)[level][:, None])
