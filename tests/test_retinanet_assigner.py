"""RetinaNet's assignment: cases worked by hand, and mmdet's algorithm in loops on random scenes."""

import math

import numpy as np
import pytest
import torch
from builders import make_targets, pyramid, random_boxes
from conftest import assert_close

from gfl.assigner import RetinaNetAssigner
from gfl.boxes import pairwise_iou
from gfl.grid import compute_grid, make_grid, valid_locations

# One place at (0, 0) with nine anchors; the fourth is the square of 4 * 8 = 32 pixels.
PLACE = make_grid(((1, 1),), (8,), anchors_per_cell=9)
# Widths and heights: flat, square, tall; 32, 32 * 2^(1/3), 32 * 2^(2/3) pixels each.
SIDES = [32.0, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)]
SHAPES = [
    *((side * math.sqrt(2), side / math.sqrt(2)) for side in SIDES),
    *((side, side) for side in SIDES),
    *((side / math.sqrt(2), side * math.sqrt(2)) for side in SIDES),
]


def assign(boxes, grid=PLACE, size=(8, 8), **options) -> tuple[list[int], list[float]]:
    """Object and weight of each anchor, in a batch of one image."""
    assignment = RetinaNetAssigner(**options)(grid, make_targets([boxes], size=size))
    [owner], [weight] = assignment.gt_index.tolist(), assignment.weight.tolist()
    assert assignment.slots.tolist() == [list(range(len(owner)))]
    assert assignment.slot_positive.tolist() == [[row >= 0 for row in owner]]
    return owner, weight


# Anchors ------------------------------------------------------------------------------------------


def test_anchors_are_three_shapes_of_three_sizes_around_the_location():
    anchors = RetinaNetAssigner().anchors(PLACE)
    expected = [[-w / 2, -h / 2, w / 2, h / 2] for w, h in SHAPES]
    assert_close(anchors, expected, atol=1e-5)
    # 45 x 23, 57 x 29, 72 x 36; areas depend on the size alone.
    assert_close(anchors[0], [-22.627417, -11.313708, 22.627417, 11.313708], atol=1e-5)
    sides = anchors[:, 2:] - anchors[:, :2]
    assert_close(sides.prod(1), [side**2 for side in SIDES] * 3, rtol=1e-5)
    assert_close(sides[:, 1] / sides[:, 0], [0.5] * 3 + [1] * 3 + [2] * 3)


def test_anchors_follow_the_order_of_locations_and_grow_with_the_stride():
    grid = make_grid(((1, 2), (1, 1)), (8, 16), "cell_center", anchors_per_cell=9)
    anchors = RetinaNetAssigner(anchor_scale=2.0).anchors(grid)
    assert anchors.shape == (27, 4)
    centers = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert_close(centers, [[4, 4]] * 9 + [[12, 4]] * 9 + [[8, 8]] * 9, atol=1e-5)
    widths = anchors[:, 2] - anchors[:, 0]
    # Half of the sizes above at stride 8, the same at 16.
    assert_close(widths, [w / 2 for w, _ in SHAPES] * 2 + [w for w, _ in SHAPES], rtol=1e-5)


@pytest.mark.parametrize("anchors", [1, 3])
def test_grid_of_another_number_of_anchors_is_refused(anchors):
    grid = compute_grid(((1, 1),), (8,), anchors_per_cell=anchors)
    with pytest.raises(ValueError, match=f"the grid has {anchors} locations at a place"):
        RetinaNetAssigner()(grid, make_targets([[]], size=(8, 8)))


# Thresholds ---------------------------------------------------------------------------------------


def test_positives_background_and_what_lies_between_are_those_worked_by_hand():
    # The object is 28 x 28, area 784, around the location. IoU with anchors of 32^2 = 1024 pixels:
    #   square 784 / 1024 = 0.766; flat and tall: overlap 28 * 22.63 = 633.6,
    #   633.6 / (784 + 1024 - 633.6) = 0.539                                         positive
    # of 1625.5 pixels, 57 x 28.5 and 40.3 x 40.3: 784 / 1625.5 = 0.482               between
    # of 2580.3 pixels: 784 / 2580.3 = 0.304                                       background
    owner, weight = assign([[-14, -14, 14, 14]])
    assert owner == [0, -1, -1] * 3
    assert weight == [1, 0, 1] * 3


@pytest.mark.parametrize(
    ("positive", "negative", "owner", "weight"),
    [(0.5, 0.4, 0, 1), (0.51, 0.4, -1, 0), (0.51, 0.5, -1, 0), (0.52, 0.51, -1, 1)],
)
def test_an_iou_at_a_threshold_is_above_it(positive, negative, owner, weight):
    # Squares of 32 at x = 0 and 8. The object's favourite is the first, IoU 28 / 32; it overlaps
    # the second by 20 * 32 of 28 * 32 + 32 * 32 - 20 * 32 pixels: exactly a half.
    grid = make_grid(((1, 2),), (8,), anchors_per_cell=9)
    owners, weights = assign(
        [[-16, -16, 12, 16]], grid, (8, 16), positive_iou=positive, negative_iou=negative
    )
    assert (owners[3], weights[3]) == (0, 1)
    assert (owners[12], weights[12]) == (owner, weight)


def test_object_takes_its_best_anchor_whatever_the_iou():
    # 44 x 10 = 440 pixels. The first, flat anchor holds it: 440 / 1024 = 0.43, below 0.5 and above
    # 0.4; the other flat ones 0.27 and 0.17; the square 320 / (1024 + 440 - 320) = 0.28.
    owner, weight = assign([[-22, -5, 22, 5]])
    assert owner == [0] + [-1] * 8 and weight == [1.0] * 9
    # 20 x 2 pixels: 0.04 at best, with all of the smallest anchors that hold it. Still positive.
    owner, _ = assign([[-10, -1, 10, 1]])
    assert set(owner) == {0, -1}
    assert all(owner[number] == -1 for number in (1, 2, 4, 5, 7, 8))


def test_all_anchors_of_the_best_iou_are_taken():
    # Squares of 32 at x = 0 and 8, the object one of 32 at x = 4: both have 28 * 32 / 1152 = 0.78.
    # With higher thresholds they are positive as favourites, and what is between has no weight.
    grid = make_grid(((1, 2),), (8,), anchors_per_cell=9)
    owner, weight = assign([[-12, -16, 20, 16]], grid, (8, 16), positive_iou=0.9, negative_iou=0.01)
    assert [number for number, row in enumerate(owner) if row == 0] == [3, 12]
    assert weight == [float(number in (3, 12)) for number in range(18)]


@pytest.mark.parametrize("reverse", [False, True])
def test_favourite_of_two_objects_goes_to_the_last_and_others_to_the_best(reverse):
    # Both objects' best anchor is the square: IoU 1 and 0.766. The flat and tall ones overlap the
    # larger by 0.547 and the smaller by 0.539; the next size 1024 / 1625.5 = 0.63 and 0.48 for the
    # square, and 912.3 / 1737.2 = 0.525 for flat and tall; the last size 0.397: background.
    large, small = [-16, -16, 16, 16], [-14, -14, 14, 14]
    boxes = [small, large] if reverse else [large, small]
    best = int(reverse)
    owner, weight = assign(boxes)
    assert owner == [best, best, -1, 1, best, -1, best, best, -1]
    assert weight == [1.0] * 9


def test_of_equal_objects_the_first_has_the_positives_and_the_last_the_favourites():
    owner, _ = assign([[-14, -14, 14, 14]] * 3)
    assert owner == [0, -1, -1, 2, -1, -1, 0, -1, -1]


def test_object_that_no_anchor_touches_has_none():
    owner, weight = assign([[500, 500, 540, 540], [-14, -14, 14, 14]])
    assert owner == [1, -1, -1] * 3 and weight == [1, 0, 1] * 3
    owner, weight = assign([[500, 500, 540, 540]])
    assert owner == [-1] * 9 and weight == [1.0] * 9


def test_padding_of_the_batch_has_neither_favourites_nor_weight():
    # Three places at x = 0, 8, 16, of which two are the image's own. The object is centred on the
    # third, so that the second has its best valid anchors.
    grid = make_grid(((1, 3),), (8,), anchors_per_cell=9)
    owner, weight = assign([[2, -14, 30, 14]], grid, (8, 10), negative_iou=0.5)
    assert weight == [1.0] * 18 + [0.0] * 9
    # Overlap of the second's square 22 * 28 = 616: 616 / (784 + 1024 - 616) = 0.517. The flat
    # anchor reaches from -14.6 to 30.6: 28 * 22.63, IoU 0.539, the best of the valid ones.
    assert [number for number, row in enumerate(owner) if row == 0] == [9, 12]
    owner, _ = assign([[2, -14, 30, 14]], grid, (8, 10), positive_iou=0.9)
    assert [number for number, row in enumerate(owner) if row == 0] == [9]


# mmdet's algorithm --------------------------------------------------------------------------------


def plain_max_iou(iou: np.ndarray, positive: float, negative: float) -> tuple[list, list]:
    """`MaxIoUAssigner` with min_pos_iou 0 and gt_max_assign_all, in loops over (G, n) IoUs."""
    owner, counts = [], []
    for column in iou.T:
        best = column.max(initial=0)
        owner.append(int(column.argmax()) if len(column) and best >= positive else -1)
        counts.append(best < negative or best >= positive)
    for number, row in enumerate(iou):
        if row.max() > 0:
            for anchor in np.flatnonzero(row == row.max()):
                owner[anchor], counts[anchor] = number, True
    return owner, [float(count) for count in counts]


@pytest.mark.parametrize("thresholds", [(0.5, 0.4), (0.3, 0.3), (0.7, 0.1)])
def test_assignment_is_that_of_the_loops(thresholds):
    assigner = RetinaNetAssigner(3.0, *thresholds)
    positives = left_out = 0
    for seed, size in enumerate(((64, 96), (128, 96), (96, 160)) * 2):
        cells = pyramid(*size)
        grid = compute_grid(cells.level_sizes, cells.level_strides, anchors_per_cell=9)
        valid = [list(size), [size[0] - 24, size[1] - 32]]
        boxes = [random_boxes(count, *size, seed=seed) for count in (9, 3)]
        targets = make_targets(boxes, valid=valid)
        assignment = assigner(grid, targets)
        own = valid_locations(grid, targets.valid_size)
        for image in range(2):
            here = own[image].nonzero().flatten()
            iou = pairwise_iou(torch.from_numpy(boxes[image]), assigner.anchors(grid)[here])
            owner, weight = plain_max_iou(iou.numpy(), *thresholds)
            assert assignment.gt_index[image, here].tolist() == owner
            assert assignment.weight[image, here].tolist() == weight
            assert (assignment.gt_index[image, ~own[image]] == -1).all()
            assert (assignment.weight[image, ~own[image]] == 0).all()
            positives += sum(row >= 0 for row in owner)
            left_out += weight.count(0)
    assert positives > 100 and (left_out > 100) == (thresholds[0] > thresholds[1])
