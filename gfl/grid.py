"""Where the locations of the pyramid lie in the network input. The origin convention lives here."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from gfl.structures import Grid

# Pixel of location 0 for a stride. "corner": mmdet 2 and 3, GFocalV2. "pixel_center": the first
# GFocal fork. "cell_center": NanoDet, FCOS.
ORIGINS: dict[str, Callable[[int], float]] = {
    "corner": lambda stride: 0.0,
    "pixel_center": lambda stride: (stride - 1) / 2,
    "cell_center": lambda stride: stride / 2,
}


@functools.lru_cache(maxsize=64)
def make_grid(
    level_sizes: tuple[tuple[int, int], ...],
    level_strides: tuple[int, ...],
    origin: str = "corner",
    device: torch.device | str = "cpu",
    anchors_per_cell: int = 1,
) -> Grid:
    """The locations of a pyramid, as `compute_grid` makes them, and kept: sizes recur.

    Args and returns: those of `compute_grid`.
    """
    # Inference tensors can not take part in autograd later, and the grid outlives its first use.
    with torch.inference_mode(False), torch.no_grad():
        return compute_grid(level_sizes, level_strides, origin, device, anchors_per_cell)


def compute_grid(
    level_sizes: tuple[tuple[int, int], ...],
    level_strides: tuple[int, ...],
    origin: str = "corner",
    device: torch.device | str = "cpu",
    anchors_per_cell: int = 1,
) -> Grid:
    """The locations of a pyramid, without copies from the host; sizes may be symbols of an export.

    Args:
        level_sizes: (h, w) of each feature map, finest first.
        level_strides: pixels of the network input between neighbours, one a level.
        origin: a name of `ORIGINS`.
        device: where the tensors go.
        anchors_per_cell: how often each place is a location, one after the other.

    Returns:
        `Grid` in pixels of the network input.

    Source: mmdet `AnchorGenerator.grid_priors` (center_offset 0 is "corner").
    """
    centers, strides = [], []
    for (height, width), stride in zip(level_sizes, level_strides, strict=True):
        first = ORIGINS[origin](stride)
        y = torch.arange(height, device=device, dtype=torch.float32) * stride + first
        x = torch.arange(width, device=device, dtype=torch.float32) * stride + first
        centers.append(torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1).reshape(-1, 2))
        strides.append(torch.full((height * width,), float(stride), device=device))
    centers, strides = torch.cat(centers), torch.cat(strides)
    if anchors_per_cell > 1:
        centers = centers.repeat_interleave(anchors_per_cell, 0)
        strides = strides.repeat_interleave(anchors_per_cell, 0)
    return Grid(centers, strides, level_sizes, level_strides, origin, anchors_per_cell)


def check_anchors(grid: Grid, anchors_per_cell: int) -> None:
    """Raises ValueError where a grid has another number of locations at a place."""
    if grid.anchors_per_cell != anchors_per_cell:
        raise ValueError(
            f"the grid has {grid.anchors_per_cell} locations at a place, expected "
            f"{anchors_per_cell}: build the network for this assigner"
        )


def cell_corners(grid: Grid) -> Tensor:
    """(N, 2) x, y of index * stride, whatever the origin: what padding is measured against."""
    offsets = [ORIGINS[grid.origin](stride) for stride in grid.level_strides]
    per_level = zip(grid.centers.split(grid.level_counts), offsets, strict=True)
    return torch.cat([centers - offset for centers, offset in per_level])


def valid_locations(grid: Grid, valid_size: Tensor) -> Tensor:
    """Which locations lie on each image's own padded area rather than on the batch's padding.

    Args:
        grid: N locations.
        valid_size: (B, 2) h, w in pixels.

    Returns:
        (B, N) bool: index < ceil(size / stride) in both directions.

    Source: mmdet `AnchorGenerator.valid_flags`.
    """
    corners = cell_corners(grid)
    return (corners[None, :, 0] < valid_size[:, 1:]) & (corners[None, :, 1] < valid_size[:, :1])
