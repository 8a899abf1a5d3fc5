"""FCOS's assignment: cases worked by hand, and a plain reference on random scenes."""

import math

import numpy as np
import pytest
import torch
from builders import STRIDES, make_targets, pyramid

from gfl.assigner import FCOSAssigner
from gfl.grid import make_grid

# Strides 8 and 16 over 32 x 32 pixels: locations 0 ... 15 at multiples of 8, 16 ... 19 of 16.
SMALL = make_grid(((4, 4), (2, 2)), (8, 16))
# One level: locations 0 ... 24 at multiples of 8, with neither a lower nor an upper bound.
SINGLE = make_grid(((5, 5),), (8,))


def positives(assigner, grid, boxes, size=(40, 40), **targets) -> dict[int, int]:
    """Location to object, in a batch of one image."""
    assignment = assigner(grid, make_targets([boxes], size=size, **targets))
    [owner] = assignment.gt_index.tolist()
    assert assignment.slots.tolist() == [list(range(len(owner)))]
    assert assignment.slot_positive.tolist() == [[row >= 0 for row in owner]]
    return {location: row for location, row in enumerate(owner) if row >= 0}


@pytest.mark.parametrize(
    ("regression_range", "expected"),
    [(1.49, [19]), (1.5, [5, 6, 9, 10, 19]), (1.51, [5, 6, 9, 10])],
)
def test_range_of_a_level_is_inclusive_at_both_ends(regression_range, expected):
    # Centre (12, 12). The longest distance of (8, 8), (16, 8), (8, 16) and (16, 16) is 12 pixels
    # on both levels: at 1.5 strides of 8 it is the last of stride 8 and the first of stride 16.
    # The coarse (0, 0), (16, 0), (0, 16) lie outside the object.
    assigner = FCOSAssigner(regression_range=regression_range)
    found = positives(assigner, SMALL, [[4, 4, 20, 20]], (32, 32))
    assert found == dict.fromkeys(expected, 0)


def test_the_finest_level_has_no_lower_and_the_coarsest_no_upper_bound():
    # 2.5 pixels at most, and 1016 pixels at least, from the locations (8, 8) and (16, 16).
    tiny, huge = [6, 6, 10.5, 10.5], [-1000, -1000, 1032, 1032]
    assert positives(FCOSAssigner(), SMALL, [tiny], (32, 32)) == {5: 0}
    # Of stride 16 all are within 1.5 strides of the centre (16, 16); stride 8 ends at 64 pixels.
    assert positives(FCOSAssigner(), SMALL, [huge], (32, 32)) == dict.fromkeys(range(16, 20), 0)


@pytest.mark.parametrize(
    ("radius", "reach"), [(0.5, 0), (1.0, 0), (1.01, 1), (1.5, 1), (2.0, 1), (2.01, 2)]
)
def test_positives_lie_strictly_within_the_radius_of_the_centre_in_both_directions(radius, reach):
    # The object holds all locations, its centre is the middle one: a square of 2 reach + 1.
    found = positives(FCOSAssigner(center_radius=radius), SINGLE, [[-4, -4, 36, 36]])
    near = range(2 - reach, 3 + reach)
    assert found == {row * 5 + column: 0 for row in near for column in near}


def test_location_on_an_edge_is_outside():
    # (8, 8) and (24, 24) lie on the edges; (8.01, ...) does not.
    assert positives(FCOSAssigner(), SINGLE, [[8, 8, 24, 24]]) == {12: 0}
    assert positives(FCOSAssigner(), SINGLE, [[7.99, 8, 24, 24]]) == {11: 0, 12: 0}


def test_radius_is_measured_in_strides_of_the_location():
    # Half a stride: within 4 pixels of (16, 16) on the fine level, within 8 on the coarse one.
    found = positives(
        FCOSAssigner(center_radius=0.5, regression_range=0.9), SMALL, [[9, 9, 23, 23]], (32, 32)
    )
    assert found == {10: 0}  # its longest distance is 7, within 0.9 * 8 = 7.2 pixels
    found = positives(
        FCOSAssigner(center_radius=0.5, regression_range=0.8), SMALL, [[9, 9, 23, 23]], (32, 32)
    )
    assert found == {19: 0}


@pytest.mark.parametrize("reverse", [False, True])
def test_location_of_several_objects_goes_to_the_smallest_area(reverse):
    # All hold (16, 16) and are centred there; areas 24 * 24, 10 * 40, 30 * 30.
    boxes = [[4, 4, 28, 28], [11, -4, 21, 36], [1, 1, 31, 31]]
    order = [2, 1, 0] if reverse else [0, 1, 2]
    found = positives(FCOSAssigner(), SINGLE, [boxes[i] for i in order])
    # The second is 10 wide: the middle column is its own, the others go to the first.
    middle = {7: 1, 12: 1, 17: 1}
    expected = {location: 0 for location in (6, 8, 11, 13, 16, 18)} | middle
    assert {location: order[row] for location, row in found.items()} == expected


def test_equal_areas_go_to_the_first():
    # 16 * 9 = 12 * 12 = 144.
    boxes = [[8, 11.5, 24, 20.5], [10, 10, 22, 22]]
    assert positives(FCOSAssigner(), SINGLE, boxes)[12] == 0
    assert positives(FCOSAssigner(), SINGLE, boxes[::-1])[12] == 0


def test_smaller_object_of_another_level_takes_nothing():
    # The small object is of stride 8 (8 pixels at most); the large one's positives are coarse.
    small, large = [12, 12, 20, 20], [-20, -20, 52, 52]
    found = positives(FCOSAssigner(regression_range=2.0), SMALL, [small, large], (32, 32))
    assert found == {10: 0, 16: 1, 17: 1, 18: 1, 19: 1}


def test_padding_of_the_batch_has_neither_positives_nor_weight():
    # Valid are columns and rows that begin before 24: four of five.
    targets = make_targets([[[-4, -4, 44, 44]]], valid=[[24, 20]])
    assignment = FCOSAssigner(center_radius=9)(SINGLE, targets)
    valid = [row < 3 and column < 3 for row in range(5) for column in range(5)]
    assert assignment.weight.tolist() == [[float(here) for here in valid]]
    assert (assignment.gt_index >= 0).tolist() == [valid]


def test_levels_of_the_paper():
    """64, 128, 256 and 512 pixels part the levels of strides 8 to 128."""
    grid = pyramid(1024, 1024)
    level = torch.repeat_interleave(torch.arange(5), torch.tensor(grid.level_counts))
    for longest, expected in ((60, 0), (100, 1), (200, 2), (400, 3), (511, 3), (600, 4)):
        # All sides that far from the location (512, 512), which every level has.
        box = [512.0 - longest, 512.0 - longest, 512.0 + longest, 512.0 + longest]
        assignment = FCOSAssigner(center_radius=0.5)(grid, make_targets([[box]], size=(1024, 1024)))
        assert level[assignment.gt_index[0] >= 0].tolist() == [expected], longest


# A plain reference --------------------------------------------------------------------------------


def plain_fcos(size, boxes, valid, radius: float, limits: list[float], offset: float) -> list[int]:
    """The centre box of each level cut to the object, the level's range, the smallest area."""
    owner = []
    height, width = size[0] // 8, size[1] // 8
    for number, stride in enumerate(STRIDES):
        lower, upper = limits[number], limits[number + 1]
        for row in range(height):
            for column in range(width):
                x, y = column * stride + offset * stride, row * stride + offset * stride
                best, winner = math.inf, -1
                for index, (x1, y1, x2, y2) in enumerate(boxes):
                    cx, cy, reach = (x1 + x2) / 2, (y1 + y2) / 2, radius * stride
                    left, right = max(cx - reach, x1), min(cx + reach, x2)
                    top, bottom = max(cy - reach, y1), min(cy + reach, y2)
                    inside = left < x < right and top < y < bottom
                    longest = max(x - x1, y - y1, x2 - x, y2 - y)
                    area = (x2 - x1) * (y2 - y1)
                    if inside and lower <= longest <= upper and area < best:
                        best, winner = area, index
                counts = column * stride < valid[1] and row * stride < valid[0]
                owner.append(winner if counts else -1)
        height, width = (height + 1) // 2, (width + 1) // 2
    return owner


@pytest.mark.parametrize(("origin", "offset"), [("corner", 0.0), ("cell_center", 0.5)])
def test_assignment_is_that_of_the_plain_reference(origin, offset):
    """On quarters of a pixel all is exact, ties included."""
    rng = np.random.default_rng(7)
    found = shared = 0
    for size in ((64, 96), (128, 160), (256, 192)) * 4:
        radius, reach = rng.choice([0.5, 1.5, 2.5]), rng.choice([1.0, 2.0, 8.0])
        limits = [0.0, *(reach * stride for stride in STRIDES[:-1]), math.inf]
        images, valid = [], []
        for _ in range(2):
            own = [int(side * rng.choice([1, 0.75])) for side in size]
            center = rng.integers(0, [own[1], own[0]], (8, 2)) + rng.integers(0, 4, (8, 2)) / 4
            half = rng.integers(6, 2 * max(own), (8, 2)) / 4
            images.append(np.concatenate((center - half, center + half), 1))
            valid.append(own)
        assigner = FCOSAssigner(float(radius), float(reach))
        assignment = assigner(pyramid(*size, origin), make_targets(images, valid=valid))
        for image in range(2):
            expected = plain_fcos(size, images[image], valid[image], radius, limits, offset)
            assert assignment.gt_index[image].tolist() == expected
            found += sum(row >= 0 for row in expected)
            shared += len(set(expected)) > 3
    print(f"{found} positives, {shared} images with three owners or more")
    assert found > 200 and shared > 10  # the scenes do test something
