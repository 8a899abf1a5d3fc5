"""Box arithmetic against numbers worked by hand, torchvision, and itself."""

import math

import pytest
import torch
from builders import random_boxes
from conftest import assert_close
from torchvision.ops import box_iou, generalized_box_iou

from gfl.boxes import (
    aligned_giou,
    aligned_iou,
    box_area,
    centerness,
    clip_boxes,
    ltrb_to_xyxy,
    pairwise_iou,
    xyxy_to_ltrb,
)

# name: box, box, IoU, GIoU = IoU - (enclosing - union) / enclosing.
BY_HAND = {
    # Intersection 2 * 2 = 4, union 16 + 16 - 4 = 28, enclosing 6 * 6 = 36: 4/28 - 8/36.
    "overlap": ((0, 0, 4, 4), (2, 2, 6, 6), 1 / 7, 1 / 7 - 2 / 9),
    # Intersection 4 (the inner one), union and enclosing 16 (the outer one).
    "nested": ((1, 1, 3, 3), (0, 0, 4, 4), 1 / 4, 1 / 4),
    # Union 1 + 1, enclosing 3 * 1: 0 - 1/3.
    "apart": ((0, 0, 1, 1), (2, 0, 3, 1), 0, -1 / 3),
    # A common side: union 4 + 4, enclosing 4 * 2, nothing of it uncovered.
    "side by side": ((0, 0, 2, 2), (2, 0, 4, 2), 0, 0),
    # A common corner: union 1 + 1, enclosing 2 * 2: 0 - 2/4.
    "corner to corner": ((0, 0, 1, 1), (1, 1, 2, 2), 0, -1 / 2),
    # A point outside: union 0 + 4, enclosing 4 * 2: 0 - 4/8.
    "point outside": ((4, 0, 4, 0), (0, 0, 2, 2), 0, -1 / 2),
    # Two equal points have neither union nor enclosing area.
    "same point": ((3, 3, 3, 3), (3, 3, 3, 3), 0, 0),
    "identical": ((1, 2, 5, 9), (1, 2, 5, 9), 1, 1),
}


@pytest.mark.parametrize(("first", "second", "iou", "giou"), BY_HAND.values(), ids=list(BY_HAND))
def test_iou_and_giou_are_those_worked_by_hand(first, second, iou, giou):
    boxes1, boxes2 = torch.tensor([first, second]).float(), torch.tensor([second, first]).float()
    assert_close(aligned_iou(boxes1, boxes2), [iou, iou])
    assert_close(aligned_giou(boxes1, boxes2), [giou, giou])


def test_area_is_width_times_height():
    assert_close(box_area(torch.tensor([[1.0, 2.0, 4.0, 10.0], [5.0, 5.0, 5.0, 9.0]])), [24, 0])


def test_iou_and_giou_equal_torchvision_on_random_boxes():
    boxes1 = torch.from_numpy(random_boxes(60, 300, 500, seed=1))
    boxes2 = torch.from_numpy(random_boxes(40, 300, 500, seed=2))
    assert_close(pairwise_iou(boxes1, boxes2), box_iou(boxes1, boxes2))
    giou = aligned_giou(boxes1[:, None], boxes2[None])
    assert_close(giou, generalized_box_iou(boxes1, boxes2))


def test_aligned_iou_is_the_diagonal_of_pairwise_iou():
    boxes1 = torch.from_numpy(random_boxes(50, 200, 200, seed=3))
    boxes2 = torch.from_numpy(random_boxes(50, 200, 200, seed=4))
    assert torch.equal(aligned_iou(boxes1, boxes2), pairwise_iou(boxes1, boxes2).diagonal())


def test_giou_of_a_box_with_itself_is_one():
    boxes = torch.from_numpy(random_boxes(50, 200, 300, seed=5))
    assert_close(aligned_giou(boxes, boxes), torch.ones(50))


def test_distances_to_the_sides_are_those_worked_by_hand():
    # From (10, 20): 6 to the left, 15 up, 20 to the right; the box ends 2 above the point.
    center, box = torch.tensor([10.0, 20.0]), torch.tensor([4.0, 5.0, 30.0, 18.0])
    ltrb = torch.tensor([6.0, 15.0, 20.0, -2.0])
    assert torch.equal(xyxy_to_ltrb(center, box), ltrb)
    assert torch.equal(ltrb_to_xyxy(center, ltrb), box)


def test_distances_and_boxes_are_inverse():
    boxes = torch.from_numpy(random_boxes(100, 400, 600, seed=6))
    centers = torch.rand(100, 2) * 600
    assert_close(ltrb_to_xyxy(centers, xyxy_to_ltrb(centers, boxes)), boxes, atol=1e-4)


def test_clipping_keeps_boxes_within_width_and_height():
    boxes = torch.tensor([[-5.0, -3.0, 20.0, 30.0], [2.0, 3.0, 4.0, 5.0], [17.0, 11.0, 18.0, 12.0]])
    clipped = [[0, 0, 16, 10], [2, 3, 4, 5], [16, 10, 16, 10]]
    assert_close(clip_boxes(boxes, (10, 16)), clipped)


def test_no_boxes_give_no_numbers():
    none, three = torch.zeros(0, 4), torch.rand(3, 4)
    assert aligned_iou(none, none).shape == aligned_giou(none, none).shape == (0,)
    assert box_area(none).shape == (0,)
    assert pairwise_iou(none, three).shape == (0, 3)
    assert pairwise_iou(three, none).shape == (3, 0)
    assert clip_boxes(none, (4, 4)).shape == (0, 4)
    assert ltrb_to_xyxy(none[:, :2], none).shape == xyxy_to_ltrb(none[:, :2], none).shape == (0, 4)


def test_centerness_is_the_one_worked_by_hand():
    ltrb = [
        [3, 7, 3, 7],  # the middle of a box: 1
        [1, 1, 3, 1],  # sqrt(1/3)
        [1, 2, 4, 8],  # sqrt(1/4 * 2/8)
        [8, 4, 2, 1],  # the same seen from the other side
        [0.01, 5, 0.99, 5],  # sqrt(0.01 / 0.99)
        [0, 5, 4, 5],  # on the left edge
        [-1, 5, 4, 5],  # outside, beside it
        [-1, -2, -4, -8],  # nowhere in it
        [0, 0, 0, 0],  # a box without area
    ]
    expected = [1, math.sqrt(1 / 3), 1 / 4, 1 / 4, math.sqrt(1 / 99), 0, 0, 0, 0]
    assert_close(centerness(torch.tensor(ltrb)), expected)


def test_centerness_does_not_depend_on_the_unit_and_falls_from_the_middle_to_the_edges():
    ltrb = torch.rand(50, 4) * 10 + 0.1
    assert_close(centerness(ltrb * 8), centerness(ltrb))
    left = torch.linspace(0, 10, 21)
    across = centerness(torch.stack((left, torch.ones(21), 10 - left, torch.ones(21)), -1))
    assert across[0] == across[20] == 0 and across[10] == 1
    assert (across[:11].diff() > 0).all() and (across[10:].diff() < 0).all()
    assert_close(across, across.flip(0))


def test_centerness_of_nothing_is_nothing():
    assert centerness(torch.zeros(0, 4)).shape == (0,)
    assert centerness(torch.zeros(2, 0, 4)).shape == (2, 0)
