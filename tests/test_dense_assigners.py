"""What FCOS's and RetinaNet's assignment share: chunks, batches, order, memory, waiting."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import make_targets, measured, pyramid, random_boxes, random_predictions
from test_assigner import NoWaiting, images_of, with_crowds

from gfl.assigner import (
    ATSSAssigner,
    FCOSAssigner,
    RetinaNetAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
    dense,
)
from gfl.build import BOX_REPRESENTATIONS
from gfl.grid import compute_grid
from gfl.losses import GFLCriterion
from gfl.quality import QUALITY_MODES
from gfl.structures import Predictions

ASSIGNERS = [FCOSAssigner, RetinaNetAssigner]
EVERY = [ATSSAssigner, *ASSIGNERS]


def grid_for(assigner, height: int, width: int):
    """P3 to P7 with as many anchors at each place as the assigner has."""
    cells = pyramid(height, width)
    return compute_grid(
        cells.level_sizes, cells.level_strides, anchors_per_cell=assigner.anchors_per_cell
    )


def assert_same(one, other) -> None:
    assert torch.equal(one.gt_index, other.gt_index)
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.slots, other.slots)
    assert torch.equal(one.slot_positive, other.slot_positive)


def scene(height=128, width=160):
    """Three images of 14, 0 and 5 objects, one of them smaller than the batch."""
    boxes = [random_boxes(count, height, width, seed=count) for count in (14, 0, 5)]
    return make_targets(boxes, valid=[[128, 160], [96, 160], [100, 120]])


@pytest.mark.parametrize("make", ASSIGNERS)
@pytest.mark.parametrize("objects_at_once", [1, 2, 5])
def test_chunks_of_objects_give_the_same_assignment(make, objects_at_once, monkeypatch):
    targets, assigner = scene(), make()
    grid = grid_for(assigner, 128, 160)
    whole = assigner(grid, targets)
    assert len(list(dense.object_chunks(grid, targets))) == 1
    pairs = objects_at_once * 3 * grid.strides.shape[0]
    monkeypatch.setattr(dense, "MAX_PAIRS", pairs)
    chunks = list(dense.object_chunks(grid, targets))
    assert len(chunks) == -(-14 // objects_at_once)
    assert_same(assigner(grid, targets), whole)
    monkeypatch.setattr(dense, "MAX_PAIRS", 1)  # less than one object takes
    assert_same(assigner(grid, targets), whole)
    assert (whole.gt_index >= 0).any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("make", ASSIGNERS)
def test_ties_between_chunks_are_those_within_one(make, monkeypatch):
    targets = make_targets([[[20, 20, 90, 80]] * 3 + [[0, 0, 60, 60]]], size=(96, 128))
    assigner = make()
    grid = grid_for(assigner, 96, 128)
    whole = assigner(grid, targets)
    monkeypatch.setattr(dense, "MAX_PAIRS", 1)
    assert_same(assigner(grid, targets), whole)
    assert set(whole.gt_index.unique().tolist()) <= {-1, 0, 2, 3}


@pytest.mark.parametrize("make", ASSIGNERS)
@pytest.mark.parametrize("extra", [0, 3])
def test_image_is_assigned_alike_alone_in_a_batch_and_with_any_padding(make, extra):
    targets, assigner = scene(), make()
    grid = grid_for(assigner, 128, 160)
    together = assigner(grid, images_of(targets, slice(None), extra))
    for image in range(3):
        alone = assigner(grid, images_of(targets, slice(image, image + 1), extra))
        assert torch.equal(alone.gt_index[0], together.gt_index[image])
        assert torch.equal(alone.weight[0], together.weight[image])


@pytest.mark.parametrize("make", EVERY)
def test_order_of_objects_does_not_matter_where_they_share_nothing(make):
    """Three objects apart: locations of each are the same in every order."""
    boxes = torch.tensor([[8.0, 8, 70, 60], [90, 10, 150, 110], [10, 80, 60, 120]])
    assigner = make()
    grid = grid_for(assigner, 128, 160)
    first = assigner(grid, make_targets([boxes], size=(128, 160)))
    owned = first.gt_index[0].unique().tolist()
    assert owned == [-1, 0, 1, 2]
    for order in ([2, 0, 1], [1, 2, 0], [2, 1, 0]):
        other = assigner(grid, make_targets([boxes[order]], size=(128, 160)))
        numbers = torch.tensor([*order, -1])  # row -1 is background
        assert torch.equal(numbers[other.gt_index], first.gt_index)
        assert torch.equal(other.weight, first.weight)


def test_order_of_overlapping_objects_does_not_matter_to_fcos():
    """The smallest area wins in every order, as long as areas differ."""
    boxes = torch.from_numpy(random_boxes(12, 128, 160, seed=3))
    grid = grid_for(FCOSAssigner, 128, 160)
    first = FCOSAssigner()(grid, make_targets([boxes], size=(128, 160)))
    order = torch.randperm(12)
    other = FCOSAssigner()(grid, make_targets([boxes[order]], size=(128, 160)))
    numbers = torch.cat((order, torch.tensor([-1])))
    assert torch.equal(numbers[other.gt_index], first.gt_index) and (first.gt_index >= 0).any()


@pytest.mark.parametrize("make", ASSIGNERS)
def test_batch_without_objects_is_background(make):
    assigner = make()
    grid = grid_for(assigner, 64, 96)
    assignment = assigner(grid, make_targets([[], []], valid=[[64, 96], [32, 64]]))
    assert (assignment.gt_index == -1).all() and not assignment.slot_positive.any()
    # 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 places; of them 4 * 8 + 2 * 4 + 1 * 2 + 1 + 1 are valid.
    anchors = assigner.anchors_per_cell
    assert assignment.weight.sum(1).tolist() == [129 * anchors, 44 * anchors]


@pytest.mark.parametrize("make", ASSIGNERS)
def test_rows_that_are_not_present_claim_nothing(make):
    targets = make_targets([[[10, 10, 50, 50], [30, 12, 80, 60]]], size=(64, 96))
    absent = replace(targets, present=torch.tensor([[True, False]]))
    alone = make_targets([[[10, 10, 50, 50]]], size=(64, 96))
    assigner = make()
    grid = grid_for(assigner, 64, 96)
    assert set(assigner(grid, targets).gt_index.flatten().tolist()) == {-1, 0, 1}
    assert_same(assigner(grid, absent), assigner(grid, alone))


@pytest.mark.parametrize("make", ASSIGNERS)
def test_crowds_take_background_out_of_the_loss_where_it_is_wanted(make):
    """Half of the image is a crowd region: its background has no weight, its positives keep it."""
    targets = make_targets([[[8, 8, 60, 60], [90, 10, 150, 110]]], size=(128, 160))
    crowded = with_crowds(targets, [[[-2000.0, -2000.0, 80.0, 2000.0]]])
    plain, ignoring = make(), make(ignore_crowd=True)
    grid = grid_for(plain, 128, 160)
    want, got = plain(grid, crowded), ignoring(grid, crowded)
    assert_same(want, plain(grid, targets))
    assert torch.equal(got.gt_index, want.gt_index)
    # Squares whose larger part lies left of 80: those of locations left of it.
    left = (grid.centers[:, 0] < 80)[None] & (want.gt_index < 0)
    assert torch.equal(got.weight, want.weight.masked_fill(left, 0))
    positive = want.gt_index >= 0
    assert (got.weight[positive] == 1).all() and positive[:, grid.centers[:, 0] < 80].any()


@pytest.mark.parametrize("make", [ATSSAssigner, FCOSAssigner])
def test_grid_with_several_anchors_is_refused_by_assigners_of_one(make):
    targets = make_targets([[[10, 10, 50, 50]]], size=(64, 96))
    with pytest.raises(ValueError, match="the grid has 9 locations at a place, expected 1: build"):
        make()(grid_for(RetinaNetAssigner, 64, 96), targets)


# Nothing waits for the device ---------------------------------------------------------------------


def mode_predictions(grid, box, quality, num_images: int) -> Predictions:
    """Leaf logits of the channels that a mode has."""
    count = grid.strides.shape[0]
    base = random_predictions(grid, num_images)
    box_logits = torch.randn(num_images, count, box.channels, requires_grad=True)
    logits = None
    if quality.branch or quality.predictor:
        logits = torch.randn(num_images, count, 1, requires_grad=True)
    return Predictions(base.cls_logits, box_logits, grid, logits)


def calls_of_a_step(make, box, quality, num_images: int, objects: int) -> list[str]:
    assigner = make(ignore_crowd=True)
    grid = grid_for(assigner, 96, 128)
    boxes = [random_boxes(objects, 96, 128, seed=image) for image in range(num_images)]
    targets = make_targets(boxes, [[row % 3 for row in range(objects)] for _ in boxes])
    targets = with_crowds(targets, [[[0.0, 0.0, 64.0, 64.0]]] * num_images)
    predictions = mode_predictions(grid, box, quality, num_images)
    criterion = GFLCriterion(assigner, box, quality=quality)
    with NoWaiting() as mode:
        losses = criterion(predictions, targets)
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    for logits in (predictions.cls_logits, predictions.box_logits, predictions.quality_logits):
        assert logits is None or logits.grad.isfinite().all()
    return mode.calls


@pytest.mark.parametrize("make", [*EVERY, SimOTAAssigner, TaskAlignedAssigner])
@pytest.mark.parametrize("quality", QUALITY_MODES)
def test_step_of_every_mode_never_waits_and_a_larger_batch_takes_no_more_calls(make, quality):
    for part in BOX_REPRESENTATIONS.values():
        for objects in (0, 4):
            one = calls_of_a_step(make, part(), QUALITY_MODES[quality], 1, objects)
            four = calls_of_a_step(make, part(), QUALITY_MODES[quality], 4, objects)
            assert one == four


# Memory -------------------------------------------------------------------------------------------

MEASURE_MEMORY = """
import torch
from builders import make_targets, random_boxes
from test_dense_assigners import grid_for
from gfl import assigner as parts

torch.set_num_threads(1)
assigner, images, objects = getattr(parts, sys.argv[1])(), int(sys.argv[2]), int(sys.argv[3])
grid = grid_for(assigner, 800, 1344)
boxes = [random_boxes(objects, 800, 1344, seed=image) for image in range(images)]
targets = make_targets(boxes, size=(800, 1344))
before = mebibytes("VmRSS")
assignment = assigner(grid, targets)
assert assignment.slot_positive.any(1).all()
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "images", "objects"),
    [
        pytest.param("FCOSAssigner", 1, 3000, marks=pytest.mark.slow),
        pytest.param("RetinaNetAssigner", 1, 50, marks=pytest.mark.slow),
        pytest.param("FCOSAssigner", 16, 3000, marks=pytest.mark.slow),
        pytest.param("RetinaNetAssigner", 1, 3000, marks=pytest.mark.slow),
        pytest.param("RetinaNetAssigner", 16, 100, marks=pytest.mark.slow),
    ],
)
def test_many_objects_take_less_than_a_gibibyte(name, images, objects):
    [taken] = measured(MEASURE_MEMORY, name, images, objects)
    print(f"{name}, {images} images of {objects} objects at 800 x 1344: {taken:.0f} MiB")
    assert taken < 1024
