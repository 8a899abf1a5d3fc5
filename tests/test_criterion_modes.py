"""The terms of a step in the modes that GFL is compared with, worked by hand; gradients."""

import math

import pytest
import torch
from builders import make_targets, pyramid, random_boxes, random_predictions
from conftest import assert_close

from gfl.assigner import (
    ATSSAssigner,
    FCOSAssigner,
    RetinaNetAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
)
from gfl.grid import compute_grid, make_grid
from gfl.losses import GFLCriterion
from gfl.models.box_representation import DiracBox, GaussianBox, GeneralBox
from gfl.quality import QUALITY_MODES, QualityMode
from gfl.structures import Predictions

# A case worked by hand ----------------------------------------------------------------------------

# Four locations: (0, 0), (8, 0), (0, 8), (8, 8). An object of class 1 around the last of them; in
# strides it is 0.25, 0.5, 2.25, 1.5. With one candidate, that location is the only positive.
GRID = make_grid(((2, 2),), (8,))
OBJECT, LABEL = [2.0, 4.0, 18.0, 12.0], 1
# True distances from (1, 1): 0.75, 0.5, 1.25, 0.5.
TRUE = [0.75, 0.5, 1.25, 0.5]
CENTERNESS = math.sqrt(0.75 / 1.25)
# Predicted sides 0.5, 1, 1, 0.25: the box is 0.5, 0, 2, 1.25.
#   intersection (0.5 ... 2) * (0.5 ... 1.25) = 1.125
#   union        1.5 * 1.25 + 2 * 1 - 1.125 = 2.75
#   enclosing    (0.25 ... 2.25) * (0 ... 1.5) = 3
SIDES = [0.5, 1.0, 1.0, 0.25]
IOU = 1.125 / 2.75
GIOU_LOSS = 1 - (IOU - (3 - 2.75) / 3)
# Scores of two classes at the first three locations, and at the positive.
BACKGROUND = [[0.1, 0.2], [0.3, 0.05], [0.01, 0.4]]
POSITIVE = [0.8, 0.6]
QUALITY = 0.35


def focal(score: float, label: int, alpha: float = 0.25, gamma: float = 2.0) -> float:
    """Equation 5 of the focal loss paper."""
    if label:
        return -alpha * (1 - score) ** gamma * math.log(score)
    return -(1 - alpha) * score**gamma * math.log(1 - score)


def bce(score: float, label: float) -> float:
    return -label * math.log(score) - (1 - label) * math.log(1 - score)


BACKGROUND_LOSS = sum(focal(score, 0) for row in BACKGROUND for score in row)
POSITIVE_LOSS = focal(POSITIVE[0], 0) + focal(POSITIVE[1], 1)


def logit(value):
    value = torch.as_tensor(value)
    return torch.log(value / (1 - value))


def hand_predictions(images: int, branch: bool, box=None) -> Predictions:
    """The scores and sides above in each image; sides of 4 strides elsewhere."""
    scores = torch.tensor([[*BACKGROUND, POSITIVE]] * images)
    box = DiracBox() if box is None else box
    box_logits = torch.zeros(images, 4, box.channels)
    step = box.channels // 4
    box_logits[:, 3, ::step] = (torch.tensor(SIDES) / 4).log()
    quality = torch.full((images, 4, 1), 0.9)
    quality[:, 3] = QUALITY
    quality = logit(quality).requires_grad_() if branch else None
    return Predictions(logit(scores).requires_grad_(), box_logits.requires_grad_(), GRID, quality)


def hand_losses(mode: str, boxes: list, box=None, **weights) -> dict[str, float]:
    quality = QUALITY_MODES[mode]
    box = DiracBox() if box is None else box
    criterion = GFLCriterion(ATSSAssigner(top_k=1), box, quality=quality, **weights)
    targets = make_targets(boxes, [[LABEL] * len(image) for image in boxes], size=(16, 16))
    losses = criterion(hand_predictions(len(boxes), quality.branch, box), targets)
    return {name: value.item() for name, value in losses.items()}


def assert_losses(got: dict, want: dict) -> None:
    assert list(got) == list(want)
    assert_close(list(got.values()), list(want.values()))


# mode: weight of the positive's class loss, weight of its box, what a branch learns.
BY_HAND = {
    "none": (1, 1, None),
    "centerness_branch": (1, CENTERNESS, CENTERNESS),
    "iou_branch": (1, IOU, IOU),
    "centerness_guided": (CENTERNESS, CENTERNESS, None),
    "iou_guided": (IOU, IOU, None),
}


@pytest.mark.parametrize(("mode", "worked"), BY_HAND.items(), ids=list(BY_HAND))
def test_terms_are_those_worked_by_hand(mode, worked):
    of_class, of_box, learned = worked
    want = {
        "loss_cls": BACKGROUND_LOSS + of_class * POSITIVE_LOSS,
        "loss_box": 2 * of_box * GIOU_LOSS,  # one positive, whose weight is below the divisor 1
    }
    if learned is not None:
        want["loss_quality"] = bce(QUALITY, learned)
    assert_losses(hand_losses(mode, [[OBJECT]]), want)


@pytest.mark.parametrize(("mode", "worked"), BY_HAND.items(), ids=list(BY_HAND))
def test_terms_of_a_batch_are_divided_by_the_sums_over_its_images(mode, worked):
    """Four images, the last without an object: it counts as one positive, its box not at all."""
    of_class, of_box, learned = worked
    want = {
        "loss_cls": (
            4 * BACKGROUND_LOSS
            + 3 * of_class * POSITIVE_LOSS
            + sum(focal(score, 0) for score in POSITIVE)
        )
        / 4,
        "loss_box": 2 * 3 * of_box * GIOU_LOSS / max(3 * of_box, 1),
    }
    if learned is not None:
        want["loss_quality"] = 3 * bce(QUALITY, learned) / 4
    assert 3 * of_box > 1  # the divisor is the sum, not its bound
    assert_losses(hand_losses(mode, [[OBJECT], [OBJECT], [OBJECT], []]), want)


def test_terms_scale_with_their_weights_and_the_focal_loss_has_its_own_powers():
    weights = {"cls_weight": 3.0, "giou_weight": 5.0, "focal_alpha": 0.6, "focal_gamma": 0.5}
    got = hand_losses("iou_branch", [[OBJECT]], beta=9.0, **weights)
    background = sum(focal(score, 0, 0.6, 0.5) for row in BACKGROUND for score in row)
    positive = focal(POSITIVE[0], 0, 0.6, 0.5) + focal(POSITIVE[1], 1, 0.6, 0.5)
    want = {
        "loss_cls": 3 * (background + positive),
        "loss_box": 5 * IOU * GIOU_LOSS,
        "loss_quality": bce(QUALITY, IOU),
    }
    assert_losses(got, want)


def test_likelihood_of_a_gaussian_box_is_weighed_like_its_giou():
    # Deviations are 1 stride where their logit is 0.
    got = hand_losses("centerness_branch", [[OBJECT]], GaussianBox(), dfl_weight=0.5)
    nll = [
        math.log(2 * math.pi) / 2 + (true - side) ** 2 / 2
        for true, side in zip(TRUE, SIDES, strict=True)
    ]
    want = {
        "loss_cls": BACKGROUND_LOSS + POSITIVE_LOSS,
        "loss_box": 2 * CENTERNESS * GIOU_LOSS,
        "loss_nll": 0.5 * CENTERNESS * sum(nll) / 4,
        "loss_quality": bce(QUALITY, CENTERNESS),
    }
    assert_losses(got, want)


@pytest.mark.parametrize("mode", ["none", "iou_guided", "joint"])
def test_density_loss_is_not_computed_where_its_weight_is_zero(mode, monkeypatch):
    def refuse(*args):
        raise AssertionError("computed")

    box = GaussianBox()
    monkeypatch.setattr(box, "density_loss", refuse)
    assert list(hand_losses(mode, [[OBJECT]], box, dfl_weight=0)) == ["loss_cls", "loss_box"]
    with pytest.raises(AssertionError, match="computed"):
        hand_losses(mode, [[OBJECT]], box, dfl_weight=0.25)


def test_box_without_a_density_has_no_term_whatever_the_weight():
    assert list(hand_losses("none", [[OBJECT]], dfl_weight=0.25)) == ["loss_cls", "loss_box"]


def test_wider_bins_change_the_unit_of_the_density_loss_alone():
    # Bins at 0, 0.5, 1, 1.5, 2 strides; true distances are 1.5, 1, 2.5, 1 bins.
    box, target = GeneralBox(4, 0.5), torch.tensor(TRUE)
    logits = torch.randn(box.channels)
    bins = logits.unflatten(0, (4, 5)).log_softmax(-1)
    sides = [
        -(bins[0, 1] + bins[0, 2]) / 2,
        -bins[1, 1],
        -(bins[2, 2] + bins[2, 3]) / 2,
        -bins[3, 1],
    ]
    assert_close(box.density_loss(logits, target), sum(sides) / 4)


# Where gradients go -------------------------------------------------------------------------------

ASSIGNERS = [
    ATSSAssigner,
    FCOSAssigner,
    RetinaNetAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
]
HARD = ["none", *(name for name, mode in QUALITY_MODES.items() if mode.target)]


def random_step(mode: str, assigner, size=(96, 128), count=4):
    """Leaf predictions, their losses, and which locations are positive."""
    cells, anchors = pyramid(*size), assigner.anchors_per_cell
    grid = compute_grid(cells.level_sizes, cells.level_strides, anchors_per_cell=anchors)
    base = random_predictions(grid, 2)
    quality = None
    if QUALITY_MODES[mode].branch:
        quality = torch.randn(2, grid.strides.shape[0], 1, requires_grad=True)
    predictions = Predictions(base.cls_logits, base.box_logits, grid, quality)
    boxes = [random_boxes(count, *size, seed=image) for image in range(2)]
    targets = make_targets(boxes, [[row % 3 for row in range(count)]] * 2, size=size)
    criterion = GFLCriterion(assigner, GeneralBox(16), quality=QUALITY_MODES[mode])
    asked = getattr(assigner, "needs_candidates", False)
    found = [criterion.candidates(predictions)] if asked else []
    return predictions, criterion(predictions, targets), assigner(grid, targets, *found)


@pytest.mark.parametrize("make", ASSIGNERS)
@pytest.mark.parametrize("mode", HARD)
def test_gradients_go_where_their_terms_say(mode, make):
    predictions, losses, assignment = random_step(mode, make())
    positive = assignment.gt_index >= 0
    leaves = {"cls": predictions.cls_logits, "box": predictions.box_logits}
    if predictions.quality_logits is not None:
        leaves["quality"] = predictions.quality_logits
    reached = {}
    for name, loss in losses.items():
        found = torch.autograd.grad(
            loss, list(leaves.values()), retain_graph=True, materialize_grads=True
        )
        for leaf, gradient in zip(leaves, found, strict=True):
            reached[name, leaf] = gradient.abs().amax(-1) > 0
    for (name, leaf), rows in reached.items():
        if (name, leaf) == ("loss_cls", "cls"):
            # A guided positive may have a quality of 0, and then no loss.
            counts = assignment.weight > 0
            assert not rows[~counts].any() and rows[counts & ~positive].all()
            assert rows[positive].any()
        elif (name, leaf) == ("loss_quality", "quality"):
            assert torch.equal(rows, positive)
        elif leaf == "box" and name in ("loss_box", "loss_dfl"):
            assert not rows[~positive].any() and rows[positive].any()
        else:
            assert not rows.any(), (name, leaf)


def test_left_out_anchors_have_no_loss_at_all():
    predictions, losses, assignment = random_step("none", RetinaNetAssigner())
    sum(losses.values()).backward()
    left_out = assignment.weight == 0
    assert left_out.sum() > 10 and not predictions.cls_logits.grad[left_out].any()
    assert predictions.cls_logits.grad[~left_out].abs().amax(-1).all()


@pytest.mark.parametrize("mode", HARD)
@pytest.mark.parametrize("make", ASSIGNERS)
def test_batch_without_objects_pushes_every_score_down_and_moves_nothing_else(mode, make):
    predictions, losses, _ = random_step(mode, make(), (64, 96), 0)
    score = predictions.cls_logits.detach().double().sigmoid()
    assert_close(losses["loss_cls"], -(0.75 * score**2 * (1 - score).log()).sum() / 2)
    assert all(value == 0 for name, value in losses.items() if name != "loss_cls")
    sum(losses.values()).backward()
    assert (predictions.cls_logits.grad > 0).all()
    assert not predictions.box_logits.grad.any()
    assert predictions.quality_logits is None or not predictions.quality_logits.grad.any()


@pytest.mark.parametrize("mode", QUALITY_MODES)
@pytest.mark.parametrize("size", [1e4, 6e4])
@pytest.mark.parametrize("make", [ATSSAssigner, SimOTAAssigner, TaskAlignedAssigner])
def test_huge_half_precision_logits_give_finite_losses_and_gradients(mode, size, make):
    grid, quality = pyramid(96, 128), QUALITY_MODES[mode]
    count = grid.strides.shape[0]
    targets = make_targets([random_boxes(3, 96, 128)], size=(96, 128))

    def huge(channels: int) -> torch.Tensor:
        return (torch.randn(1, count, channels).sign() * size).half().requires_grad_()

    for box in (DiracBox(), GaussianBox(), GeneralBox(16)):
        logits = huge(1) if quality.branch or quality.predictor else None
        predictions = Predictions(huge(3), huge(box.channels), grid, logits)
        losses = GFLCriterion(make(), box, quality=quality)(predictions, targets)
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
        sum(losses.values()).backward()
        for leaf in (predictions.cls_logits, predictions.box_logits, logits):
            assert leaf is None or leaf.grad.isfinite().all()


SPOILED = [
    (mode, 1, leaf)
    for mode, row in QUALITY_MODES.items()
    for leaf in ("cls", "box", *(["quality"] if row.branch or row.predictor else []))
]


@pytest.mark.parametrize(
    ("mode", "bins", "leaf"), [*SPOILED, ("joint", 5, "cls"), ("joint", 5, "box")]
)
def test_a_logit_that_is_no_number_gives_no_number_and_no_error(mode, bins, leaf):
    grid, quality = pyramid(96, 128), QUALITY_MODES[mode]
    has_quality = quality.branch or quality.predictor
    count = grid.strides.shape[0]
    shapes = {"cls": (1, count, 3), "box": (1, count, 68), "quality": (1, count, 1)}
    if bins > 1:
        shapes["cls"] = (1, count, 3, bins)
    logits = {name: torch.randn(shape) for name, shape in shapes.items()}
    logits[leaf].fill_(torch.nan)
    predictions = Predictions(
        logits["cls"], logits["box"], grid, logits["quality"] if has_quality else None
    )
    targets = make_targets([random_boxes(3, 96, 128)], size=(96, 128))
    losses = GFLCriterion(ATSSAssigner(), GeneralBox(16), quality=quality)(predictions, targets)
    assert sum(losses.values()).isnan()


# Rows of one's own --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"target": "giou"}, "target is 'giou', expected 'iou', 'centerness' or None"),
        ({"branch": True}, "a branch learns a target: name one"),
        ({"predictor": True}, "a predictor learns from the joint score"),
        (
            {"joint": True, "predictor": True, "branch": True, "target": "iou"},
            "a predictor learns from the joint score",
        ),
    ],
)
def test_a_row_that_would_learn_nothing_is_refused(row, message):
    with pytest.raises(ValueError, match=message):
        QualityMode(**row)
