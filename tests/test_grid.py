"""Where locations lie, in which order, and which of them count."""

import pytest
import torch
from conftest import assert_close

from gfl.grid import cell_corners, check_anchors, make_grid, valid_locations

SIZES, STRIDES = ((2, 3), (1, 2)), (8, 16)
# Rows outer, columns inner, x before y; six locations of stride 8, then two of stride 16.
CORNERS = [[0, 0], [8, 0], [16, 0], [0, 8], [8, 8], [16, 8], [0, 0], [16, 0]]


@pytest.mark.parametrize(
    ("origin", "fine", "coarse"),
    [("corner", 0, 0), ("pixel_center", 3.5, 7.5), ("cell_center", 4, 8)],
)
def test_centers_are_those_worked_by_hand(origin, fine, coarse):
    grid = make_grid(SIZES, STRIDES, origin)
    offset = torch.tensor([fine] * 6 + [coarse] * 2)[:, None]
    assert_close(grid.centers, torch.tensor(CORNERS) + offset, rtol=0, atol=0)
    assert_close(grid.strides, [8] * 6 + [16] * 2, rtol=0, atol=0)
    assert grid.level_counts == [6, 2]
    assert_close(cell_corners(grid), CORNERS, rtol=0, atol=0)


@pytest.mark.parametrize("origin", ["corner", "pixel_center", "cell_center"])
def test_valid_locations_are_those_worked_by_hand(origin):
    grid = make_grid(((3, 4), (2, 2)), (8, 16), origin)
    # 12 pixels high: rows at 0 and 8, and at 0. 20 wide: columns at 0, 8, 16, and at 0, 16.
    odd = [1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0, 0, 1, 1, 0, 0]
    # 16 x 16: a row that begins at 16 has no pixel left.
    square = [1, 1, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]
    valid = valid_locations(grid, torch.tensor([[12, 20], [16, 16], [24, 32]]))
    assert_close(valid.int(), [odd, square, [1] * 16])


def test_grid_made_in_inference_mode_takes_part_in_autograd_later():
    sizes = ((3, 5), (7, 1))  # used by no other test: the first call is the one that makes it
    with torch.inference_mode():
        grid = make_grid(sizes, STRIDES)
    factor = torch.ones_like(grid.centers, requires_grad=True)
    (factor * grid.centers).sum().backward()
    assert torch.equal(factor.grad, grid.centers)


def test_grid_is_made_once_for_the_same_arguments():
    grid = make_grid(SIZES, STRIDES, "cell_center")
    assert make_grid(SIZES, STRIDES, "cell_center") is grid
    assert make_grid(SIZES, STRIDES, "pixel_center") is not grid


def test_every_level_needs_a_stride():
    with pytest.raises(ValueError, match="zip"):
        make_grid(SIZES, (8,))


def test_anchors_of_a_place_are_locations_one_after_the_other():
    plain, grid = make_grid(SIZES, STRIDES), make_grid(SIZES, STRIDES, anchors_per_cell=3)
    assert grid.level_counts == [18, 6]
    assert_close(grid.centers, [corner for corner in CORNERS for _ in range(3)], rtol=0, atol=0)
    assert_close(grid.strides, [8] * 18 + [16] * 6, rtol=0, atol=0)
    for valid_size in ([[12, 20]], [[16, 16]]):
        one = valid_locations(plain, torch.tensor(valid_size))
        three = valid_locations(grid, torch.tensor(valid_size))
        assert torch.equal(three, one.repeat_interleave(3, 1))
    centered = make_grid(SIZES, STRIDES, "cell_center", anchors_per_cell=3)
    assert torch.equal(cell_corners(centered), cell_corners(grid))


def test_grid_of_another_number_of_anchors_is_refused():
    check_anchors(make_grid(SIZES, STRIDES), 1)
    with pytest.raises(ValueError, match="the grid has 1 locations at a place, expected 9"):
        check_anchors(make_grid(SIZES, STRIDES), 9)
