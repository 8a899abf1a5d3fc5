"""The three terms of a step: worked by hand, without objects, in half precision, end to end."""

import math

import pytest
import torch
from builders import make_targets, pyramid, random_boxes, random_predictions, tiny_config
from conftest import assert_close

from gfl.assigner import ATSSAssigner
from gfl.build import build_criterion, build_model
from gfl.grid import make_grid
from gfl.losses import GFLCriterion
from gfl.models.box_representation import GeneralBox
from gfl.quality import QUALITY_MODES
from gfl.structures import Predictions

TERMS = ["loss_cls", "loss_box", "loss_dfl"]


def log(values: list) -> list:
    return [math.log(value) for value in values]


# A case worked by hand --------------------------------------------------------------------------

# Four locations: (0, 0), (8, 0), (0, 8), (8, 8). An object of class 1 around the last of them; in
# strides it is 0.25, 0.5, 1.75, 1.5. With one candidate, that location is the only positive.
GRID = make_grid(((2, 2),), (8,))
OBJECT, LABEL = [2.0, 4.0, 14.0, 12.0], 1
# Its sides left, top, right, bottom as probabilities of the bins 0, 1, 2.
SIDES = [[1 / 8, 2 / 8, 5 / 8], [1 / 3, 1 / 3, 1 / 3], [0.8, 0.1, 0.1], [0.5, 0.25, 0.25]]
# Means 12/8, 1, 0.3, 0.75 around (1, 1): the decoded box is -0.5, 0, 1.3, 1.75.
#   intersection (0.25 ... 1.3) * (0.5 ... 1.5) = 1.05
#   union        1.8 * 1.75 + 1.5 * 1 - 1.05 = 3.6
#   enclosing    (-0.5 ... 1.75) * (0 ... 1.75) = 3.9375
IOU = 1.05 / 3.6
GIOU_LOSS = 1 - (IOU - (3.9375 - 3.6) / 3.9375)
# True distances 0.75, 0.5, 0.75, 0.5: weights of bins 0 and 1 are 1/4 and 3/4, or halves.
DFL = (
    -sum(
        left * math.log(side[0]) + (1 - left) * math.log(side[1])
        for side, left in zip(SIDES, (0.25, 0.5, 0.25, 0.5), strict=True)
    )
    / 4
)


def qfl(score: float, label: float) -> float:
    """Equation 3 of the paper with beta 2."""
    entropy = -(1 - label) * math.log(1 - score) - label * math.log(score)
    return (label - score) ** 2 * entropy


def hand_predictions(scores: list) -> Predictions:
    """Scores [image][location][class]; the sides above at the last location, uniform elsewhere."""
    score = torch.tensor(scores)
    box_logits = torch.zeros(len(scores), 4, 12)
    box_logits[:, 3] = torch.tensor(SIDES).log().flatten()
    cls_logits = torch.log(score / (1 - score))
    return Predictions(cls_logits.requires_grad_(), box_logits.requires_grad_(), GRID)


def hand_losses(scores: list, boxes: list) -> list[float]:
    criterion = GFLCriterion(ATSSAssigner(top_k=1), GeneralBox(2))
    targets = make_targets(boxes, [[LABEL] * len(image) for image in boxes], size=(16, 16))
    losses = criterion(hand_predictions(scores), targets)
    assert list(losses) == TERMS
    assert all(value.shape == () and value.dtype == torch.float32 for value in losses.values())
    return [value.item() for value in losses.values()]


BACKGROUND = [[0.1, 0.2], [0.3, 0.05], [0.01, 0.4]]
BACKGROUND_QFL = sum(qfl(score, 0.0) for row in BACKGROUND for score in row)


def test_terms_are_those_worked_by_hand():
    # One positive, whose best score 0.8 (of the wrong class) is the weight; it sums to less than
    # 1, so the divisor is 1.
    losses = hand_losses([[*BACKGROUND, [0.8, 0.6]]], [[OBJECT]])
    loss_cls = BACKGROUND_QFL + qfl(0.8, 0.0) + qfl(0.6, IOU)
    assert_close(losses, [loss_cls, 2 * 0.8 * GIOU_LOSS, 0.25 * 0.8 * DFL])


def test_terms_of_a_batch_are_divided_by_the_sums_over_its_images():
    # Weights 0.8 and 0.7 sum to 1.5. The third image has no object and still counts as one.
    scores = [[*BACKGROUND, last] for last in ([0.8, 0.6], [0.2, 0.7], [0.3, 0.9])]
    losses = hand_losses(scores, [[OBJECT], [OBJECT], []])
    loss_cls = (
        3 * BACKGROUND_QFL
        + (qfl(0.8, 0.0) + qfl(0.6, IOU))
        + (qfl(0.2, 0.0) + qfl(0.7, IOU))
        + (qfl(0.3, 0.0) + qfl(0.9, 0.0))
    ) / 3
    mean_giou = (0.8 * GIOU_LOSS + 0.7 * GIOU_LOSS) / 1.5
    mean_dfl = (0.8 * DFL + 0.7 * DFL) / 1.5
    assert_close(losses, [loss_cls, 2 * mean_giou, 0.25 * mean_dfl])


def test_terms_scale_with_their_weights_and_beta_zero_is_cross_entropy():
    predictions = hand_predictions([[*BACKGROUND, [0.8, 0.6]]])
    targets = make_targets([[OBJECT]], [[LABEL]], size=(16, 16))
    criterion = GFLCriterion(ATSSAssigner(top_k=1), GeneralBox(2), 0.0, 3.0, 5.0, 7.0)
    losses = criterion(predictions, targets)
    entropy = -sum(math.log(1 - score) for row in BACKGROUND for score in row) - math.log(1 - 0.8)
    entropy -= (1 - IOU) * math.log(1 - 0.6) + IOU * math.log(0.6)
    want = [3 * entropy, 5 * 0.8 * GIOU_LOSS, 7 * 0.8 * DFL]
    assert_close([losses[name].item() for name in TERMS], want)


# What gradient goes where -----------------------------------------------------------------------


def criterion_16(**weights) -> GFLCriterion:
    return GFLCriterion(ATSSAssigner(), GeneralBox(16), **weights)


def gradients(losses: dict, leaves: list) -> list[torch.Tensor]:
    """Of the sum of some losses, zero for leaves that they do not depend on."""
    return torch.autograd.grad(
        sum(losses.values()), leaves, allow_unused=True, materialize_grads=True, retain_graph=True
    )


def test_label_and_weight_carry_no_gradient():
    predictions = random_predictions(pyramid(96, 128))
    targets = make_targets([random_boxes(3, 96, 128, seed=i) for i in range(2)], size=(96, 128))
    leaves = [predictions.cls_logits, predictions.box_logits]
    losses = criterion_16()(predictions, targets)
    only_cls = gradients({"loss_cls": losses["loss_cls"]}, leaves)
    only_box = gradients({name: losses[name] for name in TERMS[1:]}, leaves)
    both = gradients(losses, leaves)
    assert not only_cls[1].any() and not only_box[0].any()
    assert torch.equal(both[0], only_cls[0]) and torch.equal(both[1], only_box[1])
    faint = gradients(criterion_16(giou_weight=1e-6, dfl_weight=1e-6)(predictions, targets), leaves)
    assert torch.equal(faint[0], both[0])


def test_only_positives_get_a_box_gradient():
    grid = pyramid(96, 128)
    predictions = random_predictions(grid)
    targets = make_targets([random_boxes(3, 96, 128), []], size=(96, 128))
    criterion = criterion_16()
    sum(criterion(predictions, targets).values()).backward()
    positive = criterion.assigner(grid, targets).gt_index >= 0
    assert torch.equal(predictions.box_logits.grad.abs().amax(-1) > 0, positive)
    assert predictions.cls_logits.grad.all()


def test_locations_beyond_the_valid_size_get_no_gradient():
    grid = pyramid(128, 128)
    predictions = random_predictions(grid)
    # The second object hangs over the border of the first image's own area.
    boxes = [[[4, 4, 60, 50], [40, 40, 120, 120]], [[10, 10, 100, 90]]]
    targets = make_targets(boxes, valid=[[64, 96], [128, 128]])
    sum(criterion_16()(predictions, targets).values()).backward()
    corners = grid.centers
    valid = (corners[:, 0] < 96) & (corners[:, 1] < 64)
    assert torch.equal(predictions.cls_logits.grad[0].ne(0).all(1), valid)
    assert torch.equal(predictions.cls_logits.grad[0].ne(0).any(1), valid)
    assert not predictions.box_logits.grad[0, ~valid].any()
    assert predictions.cls_logits.grad[1].all()


# No objects -------------------------------------------------------------------------------------


def assert_only_scores_are_pushed_down(predictions):
    assert (predictions.cls_logits.grad > 0).all()
    assert predictions.box_logits.grad.shape == predictions.box_logits.shape
    assert not predictions.box_logits.grad.any()


def test_batch_without_objects_pushes_every_score_down():
    predictions = random_predictions(pyramid(96, 128))
    losses = criterion_16()(predictions, make_targets([[], []], size=(96, 128)))
    sum(losses.values()).backward()
    score = predictions.cls_logits.detach().double().sigmoid()
    # Two images count as one positive each.
    assert_close(losses["loss_cls"], -(score**2 * (1 - score).log()).sum() / 2)
    assert losses["loss_box"] == losses["loss_dfl"] == 0
    assert_only_scores_are_pushed_down(predictions)


def test_rows_that_are_not_present_are_no_objects():
    predictions = random_predictions(pyramid(96, 128), 1)
    empty = make_targets([[]], size=(96, 128))
    padded = make_targets([[[0, 0, 0, 0]] * 3], size=(96, 128))
    padded = type(padded)(**{**vars(padded), "present": torch.zeros(1, 3, dtype=torch.bool)})
    losses = [criterion_16()(predictions, targets) for targets in (empty, padded)]
    for name in TERMS:
        assert_close(losses[1][name], losses[0][name].item())
    sum(losses[1].values()).backward()
    assert_only_scores_are_pushed_down(predictions)


def test_empty_image_beside_another_has_only_its_background_loss():
    grid = pyramid(96, 128)
    predictions, boxes = random_predictions(grid), random_boxes(3, 96, 128)
    losses = criterion_16()(predictions, make_targets([boxes, []], size=(96, 128)))
    first = Predictions(predictions.cls_logits[:1], predictions.box_logits[:1], grid)
    targets = make_targets([boxes], size=(96, 128))
    alone = criterion_16()(first, targets)
    positives = int((ATSSAssigner()(grid, targets).gt_index >= 0).sum())
    score = predictions.cls_logits[1].detach().double().sigmoid()
    background = -(score**2 * (1 - score).log()).sum().item()
    # Box terms are those of the image alone; the class term has one more in the divisor.
    want = (alone["loss_cls"].item() * positives + background) / (positives + 1)
    assert_close(losses["loss_cls"], want)
    assert_close(losses["loss_box"], alone["loss_box"].item())
    assert_close(losses["loss_dfl"], alone["loss_dfl"].item())


def test_other_images_objects_leave_an_assignment_unchanged():
    grid, criterion = pyramid(96, 128), criterion_16()
    mine = random_boxes(4, 96, 128)
    seen = []
    for other in ([], random_boxes(2, 96, 128, seed=5), random_boxes(9, 96, 128, seed=6)):
        targets = make_targets([mine, other], size=(96, 128))
        seen.append(criterion.assigner(grid, targets).gt_index[0])
    assert (seen[0] >= 0).any()
    assert torch.equal(seen[0], seen[1]) and torch.equal(seen[0], seen[2])


# Precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_give_float32_losses_of_large_boxes(dtype):
    grid = pyramid(800, 1344)
    exact = random_predictions(grid, 1)
    cls_logits = exact.cls_logits.detach().to(dtype).requires_grad_()
    box_logits = (exact.box_logits.detach() * 10).to(dtype).requires_grad_()
    targets = make_targets([[[10, 20, 1310, 780], [5, 5, 25, 30]]], size=(800, 1344))
    with torch.autocast("cpu", torch.bfloat16):
        losses = criterion_16()(Predictions(cls_logits, box_logits, grid), targets)
    in_float32 = Predictions(cls_logits.detach().float(), box_logits.detach().float(), grid)
    want = criterion_16()(in_float32, targets)
    for name in TERMS:
        assert losses[name].dtype == torch.float32
        assert_close(losses[name], want[name].item())
    sum(losses.values()).backward()
    assert cls_logits.grad.dtype == box_logits.grad.dtype == dtype
    assert cls_logits.grad.isfinite().all() and box_logits.grad.isfinite().all()
    assert box_logits.grad.any()


@pytest.mark.parametrize("size", [1e4, 6e4])
def test_huge_half_precision_logits_give_finite_losses_and_gradients(size):
    grid = pyramid(96, 128)
    sign = torch.randn(1, grid.strides.shape[0], 3).sign()
    cls_logits = (sign * size).half().requires_grad_()
    box_logits = (torch.randn(1, grid.strides.shape[0], 68).sign() * size).half().requires_grad_()
    targets = make_targets([random_boxes(3, 96, 128)], size=(96, 128))
    losses = criterion_16()(Predictions(cls_logits, box_logits, grid), targets)
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    assert cls_logits.grad.isfinite().all() and box_logits.grad.isfinite().all()


# Through the network ----------------------------------------------------------------------------


@pytest.mark.parametrize("objects", [4, 0])
def test_every_parameter_of_a_model_gets_a_gradient(tmp_path, objects):
    config = tiny_config(tmp_path)
    model = build_model(config, num_classes=3).train()
    size = (256, 320)  # 2 x 3 at the coarsest level: a single location is nothing to group norm
    boxes = [random_boxes(objects, *size, seed=i, smallest=40) for i in range(2)]
    predictions = model(torch.randn(2, 3, *size))
    losses = build_criterion(config)(predictions, make_targets(boxes, size=size))
    sum(losses.values()).backward()
    gradient = {name: value.grad for name, value in model.named_parameters()}
    assert {name for name, value in gradient.items() if value is None} == set()
    assert all(value.isfinite().all() for value in gradient.values())
    # Scales of levels without positives, and without objects the whole box branch, get zeros.
    still = {name for name, value in gradient.items() if not value.any()}
    box_branch = ("head.scales",) if objects else ("head.scales", "head.box_")
    assert {name for name in still if not name.startswith(box_branch)} == set()
    moving_scales = {name for name in gradient if name.startswith("head.scales")} - still
    assert bool(moving_scales) == bool(objects)


def test_sums_over_processes_are_bounded_before_they_are_divided(monkeypatch):
    """Two processes, one without objects: a weight of 0.8 in all, which counts as 1."""
    monkeypatch.setattr("gfl.losses.criterion.world_size", lambda: 2)
    monkeypatch.setattr(
        "gfl.losses.criterion.sum_over_ranks", lambda sums: sums + torch.tensor([1.0, 0.0])
    )
    losses = hand_losses([[*BACKGROUND, [0.8, 0.6]]], [[OBJECT]])
    loss_cls = BACKGROUND_QFL + qfl(0.8, 0.0) + qfl(0.6, IOU)
    # The divisors are 2 / 2 and 1 / 2: DDP takes the mean of both processes.
    assert_close(losses, [loss_cls, 2 * 0.8 * GIOU_LOSS / 0.5, 0.25 * 0.8 * DFL / 0.5])


def test_terms_of_a_guided_quality_are_those_worked_by_hand():
    """GFLv2: the product of class score and quality is what is learned and what weighs the box."""
    base = hand_predictions([[*BACKGROUND, [0.8, 0.6]]])
    score = torch.tensor([[[0.5], [0.5], [0.5], [0.75]]])
    quality = torch.log(score / (1 - score))
    mode = QUALITY_MODES["distribution_guided"]
    criterion = GFLCriterion(ATSSAssigner(top_k=1), GeneralBox(2), quality=mode)
    targets = make_targets([[OBJECT]], [[LABEL]], size=(16, 16))
    losses = criterion(Predictions(base.cls_logits, base.box_logits, GRID, quality), targets)
    loss_cls = sum(qfl(0.5 * score, 0.0) for row in BACKGROUND for score in row)
    loss_cls += qfl(0.75 * 0.8, 0.0) + qfl(0.75 * 0.6, IOU)
    want = [loss_cls, 2 * 0.6 * GIOU_LOSS, 0.25 * 0.6 * DFL]
    assert_close([loss.item() for loss in losses.values()], want)


def test_candidates_are_scored_as_at_test_time():
    """A class score of 1/2 times a quality of 1/4; the box is the one above, in pixels."""
    base = hand_predictions([[[0.5, 0.5]] * 4])
    quality = torch.full((1, 4, 1), -math.log(3))
    predictions = Predictions(base.cls_logits, base.box_logits, GRID, quality)
    found = GFLCriterion(ATSSAssigner(), GeneralBox(2)).candidates(predictions)
    assert_close(found.scores, torch.full((1, 4, 2), 0.125))
    assert_close(found.boxes[0, 3], [-4, 0, 10.4, 14])
    assert not found.scores.requires_grad and not found.boxes.requires_grad
