"""ATSS: cases worked by hand, a plain reference on random scenes, batching, memory, no waiting."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import STRIDES, make_targets, measured, pyramid, random_boxes, random_predictions
from torch.utils._python_dispatch import TorchDispatchMode

from gfl.assigner import ATSSAssigner, in_crowd
from gfl.boxes import xyxy_to_ltrb
from gfl.grid import ORIGINS, make_grid
from gfl.losses import GFLCriterion
from gfl.models.box_representation import GeneralBox
from gfl.structures import Targets

# A plain reference ------------------------------------------------------------------------------


class NearTie(Exception):
    """The scene has a decision that rounding could turn."""


def levels_of(size: tuple[int, int], origin: str):
    """(x, y, stride, x of the cell's corner, y of it) of every location, level by level."""
    height, width = size[0] // 8, size[1] // 8
    for stride in STRIDES:
        offset = ORIGINS[origin](stride)
        yield [
            (column * stride + offset, row * stride + offset, stride, column * stride, row * stride)
            for row in range(height)
            for column in range(width)
        ]
        height, width = (height + 1) // 2, (width + 1) // 2


def iou_of(anchor, box) -> float:
    width = min(anchor[2], box[2]) - max(anchor[0], box[0])
    height = min(anchor[3], box[3]) - max(anchor[1], box[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (anchor, box)]
    return overlap / max(sum(areas) - overlap, 1e-6)


def nearest(locations, box, top_k: int) -> list[int]:
    """Numbers of the `top_k` locations nearest to a box's centre."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    distances = sorted(
        (math.hypot(location[0] - x, location[1] - y), number) for number, location in locations
    )
    if len(distances) > top_k and distances[top_k][0] - distances[top_k - 1][0] < 1e-3:
        raise NearTie
    return [number for _, number in distances[:top_k]]


def plain_atss(size, origin: str, boxes, valid, top_k: int) -> tuple[list[int], list[bool]]:
    """Algorithm 1 of the ATSS paper for one image, in loops: object of each location, validity."""
    levels, everything = [], []
    for level in levels_of(size, origin):
        numbered = list(enumerate(level, len(everything)))
        everything += level
        levels.append([(n, p) for n, p in numbered if p[3] < valid[1] and p[4] < valid[0]])
    owner, best = [-1] * len(everything), [-1.0] * len(everything)
    for row, box in enumerate(boxes):
        chosen = [number for level in levels for number in nearest(level, box, top_k)]
        ious = {}
        for number in chosen:
            x, y, stride = everything[number][:3]
            anchor = (x - 4 * stride, y - 4 * stride, x + 4 * stride, y + 4 * stride)
            ious[number] = iou_of(anchor, box)
        threshold = np.mean(list(ious.values())) + np.std(list(ious.values()), ddof=1)
        for number, iou in ious.items():
            x, y = everything[number][:2]
            margin = min(x - box[0], y - box[1], box[2] - x, box[3] - y)
            if margin > 0 and math.isclose(iou, threshold, rel_tol=1e-5):
                raise NearTie
            if iou > threshold and abs(margin - 0.01) < 1e-4:
                raise NearTie
            if margin > 0.01 and iou >= threshold:
                if math.isclose(iou, best[number], rel_tol=1e-5):
                    raise NearTie
                if iou > best[number]:
                    owner[number], best[number] = row, iou
    return owner, [p[3] < valid[1] and p[4] < valid[0] for p in everything]


SIZES = ((32, 32), (64, 96), (160, 96), (128, 224), (256, 192))


def random_scene(rng: np.random.Generator) -> tuple[tuple[int, int], list, list]:
    """A batch of up to three images: its size, each image's boxes and valid size."""
    size = SIZES[rng.integers(len(SIZES))]
    boxes, valid = [], []
    for _ in range(rng.integers(1, 4)):
        own = [side if rng.random() < 0.5 else int(rng.integers(1, side + 1)) for side in size]
        valid.append(own)
        height, width = own
        image = []
        for _ in range(rng.integers(0, 9) if rng.random() < 0.8 else rng.integers(9, 41)):
            side = {
                0: rng.uniform(1.5, 3, 2),  # tiny
                1: rng.uniform(0.7, 1.6, 2) * [width, height],  # huge, beyond the image
            }.get(rng.integers(6), rng.uniform(4, max(own) / 2 + 4, 2))
            center = rng.uniform(0, 1, 2) * [width, height]
            if rng.random() < 0.1:  # on the padding beside the image's own area
                center = center + rng.uniform(0, 20, 2)
            low, high = center - side / 2, center + side / 2
            if rng.random() < 0.3:  # ends at the left and bottom borders
                low[0], high[1] = 0, height
                high[0], low[1] = max(high[0], 1.37), min(low[1], height - 1.53)
            image.append([*low, *high])
        boxes.append(np.array(image, np.float32).reshape(-1, 4))
    return size, boxes, valid


def assert_slots_hold_the_positives(assignment):
    for image in range(len(assignment.gt_index)):
        slots, positive = assignment.slots[image], assignment.slot_positive[image]
        assert len(set(slots.tolist())) == len(slots)
        want = (assignment.gt_index[image] >= 0).nonzero().flatten().tolist()
        assert sorted(slots[positive].tolist()) == want


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9])
def test_assignment_is_that_of_the_plain_reference(origin, top_k):
    rng = np.random.default_rng([top_k, list(ORIGINS).index(origin)])
    compared = skipped = positives = 0
    for _ in range(60):
        size, boxes, valid = random_scene(rng)
        grid = pyramid(*size, origin)
        assignment = ATSSAssigner(top_k)(grid, make_targets(boxes, valid=valid))
        assert_slots_hold_the_positives(assignment)
        for image in range(len(boxes)):
            try:
                owner, is_valid = plain_atss(
                    size, origin, boxes[image].tolist(), valid[image], top_k
                )
            except NearTie:
                skipped += 1
                continue
            compared += 1
            positives += sum(number >= 0 for number in owner)
            assert assignment.gt_index[image].tolist() == owner
            assert assignment.weight[image].tolist() == [float(value) for value in is_valid]
    print(f"{skipped} of {compared + skipped} images skipped, {positives} positives")
    assert skipped <= 0.05 * (compared + skipped)
    assert positives > compared  # the scenes do test something


# Cases worked by hand ---------------------------------------------------------------------------

# Strides 8 and 16 over 32 x 32 pixels: locations 0 ... 15 at multiples of 8, 16 ... 19 of 16.
SMALL = make_grid(((4, 4), (2, 2)), (8, 16))


def positives_of(assignment, image: int = 0) -> dict[int, int]:
    """Location to object."""
    owner = assignment.gt_index[image].tolist()
    return {location: row for location, row in enumerate(owner) if row >= 0}


def test_positives_are_those_worked_by_hand():
    # Centre (11.5, 8.25), area 17 * 8.5 = 144.5; anchors of side 8 and 16 around the locations.
    #   location     distance    IoU with the box
    #   (8, 8)         3.5       64 / 144.5 = 0.443 (its anchor lies in the box)
    #   (16, 8)        4.5       64 / 144.5 = 0.443
    #   (8, 16)        8.5       8 * 0.5 / (64 + 144.5 - 4) = 0.020         next: (8, 0) at 9.0
    #   (16, 16)       9.0       12 * 4.5 / (256 + 144.5 - 54) = 0.156
    #   (16, 0)        9.4       12 * 4 / (256 + 144.5 - 48) = 0.136
    #   (0, 16)       13.9       5 * 4.5 / (256 + 144.5 - 22.5) = 0.060     next: (0, 0) at 14.2
    # Mean 0.2095, standard deviation 0.1875, threshold 0.397: the first two, both inside.
    targets = make_targets([[[3, 4, 20, 12.5]]], size=(32, 32))
    assigner = ATSSAssigner(top_k=3, anchor_scale=1.0)
    index, is_candidate = assigner.candidates(SMALL, targets)
    # Location number: row * 4 + column, and 16 + row * 2 + column.
    assert sorted(index.flatten().tolist()) == [5, 6, 9, 17, 18, 19]
    assert is_candidate.all()
    assignment = assigner(SMALL, targets)
    assert positives_of(assignment) == {5: 0, 6: 0}
    assert assignment.weight.tolist() == [[1.0] * 20]


@pytest.mark.parametrize(
    ("left", "inside"), [(7.98, True), (7.995, False), (8.0, False), (8.5, False)]
)
def test_location_must_lie_a_hundredth_of_a_pixel_inside(left, inside):
    # The nearest location is (8, 8); as the only candidate it has the threshold's IoU.
    grid = make_grid(((4, 4),), (8,))
    assignment = ATSSAssigner(top_k=1)(grid, make_targets([[[left, 3, 10, 13]]], size=(32, 32)))
    assert positives_of(assignment) == ({5: 0} if inside else {})


def test_object_between_all_locations_has_no_positive():
    # Locations at multiples of 8; none lies in 1 ... 7.5.
    assignment = ATSSAssigner()(SMALL, make_targets([[[1, 1, 7.5, 6.5]]], size=(32, 32)))
    assert positives_of(assignment) == {}


@pytest.mark.parametrize("top_k", [1, 2, 3, 4, 9])
def test_candidates_are_the_nearest_columns(top_k):
    # One row of locations at 0, 8, ..., 88. The centre 27.2 lies between 24 and 32.
    grid = make_grid(((1, 12),), (8,))
    targets = make_targets([[[25.2, -2, 29.2, 2]]], size=(8, 96))
    index, _ = ATSSAssigner(top_k).candidates(grid, targets)
    order = [3, 4, 2, 5, 1, 6, 0, 7, 8]  # distances 3.2, 4.8, 11.2, 12.8, ...
    assert sorted(index.flatten().tolist()) == sorted(order[:top_k])


def test_location_claimed_twice_goes_to_the_higher_iou():
    # Both centres are (8, 8), whose anchor is 64 wide: IoU 144 / 4096 and 256 / 4096.
    grid, small, large = make_grid(((3, 3),), (8,)), [2, 2, 14, 14], [0, 0, 16, 16]
    assigner = ATSSAssigner(top_k=1)
    assert positives_of(assigner(grid, make_targets([[small, large]], size=(24, 24)))) == {4: 1}
    assert positives_of(assigner(grid, make_targets([[large, small]], size=(24, 24)))) == {4: 0}


def test_location_claimed_by_equal_boxes_goes_to_the_first():
    box = [3.0, 4.0, 20.0, 12.5]
    assigner = ATSSAssigner(top_k=3, anchor_scale=1.0)
    assignment = assigner(SMALL, make_targets([[[24, 24, 31, 31], box, box]], size=(32, 32)))
    assert {row for location, row in positives_of(assignment).items() if location in (5, 6)} == {1}
    assert 2 not in positives_of(assignment).values()


# Empty images, batches, padding -----------------------------------------------------------------


def test_batch_without_objects_is_background():
    grid = pyramid(64, 96)
    assignment = ATSSAssigner()(grid, make_targets([[], []], valid=[[64, 96], [32, 64]]))
    assert (assignment.gt_index == -1).all()
    assert assignment.slots.shape == assignment.slot_positive.shape == (2, 0)
    # 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2 + 1 locations; of them 4 * 8 + 2 * 4 + 1 * 2 + 1 + 1 are valid.
    assert assignment.weight.sum(1).tolist() == [129, 44]
    assert set(assignment.weight.flatten().tolist()) == {0, 1}


def test_image_without_objects_beside_one_with_objects_is_background():
    grid = pyramid(64, 96)
    assignment = ATSSAssigner()(grid, make_targets([[[10, 10, 50, 50]], []], size=(64, 96)))
    assert len(positives_of(assignment, 0)) == assignment.slot_positive[0].sum() > 0
    assert positives_of(assignment, 1) == {}
    assert not assignment.slot_positive[1].any()
    assert (assignment.weight == 1).all()


def test_of_equally_near_locations_the_same_are_candidates_whatever_the_padding():
    """Centre (12, 20): four of P3's locations are 4 sqrt 2 away, eight more 4 sqrt 10: of these
    five are candidates."""
    images = []
    for side in (64, 320):
        grid = pyramid(side, side)
        targets = make_targets([[[0, 0, 24, 40]]], size=(64, 64), valid=[[64, 64]])
        centers, strides = grid.centers.tolist(), grid.strides.tolist()
        positives = positives_of(ATSSAssigner()(grid, targets))
        images.append([(*centers[location], strides[location]) for location in positives])
    assert images[0] == images[1] and len(images[0]) > 4


def test_rows_that_are_not_present_claim_nothing():
    targets = make_targets([[[10, 10, 50, 50], [30, 12, 80, 60]]], size=(64, 96))
    absent = replace(targets, present=torch.tensor([[True, False]]))
    alone = make_targets([[[10, 10, 50, 50]]], size=(64, 96))
    assigner, grid = ATSSAssigner(), pyramid(64, 96)
    assert set(positives_of(assigner(grid, targets)).values()) == {0, 1}
    assert torch.equal(assigner(grid, absent).gt_index, assigner(grid, alone).gt_index)


@pytest.mark.parametrize(("count", "slots"), [(1, 9 + 9 + 6 + 2 + 1), (4, 4 * 27), (9, 129)])
def test_there_is_a_slot_for_each_candidate_but_not_more_than_locations(count, slots):
    targets = make_targets([random_boxes(count, 64, 96)], size=(64, 96))
    assignment = ATSSAssigner()(pyramid(64, 96), targets)
    assert assignment.slots.shape == (1, slots)
    assert_slots_hold_the_positives(assignment)


def images_of(targets: Targets, rows: slice, extra: int) -> Targets:
    """Some images of a batch, with their own G plus `extra` padding rows."""
    count = int(targets.present[rows].sum(1).max())

    def padded(value):
        value = value[rows, :count]
        filler = value.new_zeros(len(value), extra, *value.shape[2:])
        return torch.cat((value, filler), 1)

    return Targets(
        padded(targets.boxes),
        padded(targets.labels),
        padded(targets.present),
        targets.valid_size[rows],
        targets.ignore_boxes[rows],
        targets.ignore_present[rows],
    )


@pytest.mark.parametrize("extra", [0, 1, 7])
def test_image_is_assigned_alike_alone_in_a_batch_and_with_any_padding(extra):
    grid = pyramid(320, 256)
    boxes = [random_boxes(count, 256, 224, seed=count) for count in (12, 0, 3, 25)]
    valid = [[320, 256], [256, 224], [256, 256], [288, 224]]
    targets = make_targets(boxes, valid=valid)
    together = ATSSAssigner()(grid, images_of(targets, slice(None), extra))
    assert together.slot_positive.any(1).tolist() == [True, False, True, True]
    for image in range(4):
        alone = ATSSAssigner()(grid, images_of(targets, slice(image, image + 1), extra))
        assert torch.equal(alone.gt_index[0], together.gt_index[image])
        assert torch.equal(alone.weight[0], together.weight[image])
        slots = [
            set(a.slots[i][a.slot_positive[i]].tolist()) for a, i in ((alone, 0), (together, image))
        ]
        assert slots[0] == slots[1]


# Crowd regions ----------------------------------------------------------------------------------


def with_crowds(targets, crowds: list):
    """The same targets with crowd regions, one list of boxes an image."""
    count = max(len(image) for image in crowds)
    boxes, present = torch.zeros(len(crowds), count, 4), torch.zeros(len(crowds), count).bool()
    for row, image in enumerate(crowds):
        if image:
            boxes[row, : len(image)] = torch.tensor(image)
            present[row, : len(image)] = True
    return replace(targets, ignore_boxes=boxes, ignore_present=present)


# Anchors of side 8 and 16 around the locations of SMALL, and the region (5, 0) to (24, 12).
#   row y = 0, 8 x columns 0, 8, 16, 24 of stride 8: heights 4 and 8 of 8 lie in it; widths are
#   0 (-4 ... 4), 7 (4 ... 12), 8 (12 ... 20), 4 (20 ... 28). Shares of 64:
#     y = 0: 0, 28, 32, 16     none is more than half (32 is exactly half)
#     y = 8: 0, 56, 64, 32     locations 5 and 6
#   stride 16: (0, 0) 3 x 8, (16, 0) 16 x 8 = 128 of 256: exactly half, (x, 16): height 4. None.
CROWD = [5.0, 0.0, 24.0, 12.0]


@pytest.mark.parametrize("wanted", [True, False])
def test_locations_in_a_crowd_are_those_worked_by_hand_and_the_default_ignores_none(wanted):
    targets = with_crowds(make_targets([[], []], size=(32, 32)), [[CROWD], []])
    assigner = ATSSAssigner(anchor_scale=1.0, ignore_crowd=wanted)
    left_out = [[row == 0 for row in image] for image in assigner(SMALL, targets).weight.tolist()]
    crowd = [wanted and location in (5, 6) for location in range(20)]
    assert left_out == [crowd, [False] * 20]
    assert ATSSAssigner().ignore_crowd is False


def test_regions_are_not_joined_and_their_number_does_not_matter():
    # Location 5's anchor (4, 4) to (12, 12) lies half in each of two neighbours: in neither.
    halves = [[0.0, 0.0, 8.0, 16.0], [8.0, 0.0, 16.0, 16.0]]
    far = [[28.0, 28.0, 30.0, 30.0]] * 20
    plain = make_targets([[]], size=(32, 32))
    assert not in_crowd(SMALL, with_crowds(plain, [halves]), 1.0)[0, 5]
    found = in_crowd(SMALL, with_crowds(plain, [[*far, CROWD]]), 1.0)  # beyond the first chunk
    assert found[0].nonzero().flatten().tolist() == [5, 6]
    padding = with_crowds(plain, [[CROWD]])
    padding.ignore_present[:] = False
    assert not in_crowd(SMALL, padding, 1.0).any()


def test_a_positive_in_a_crowd_stays_positive():
    # The object of the first hand-worked case owns locations 5 and 6; the crowd covers all.
    targets = with_crowds(
        make_targets([[[3, 4, 20, 12.5]]], size=(32, 32)), [[[-99.0, -99.0, 99.0, 99.0]]]
    )
    assignment = ATSSAssigner(top_k=3, anchor_scale=1.0, ignore_crowd=True)(SMALL, targets)
    assert positives_of(assignment) == {5: 0, 6: 0}
    assert assignment.weight.tolist() == [[float(number in (5, 6)) for number in range(20)]]


def test_a_crowd_takes_its_locations_out_of_the_classification_loss():
    """With and without: the loss differs by exactly the terms of the two locations."""
    predictions = random_predictions(SMALL, num_images=1, reg_max=2)
    targets = with_crowds(make_targets([[]], size=(32, 32)), [[CROWD]])
    losses = {}
    for ignore in (False, True):
        criterion = GFLCriterion(ATSSAssigner(anchor_scale=1.0, ignore_crowd=ignore), GeneralBox(2))
        losses[ignore] = criterion(predictions, targets)["loss_cls"]
    logits = predictions.cls_logits[0, [5, 6]]
    terms = torch.nn.functional.softplus(logits) * logits.sigmoid().square()  # QFL of label 0
    assert (losses[False] - losses[True]).item() == pytest.approx(terms.sum().item(), rel=1e-4)
    losses[True].backward()
    rows = predictions.cls_logits.grad[0].abs().sum(-1)
    assert [location for location in range(20) if rows[location] == 0] == [5, 6]


# Memory -----------------------------------------------------------------------------------------

MEASURE_MEMORY = """
import torch
from builders import make_targets, pyramid, random_boxes
from gfl.assigner import ATSSAssigner, in_crowd

torch.set_num_threads(1)
grid = pyramid(800, 1344)
ATSSAssigner()(grid, make_targets([random_boxes(2, 800, 1344)], size=(800, 1344)))
for images in (1, 16):
    boxes = [random_boxes(3000, 800, 1344, seed=image) for image in range(images)]
    targets = make_targets(boxes, size=(800, 1344))
    before = mebibytes("VmRSS")
    assignment = ATSSAssigner()(grid, targets)
    assert assignment.slot_positive.any(1).all()
    print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_3000_objects_an_image_take_less_than_a_gibibyte():
    one, sixteen = measured(MEASURE_MEMORY)
    print(f"3000 objects an image: {one:.0f} MiB above the input for 1 image, {sixteen:.0f} for 16")
    assert one < 1024 and sixteen < 1024


MEASURE_CRITERION = """
import torch
from builders import make_targets, pyramid, random_boxes, random_predictions
from gfl.assigner import ATSSAssigner
from gfl.losses import GFLCriterion
from gfl.models.box_representation import GeneralBox

torch.set_num_threads(1)
grid = pyramid(800, 1344)
criterion = GFLCriterion(ATSSAssigner(), GeneralBox(16))
predictions = random_predictions(grid, num_images=1, num_classes=80)
before = mebibytes("VmRSS")
for count in (2, 3000):
    targets = make_targets([random_boxes(count, 800, 1344)], [[0] * count], size=(800, 1344))
    sum(criterion(predictions, targets).values()).backward()
    print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_losses_and_gradients_of_3000_objects_in_an_image_take_less_than_a_gibibyte():
    two, many = measured(MEASURE_CRITERION)
    print(f"criterion and gradients, 800 x 1344: 2 objects {two:.0f} MiB, 3000 objects {many:.0f}")
    assert two < 1024 and many < 1024


# Nothing waits for the device -------------------------------------------------------------------


class NoWaiting(TorchDispatchMode):
    """Fails on operators whose result's shape or value the host must wait for; counts calls."""

    FORBIDDEN = {"nonzero", "masked_select", "_local_scalar_dense", "_unique2", "unique_dim"}
    INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put"}

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.calls.append(name)
        if name in self.FORBIDDEN:
            raise AssertionError(f"{function} waits for the device")
        if name in self.INDEXED:
            indices = [index for index in args[1] if index is not None]
            if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
                raise AssertionError(f"{function} with a mask waits for the device")
        return function(*args, **(kwargs or {}))


def put_by_mask(x):
    x.clone()[x > 1] = torch.ones(1)


WAITING = {
    "nonzero": lambda x: x.nonzero(),
    "where": lambda x: torch.where(x > 1),
    "masked_select": lambda x: x.masked_select(x > 1),
    "item": lambda x: x.sum().item(),
    "if": lambda x: 1 if (x > 1).any() else 0,
    "mask": lambda x: x[x > 1],
    "second mask": lambda x: x.expand(2, 3)[:, x > 1],
    "uint8 mask": lambda x: torch.ops.aten.index.Tensor(x, [(x > 1).to(torch.uint8)]),
    "put by mask": lambda x: x.index_put((x > 1,), torch.ones(2)),
    "assign by mask": put_by_mask,
    "backward of a mask": lambda x: torch.ops.aten.index_put(x, [x > 1], torch.ones(2)),
    "unique": lambda x: x.unique(),
}


@pytest.mark.parametrize("function", WAITING.values(), ids=list(WAITING))
@pytest.mark.filterwarnings("ignore:indexing with dtype torch.uint8")
def test_mode_fails_on_what_waits_for_the_device(function):
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        function(torch.tensor([1.0, 2.0, 3.0]))


def test_mode_sees_the_backward_pass():
    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * grad.sum().item()

    with NoWaiting() as mode:
        loss = Waits.apply(torch.ones(3, requires_grad=True)).sum()
        assert mode.calls
        with pytest.raises(AssertionError, match="waits for the device"):
            loss.backward()


def calls_of_a_step(num_images: int, objects: int) -> list[str]:
    """Operators of criterion and backward, with `objects` boxes in each image."""
    grid = pyramid(96, 128)
    boxes = [random_boxes(objects, 96, 128, seed=image) for image in range(num_images)]
    labels = [[row % 3 for row in range(objects)] for _ in boxes]
    targets = make_targets(boxes, labels, size=(96, 128))
    predictions = random_predictions(grid, num_images)
    targets = with_crowds(targets, [[[0.0, 0.0, 64.0, 64.0]]] * num_images)
    criterion = GFLCriterion(ATSSAssigner(ignore_crowd=True), GeneralBox(16))
    with NoWaiting() as mode:
        sum(criterion(predictions, targets).values()).backward()
    assert predictions.box_logits.grad is not None
    return mode.calls


@pytest.mark.parametrize("objects", [0, 5])
def test_step_never_waits_and_a_larger_batch_takes_no_more_calls(objects):
    one, four = calls_of_a_step(1, objects), calls_of_a_step(4, objects)
    assert "scatter_reduce" in one and "_log_softmax_backward_data" in one
    assert one == four


# Reach ------------------------------------------------------------------------------------------


def test_objects_beyond_the_reach_of_a_level_go_to_the_next_by_hand():
    """64 pixels, as large as an anchor of stride 8: 4 strides from its centre there, 2 at 16."""
    grid, targets = pyramid(256, 256), make_targets([[[96, 96, 160, 160]]], size=(256, 256))

    def strides_of(assigner: ATSSAssigner) -> set[float]:
        positive = assigner(grid, targets).gt_index[0] >= 0
        assert positive.any()
        return set(grid.strides[positive].tolist())

    assert 8.0 in strides_of(ATSSAssigner())
    assert strides_of(ATSSAssigner(reach=3.9)) == {16.0}
    assert strides_of(ATSSAssigner(reach=0.01)) == {128.0}  # of which there is always one


def test_a_thin_object_beyond_every_reach_keeps_its_positives():
    """300 x 10 pixels: 8 strides reach its ends from stride 32 on, whose rows it lies between."""
    grid = pyramid(320, 320)
    thin = make_targets([[[10, 171, 310, 181]]], size=(320, 320))
    plain, limited = ATSSAssigner()(grid, thin), ATSSAssigner(reach=8.0)(grid, thin)
    assert (plain.gt_index >= 0).sum() > 0 and torch.equal(plain.gt_index, limited.gt_index)


def test_positives_lie_within_the_reach_or_on_the_coarsest_level():
    """Each object alone in its image; one that reaches none keeps those of any distance."""
    grid, size = pyramid(320, 416), (320, 416)
    boxes = [box.tolist() for seed in range(4) for box in random_boxes(12, *size, seed=seed)]
    targets = make_targets([[box] for box in boxes], size=size)
    plain, limited = ATSSAssigner()(grid, targets), ATSSAssigner(reach=2.5)(grid, targets)
    reaching = 0
    for image, found in enumerate(limited.gt_index):
        rows = (found >= 0).nonzero()[:, 0]
        ltrb = xyxy_to_ltrb(grid.centers[rows], targets.boxes[image])
        reached = (ltrb.amax(1) <= 2.5 * grid.strides[rows]) | (grid.strides[rows] == 128)
        assert reached.all() or torch.equal(found, plain.gt_index[image])
        assert len(rows) or not (plain.gt_index[image] >= 0).any()
        reaching += bool(reached.all()) and not torch.equal(found, plain.gt_index[image])
    assert reaching > 5
    far = ATSSAssigner(reach=1000.0)(grid, targets)
    assert torch.equal(plain.gt_index, far.gt_index)
