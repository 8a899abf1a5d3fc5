"""Task-aligned and SimOTA assignment: worked by hand, identities, first steps, memory."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from builders import make_targets, measured, pyramid, random_boxes, random_predictions, tiny_values
from conftest import assert_close
from test_assigner import images_of, with_crowds
from test_dense_assigners import assert_same, scene

from gfl.assigner import SimOTAAssigner, TaskAlignedAssigner, dense
from gfl.assigner.claims import cheapest, resolve_claims
from gfl.boxes import ltrb_to_xyxy
from gfl.build import build_criterion, build_model
from gfl.config import merge_values, parse_config
from gfl.grid import compute_grid, make_grid, valid_locations
from gfl.losses import GFLCriterion
from gfl.models.box_representation import GeneralBox
from gfl.structures import Candidates, Predictions

BOTH = [TaskAlignedAssigner, SimOTAAssigner]

# Worked by hand -----------------------------------------------------------------------------------

# Two rows of four locations: (0, 0), (8, 0), (16, 0), (24, 0), then y = 8.
GRID = make_grid(((2, 4),), (8,))
# All but the two of x = 0 lie inside; its centre is (16, 4).
OBJECT = [4.0, -4.0, 28.0, 12.0]


def part_of(box: list, share: float) -> list:
    """The left part of a box: its IoU with the box is the share."""
    x1, y1, x2, y2 = box
    return [x1, y1, x1 + share * (x2 - x1), y2]


def candidates_of(scores: list, boxes: list) -> Candidates:
    return Candidates(torch.tensor([scores]), torch.tensor([boxes]))


#          outside     (8, 0)      (16, 0)     (24, 0)     outside     three poor ones
SCORES = [[1.0, 0.0], [0.5, 0.9], [0.9, 0.1], [0.2, 0.3], [1.0, 0.0]] + [[0.9, 0.9]] * 3
IOUS = [1.0, 0.8, 0.7, 0.9, 1.0, 0.5, 0.5, 0.5]
HAND = candidates_of(SCORES, [part_of(OBJECT, iou) for iou in IOUS])
# score * IoU^6 of class 0: 0.131072, 0.1058841, 0.1062882, and 0.0140625 of the poor ones.
ALIGNMENT = {1: 0.131072, 3: 0.1062882, 2: 0.1058841, 5: 0.0140625}
ONE = make_targets([[OBJECT]], [[0]], size=(16, 32))


@pytest.mark.parametrize(
    ("top_k", "positives"), [(1, [1]), (2, [1, 3]), (3, [1, 2, 3]), (50, [1, 2, 3, 5, 6, 7])]
)
def test_tal_takes_the_highest_alignments_inside(top_k, positives):
    got = TaskAlignedAssigner(alignment_top_k=top_k)(GRID, ONE, HAND)
    assert (got.gt_index[0] >= 0).nonzero()[:, 0].tolist() == positives
    assert (got.weight == 1).all() and got.score_target is None
    assert got.slots.shape == (1, min(top_k, 8))
    assert got.slots[got.slot_positive].sort().values.tolist() == positives


def test_tal_alignments_are_those_worked_by_hand():
    claims = TaskAlignedAssigner(alignment_top_k=4).claims(GRID, ONE, HAND)
    assert claims.location.tolist() == [[list(ALIGNMENT)]]  # of three equals the first
    assert_close((-claims.cost[0, 0]).exp(), torch.tensor(list(ALIGNMENT.values())))
    assert_close(claims.iou[0, 0], torch.tensor([0.8, 0.9, 0.7, 0.5]))


def test_tal_powers_change_the_order():
    # score^2 * IoU: 0.25 * 0.8, 0.81 * 0.7, 0.04 * 0.9, 0.81 * 0.5
    claims = TaskAlignedAssigner(3, score_power=2, iou_power=1).claims(GRID, ONE, HAND)
    assert claims.location.tolist() == [[[2, 5, 6]]]
    claims = TaskAlignedAssigner(3, score_power=0).claims(GRID, ONE, HAND)
    assert claims.location.tolist() == [[[3, 1, 2]]]


def test_tal_looks_at_the_score_of_the_objects_own_class():
    # Of class 1: 0.9 * 0.262144 = 0.2359, 0.1 * 0.117649 = 0.0118, 0.3 * 0.531441 = 0.1594,
    # and 0.9 / 64 = 0.0141.
    other = replace(ONE, labels=torch.tensor([[1]]))
    claims = TaskAlignedAssigner(4).claims(GRID, other, HAND)
    assert claims.location.tolist() == [[[1, 3, 5, 6]]]


def test_tal_contested_location_goes_to_the_highest_iou_whatever_the_alignment():
    # One place, two objects of the same left and height: 24 and 20 wide; a box of 20.
    wide, narrow = OBJECT, [4.0, -4.0, 24.0, 12.0]
    scores = [[0.9, 0.1]] * 8
    found = candidates_of(scores, [narrow] * 8)
    targets = make_targets([[wide, narrow]], [[0, 1]], size=(16, 32))
    # wide: 0.9 * (20 / 24)^6 = 0.301 at (8, 0), narrow: 0.1 * 1 there.
    claims = TaskAlignedAssigner(1).claims(GRID, targets, found)
    assert claims.location.tolist() == [[[1], [1]]] and claims.cost[0, 0] < claims.cost[0, 1]
    got = TaskAlignedAssigner(1)(GRID, targets, found)
    assert got.gt_index.tolist() == [[-1, 1, -1, -1, -1, -1, -1, -1]]
    # With more claims the wide one keeps what lies outside the narrow one: x = 24 is its edge.
    got = TaskAlignedAssigner(6)(GRID, targets, found)
    assert got.gt_index.tolist() == [[-1, 1, 1, 0, -1, 1, 1, 0]]
    twins = make_targets([[wide, wide]], [[0, 0]], size=(16, 32))
    assert TaskAlignedAssigner(1)(GRID, twins, found).gt_index.max() == 0  # the first of equals


def test_tal_aligned_label_is_the_alignment_scaled_to_the_highest_iou():
    got = TaskAlignedAssigner(3, soft_label="aligned")(GRID, ONE, HAND)
    want = torch.zeros(1, 8)
    for place in (1, 2, 3):
        want[0, place] = ALIGNMENT[place] / ALIGNMENT[1] * 0.9
    assert_close(got.score_target, want)


def test_tal_aligned_label_is_scaled_by_what_the_object_keeps():
    """The best locations of the wide object go to the narrow one, and scale nothing of it."""
    wide, narrow = OBJECT, [4.0, -4.0, 24.0, 12.0]
    boxes = [narrow] * 8  # an IoU of 20 / 24 with the wide one
    boxes[3], boxes[7] = part_of(wide, 0.6), part_of(wide, 0.8)
    targets = make_targets([[wide, narrow]], [[0, 0]], size=(16, 32))
    found = candidates_of([[0.5]] * 8, boxes)
    got = TaskAlignedAssigner(6, soft_label="aligned")(GRID, targets, found)
    assert got.gt_index.tolist() == [[-1, 1, 1, 0, -1, 1, 1, 0]]
    low = 0.8 * (0.6 / 0.8) ** 6
    assert_close(got.score_target, torch.tensor([[0, 1, 1, low, 0, 1, 1, 0.8]]))


def ce(scores: list, label: int) -> float:
    return -sum(math.log(s if c == label else 1 - s) for c, s in enumerate(scores))


# Inside, and within 12 pixels of (16, 4): all six.
SIMOTA_SCORES = [[0.99, 0.01], [0.5, 0.9], [0.8, 0.1], [0.2, 0.3], [0.99, 0.01]] + [[0.4, 0.6]] * 3
SIMOTA_BOXES = [part_of(OBJECT, iou) for iou in IOUS]


def test_simota_costs_and_number_are_those_worked_by_hand():
    # IoUs of its own: 0.8, 0.7, 0.9, 0.5, 0.5, 0.5. All of them add up to 3.9: three positives.
    found = candidates_of(SIMOTA_SCORES, SIMOTA_BOXES)
    claims = SimOTAAssigner().claims(GRID, ONE, found)
    costs = {i: ce(SIMOTA_SCORES[i], 0) - 3 * math.log(IOUS[i]) for i in (1, 2, 3, 5, 6, 7)}
    order = sorted(costs, key=costs.get)
    assert order == [2, 3, 1, 5, 6, 7] and claims.location[0, 0, :6].tolist() == order
    assert_close(claims.cost[0, 0, :6], torch.tensor([costs[i] for i in order]))
    assert claims.wanted[0, 0].tolist() == [True] * 3 + [False] * 5
    got = SimOTAAssigner()(GRID, ONE, found)
    assert got.gt_index.tolist() == [[-1, 0, 0, 0, -1, -1, -1, -1]]


@pytest.mark.parametrize(
    ("top_k", "shares", "number"),
    [
        (10, [0.9, 0.8, 0.7, 0.5, 0.5, 0.5], 3),  # 3.9
        (3, [0.9, 0.8, 0.7, 0.5, 0.5, 0.5], 2),  # 2.4
        (10, [0.3, 0.2, 0.1, 0.1, 0.1, 0.1], 1),  # 0.9: at least one
        (10, [0.0] * 6, 1),
        (10, [1.0] * 6, 6),
    ],
)
def test_simota_takes_as_many_as_its_best_ious_add_up_to_and_at_least_one(top_k, shares, number):
    shares = [1, *shares[:3], 1, *shares[3:]]  # those of x = 0 are not its own
    found = candidates_of(SIMOTA_SCORES, [part_of(OBJECT, share) for share in shares])
    got = SimOTAAssigner(dynamic_top_k=top_k)(GRID, ONE, found)
    assert (got.gt_index >= 0).sum() == number


def test_simota_takes_those_near_the_centre_before_all_others():
    """A row of eight, an object over all of it, and the best predictions at its left end."""
    grid = make_grid(((1, 8),), (8,))
    box = [-4.0, -4.0, 60.0, 4.0]  # centre (28, 0): near are x = 24 and 32, 12 pixels being 1.5
    targets = make_targets([[box]], [[0]], size=(8, 64))
    shares = [0.9, 0.9, 0.2, 0.4, 0.3, 0.1, 0.1, 0.1]
    found = candidates_of([[0.9]] * 2 + [[0.1]] * 6, [part_of(box, share) for share in shares])
    got = SimOTAAssigner()(grid, targets, found)
    # 0.9 + 0.9 + 0.2 + 0.4 + 0.3 + 0.3 = 3.0, with the rounding of floats 2 or 3: 24, 32, then 0.
    positives = (got.gt_index[0] >= 0).nonzero()[:, 0].tolist()
    assert {3, 4} <= set(positives) <= {0, 3, 4}
    # A wider region: 20 pixels hold x = 16 ... 40, all before those at the end.
    wide = SimOTAAssigner(dynamic_top_k=2, center_radius=2.5).claims(grid, targets, found)
    assert wide.location.tolist() == [[[3, 4]]]
    everywhere = SimOTAAssigner(dynamic_top_k=2, center_radius=8).claims(grid, targets, found)
    assert everywhere.location.tolist() == [[[0, 1]]]


def test_simota_contested_location_goes_to_the_lowest_cost():
    wide, narrow = OBJECT, [4.0, -4.0, 24.0, 12.0]
    found = candidates_of([[0.9, 0.1]] * 8, [narrow] * 8)
    targets = make_targets([[wide, narrow]], [[0, 1]], size=(16, 32))
    # wide: -2 log 0.9 - 3 log(20 / 24) = 0.758; narrow: -2 log 0.1 = 4.6 at the same places.
    claims = SimOTAAssigner(dynamic_top_k=2).claims(GRID, targets, found)
    assert claims.wanted.sum(-1).tolist() == [[1, 2]]
    assert_close(claims.cost[0, :, 0], torch.tensor([0.757685, 4.60517]))
    assert claims.location[0, :, 0].tolist() == [1, 1]
    got = SimOTAAssigner(dynamic_top_k=2)(GRID, targets, found)
    assert got.gt_index.tolist() == [[-1, 0, 1, -1, -1, -1, -1, -1]]


def test_object_between_the_locations_has_positives_by_the_centre_prior_alone():
    """Three pixels wide, and no location inside: SimOTA takes the nearest, TAL has none."""
    targets = make_targets([[[2.0, 2.0, 5.0, 5.0]]], [[0]], size=(16, 32))
    boxes = ltrb_to_xyxy(GRID.centers, torch.full((8, 4), 30.0))
    found = Candidates(torch.full((1, 8, 2), 0.01), boxes[None])
    assert (TaskAlignedAssigner()(GRID, targets, found).gt_index == -1).all()
    got = SimOTAAssigner()(GRID, targets, found)  # IoUs are equal: the first location
    assert got.gt_index.tolist() == [[0, -1, -1, -1, -1, -1, -1, -1]]


# Claims -------------------------------------------------------------------------------------------


def test_cheapest_gives_the_first_of_equals_and_orders_every_size():
    cost = torch.tensor([[[2.0, 0.0, -0.0, 1e-40, torch.inf, 2.0, 1e30, 0.0]]])
    assert cheapest(cost, 8).tolist() == [[[1, 2, 7, 3, 0, 5, 6, 4]]]
    assert cheapest(cost, 2).tolist() == [[[1, 2]]] and cheapest(cost, 50).shape == (1, 1, 8)
    assert cheapest(torch.zeros(2, 0, 5), 3).shape == (2, 0, 3)
    many = torch.rand(2, 3, 4000).mul(50).round()  # ties everywhere
    order = many.sort(dim=-1, stable=True).indices
    assert torch.equal(cheapest(many, 100), order[..., :100])


def test_claims_of_any_worth_are_resolved():
    location = torch.tensor([[[0, 1], [0, 2], [1, 2]]])
    worth = torch.tensor([[[-5.0, -1.0], [-4.0, 9.0], [-1.0, -torch.inf]]])
    valid = torch.tensor([[[True, True], [True, False], [True, True]]])
    # 0: -4 beats -5. 1: equal, the first. 2: the claim of 9 is none, that of -inf is one.
    assert resolve_claims(location, worth, valid, 4).tolist() == [[1, 0, 2, -1]]


# Identities ---------------------------------------------------------------------------------------


def random_candidates(grid, num_images=3, num_classes=3, seed=0) -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    count = grid.strides.shape[0]
    scores = torch.rand(num_images, count, num_classes, generator=generator)
    sides = 8 * torch.rand(num_images, count, 4, generator=generator) * grid.strides[:, None]
    return Candidates(scores, ltrb_to_xyxy(grid.centers.expand(num_images, -1, -1), sides))


def every(make, **options):
    """The assigner, and with soft labels where it has them."""
    return make(**options, **({"soft_label": "aligned"} if make is TaskAlignedAssigner else {}))


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("objects_at_once", [0, 1, 2, 5])
def test_chunks_of_objects_give_the_same_assignment(make, objects_at_once, monkeypatch):
    grid, targets, assigner = pyramid(128, 160), scene(), every(make)
    found = random_candidates(grid)
    whole = assigner(grid, targets, found)
    pairs = max(1, objects_at_once * 3 * grid.strides.shape[0])
    monkeypatch.setattr(dense, "MAX_PAIRS", pairs)
    assert len(list(dense.object_chunks(grid, targets))) == -(-14 // max(1, objects_at_once))
    other = assigner(grid, targets, found)
    assert_same(other, whole)
    if whole.score_target is not None:
        assert torch.equal(other.score_target, whole.score_target)
        assert torch.equal(whole.score_target > 0, whole.gt_index >= 0)
    assert (whole.gt_index >= 0).any(1).tolist() == [True, False, True]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("extra", [0, 3])
def test_image_is_assigned_alike_alone_in_a_batch_and_with_any_padding(make, extra):
    grid, targets, assigner = pyramid(128, 160), scene(), make()
    found = random_candidates(grid)
    together = assigner(grid, images_of(targets, slice(None), extra), found)
    for image in range(3):
        row = slice(image, image + 1)
        own = Candidates(found.scores[row], found.boxes[row])
        alone = assigner(grid, images_of(targets, row, extra), own)
        assert torch.equal(alone.gt_index[0], together.gt_index[image])
        assert torch.equal(alone.weight[0], together.weight[image])
    valid = valid_locations(grid, targets.valid_size)
    assert torch.equal(together.weight, valid.float()) and (together.gt_index[~valid] == -1).all()


@pytest.mark.parametrize("make", BOTH)
def test_slots_are_distinct_and_hold_every_positive(make):
    grid, targets = pyramid(128, 160), scene()
    got = make()(grid, targets, random_candidates(grid))
    for image in range(3):
        slots, positive = got.slots[image], got.slot_positive[image]
        assert len(slots.unique()) == len(slots)
        want = (got.gt_index[image] >= 0).nonzero()[:, 0]
        assert torch.equal(slots[positive].sort().values, want)


@pytest.mark.parametrize("make", BOTH)
def test_batch_without_objects_is_background(make):
    grid = pyramid(64, 96)
    targets = make_targets([[], []], valid=[[64, 96], [32, 64]])
    got = every(make)(grid, targets, random_candidates(grid, 2))
    assert (got.gt_index == -1).all() and got.slots.shape == got.slot_positive.shape == (2, 0)
    assert got.weight.sum(1).tolist() == [129, 44]
    assert got.score_target is None or not got.score_target.any()


@pytest.mark.parametrize("make", BOTH)
def test_rows_that_are_not_present_claim_nothing(make):
    grid = pyramid(64, 96)
    found = random_candidates(grid, 1)
    targets = make_targets([[[10, 10, 50, 50], [30, 12, 80, 60]]], size=(64, 96))
    absent = replace(targets, present=torch.tensor([[True, False]]))
    alone = make_targets([[[10, 10, 50, 50]]], size=(64, 96))
    assert set(make()(grid, targets, found).gt_index.flatten().tolist()) == {-1, 0, 1}
    got, want = make()(grid, absent, found), make()(grid, alone, found)
    assert torch.equal(got.gt_index, want.gt_index) and torch.equal(got.weight, want.weight)


@pytest.mark.parametrize("make", BOTH)
def test_crowds_take_background_out_of_the_loss_where_it_is_wanted(make):
    grid = pyramid(128, 160)
    found = random_candidates(grid, 1)
    targets = make_targets([[[8, 8, 60, 60], [90, 10, 150, 110]]], size=(128, 160))
    crowded = with_crowds(targets, [[[-2000.0, -2000.0, 80.0, 2000.0]]])
    want, got = make()(grid, crowded, found), make(ignore_crowd=True)(grid, crowded, found)
    assert_same(want, make()(grid, targets, found))
    assert torch.equal(got.gt_index, want.gt_index)
    left = (grid.centers[:, 0] < 80)[None] & (want.gt_index < 0)
    assert torch.equal(got.weight, want.weight.masked_fill(left, 0)) and left.any()


@pytest.mark.parametrize("make", BOTH)
def test_scores_of_0_and_1_and_boxes_far_away_keep_costs_finite(make):
    grid, targets = pyramid(128, 160), scene()
    count = grid.strides.shape[0]
    for score in (0.0, 1.0):
        scores = torch.full((3, count, 3), score)
        found = Candidates(scores, torch.full((3, count, 4), 1e6))
        got = every(make)(grid, targets, found)
        assert (got.gt_index >= 0).any(1).tolist() == [True, False, True]
        assert got.score_target is None or got.score_target.isfinite().all()


@pytest.mark.parametrize("make", BOTH)
def test_missing_candidates_and_several_anchors_are_refused(make):
    targets, cells = scene(), pyramid(128, 160)
    with pytest.raises(ValueError, match=f"{make.__name__} compares predictions: give it cand"):
        make()(cells, targets)
    grid = compute_grid(cells.level_sizes, cells.level_strides, anchors_per_cell=9)
    with pytest.raises(ValueError, match="the grid has 9 locations at a place, expected 1"):
        make()(grid, targets, random_candidates(grid))


# In the criterion ---------------------------------------------------------------------------------


class Fixed:
    """Gives one assignment, without candidates."""

    anchors_per_cell = 1

    def __init__(self, assignment):
        self.assignment = assignment

    def __call__(self, grid, targets):
        return self.assignment


@pytest.mark.parametrize("make", BOTH)
def test_no_gradient_flows_through_the_choice(make):
    """Losses and gradients are those of the same assignment, had it been known beforehand."""
    grid, targets, box = pyramid(128, 160), scene(), GeneralBox()
    base = random_predictions(grid, 3)
    predictions = Predictions(base.cls_logits, base.box_logits, grid)
    criterion = GFLCriterion(every(make), box)
    found = criterion.candidates(predictions)
    assert not found.scores.requires_grad and not found.boxes.requires_grad
    assert_close(found.scores, predictions.cls_logits.detach().sigmoid())
    ltrb = box.ltrb_cells(predictions.box_logits.detach()) * grid.strides[:, None]
    assert_close(found.boxes[1], ltrb_to_xyxy(grid.centers, ltrb[1]))
    leaves = [predictions.cls_logits, predictions.box_logits]
    losses = criterion(predictions, targets)
    gradients = torch.autograd.grad(sum(losses.values()), leaves)
    fixed = Fixed(every(make)(grid, targets, found))
    wanted = GFLCriterion(fixed, box)(predictions, targets)
    want = torch.autograd.grad(sum(wanted.values()), leaves)
    assert all(torch.equal(losses[name], wanted[name]) for name in wanted)
    assert all(torch.equal(*pair) for pair in zip(gradients, want, strict=True))
    assert all(gradient.any() for gradient in gradients)


def test_aligned_label_is_what_the_class_loss_learns():
    """Where scores are already the labels, the quality focal loss is 0."""
    grid, targets = pyramid(128, 160), scene()
    base = random_predictions(grid, 3)
    aligned = TaskAlignedAssigner(soft_label="aligned")
    criterion = GFLCriterion(aligned, GeneralBox())
    assignment = aligned(grid, targets, criterion.candidates(base))
    labels = torch.zeros(base.cls_logits.shape)  # all objects of the scene are of class 0
    labels[..., 0] = assignment.score_target
    logits = torch.logit(labels.clamp(1e-7, 1 - 1e-7))
    learned = Predictions(logits, base.box_logits, grid)
    fixed = GFLCriterion(Fixed(assignment), GeneralBox())
    assert fixed(learned, targets)["loss_cls"] < 1e-5
    plain = GFLCriterion(Fixed(replace(assignment, score_target=None)), GeneralBox())
    assert plain(learned, targets)["loss_cls"] > 1e-3


# A training from scratch --------------------------------------------------------------------------

# Apart from each other; the last holds one location, (136, 72), alone.
APART = [[8.0, 8, 70, 60], [90, 10, 150, 55], [10, 70, 60, 126], [132, 68, 140, 76]]
NETWORKS = {
    "general": {},
    "gaussian": {"model": {"box": "gaussian"}},
    "dirac": {"model": {"box": "dirac"}, "loss": {"dfl_weight": 0}},
    "branch": {"model": {"quality": "iou_branch"}},
    "guided": {"model": {"quality": "distribution_guided"}},
    "distribution": {"model": {"head": {"score": "distribution"}}},
}


@pytest.mark.parametrize("name", ["tal", "simota"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_object_of_a_fresh_network_has_a_positive(name, network, tmp_path):
    values = merge_values(tiny_values(tmp_path), NETWORKS[network])
    config = parse_config(merge_values(values, {"assigner": {"name": name}}))
    torch.manual_seed(3)
    model, criterion = build_model(config, 3).train(), build_criterion(config)
    targets = make_targets([APART, APART[1:]], [[0, 1, 2, 0], [2, 1, 0]], size=(128, 160))
    with torch.no_grad():
        predictions = model(torch.randn(2, 3, 128, 160))
        found = criterion.candidates(predictions)
        assignment = criterion.assigner(predictions.grid, targets, found)
    assert found.scores.max() < 0.2
    for image, count in enumerate((4, 3)):
        assert assignment.gt_index[image].unique().tolist() == [-1, *range(count)]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("seed", range(5))
def test_objects_apart_have_positives_whatever_boxes_are_predicted(make, seed):
    grid = pyramid(128, 160)
    targets = make_targets([APART], size=(128, 160))
    found = random_candidates(grid, 1, seed=seed)
    found = Candidates(torch.full_like(found.scores, 0.01), found.boxes)
    assert make()(grid, targets, found).gt_index.unique().tolist() == [-1, 0, 1, 2, 3]


@pytest.mark.parametrize("make", BOTH)
@pytest.mark.parametrize("seed", range(3))
def test_scenes_as_full_as_coco_leave_no_object_without_a_positive_at_the_start(make, seed):
    """Eight overlapping objects in a large image, scores of 0.01, sides of about 8 strides."""
    grid = pyramid(800, 1344)
    generator = torch.Generator().manual_seed(seed)
    sides = 8 + 0.3 * torch.randn(1, grid.strides.shape[0], 4, generator=generator)
    boxes = ltrb_to_xyxy(grid.centers[None], sides * grid.strides[:, None])
    found = Candidates(torch.full((1, grid.strides.shape[0], 2), 0.01), boxes)
    targets = make_targets([random_boxes(8, 800, 1344, seed=seed)], size=(800, 1344))
    assert make()(grid, targets, found).gt_index.unique().tolist() == [-1, *range(8)]


def test_network_does_not_depend_on_the_assigner(tmp_path):
    """What is exported is the same for all three."""
    models = []
    for name in ("atss", "tal", "simota"):
        config = parse_config(merge_values(tiny_values(tmp_path), {"assigner": {"name": name}}))
        torch.manual_seed(0)
        models.append(build_model(config, 3).eval())
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        first, *others = (model(images) for model in models)
    for other in others:
        assert torch.equal(first.cls_logits, other.cls_logits)
        assert torch.equal(first.box_logits, other.box_logits)


# Memory -------------------------------------------------------------------------------------------

MEASURE_MEMORY = """
import torch
from builders import make_targets, pyramid, random_boxes
from test_cost_assigners import random_candidates
from gfl import assigner as parts

torch.set_num_threads(1)
assigner, images, objects = getattr(parts, sys.argv[1])(), int(sys.argv[2]), int(sys.argv[3])
grid = pyramid(800, 1344)
boxes = [random_boxes(objects, 800, 1344, seed=image) for image in range(images)]
targets = make_targets(boxes, size=(800, 1344))
found = random_candidates(grid, images, 80)
before = mebibytes("VmRSS")
assignment = assigner(grid, targets, found)
assert assignment.slot_positive.any(1).all()
print(mebibytes("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "images", "objects"),
    [
        pytest.param("SimOTAAssigner", 1, 3000, marks=pytest.mark.slow),
        pytest.param("TaskAlignedAssigner", 1, 3000, marks=pytest.mark.slow),
        pytest.param("SimOTAAssigner", 16, 100, marks=pytest.mark.slow),
        pytest.param("TaskAlignedAssigner", 16, 100, marks=pytest.mark.slow),
    ],
)
def test_many_objects_take_less_than_a_gibibyte(name, images, objects):
    [taken] = measured(MEASURE_MEMORY, name, images, objects)
    print(f"{name}, {images} images of {objects} objects at 800 x 1344: {taken:.0f} MiB")
    assert taken < 1024
