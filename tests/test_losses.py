"""The formulas: numbers worked by hand, identities, extremes and empty inputs."""

import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from conftest import assert_close
from torchvision.ops import sigmoid_focal_loss

from gfl.losses import distribution_focal_loss, giou_loss, quality_focal_loss
from gfl.losses.functional import (
    expectation,
    focal_loss,
    gaussian_nll_loss,
    quality_focal_loss_of_scores,
    score_distribution_loss,
)

BETAS = (0.0, 0.5, 1.0, 2.0, 2.5, 4.0)
# Logits of the probabilities 1/8, 2/8, 5/8.
EIGHTHS = [0.0, math.log(2), math.log(5)]


def with_gradient(loss, logits, *arguments):
    """Loss of a fresh leaf, and the gradient of its sum."""
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, *arguments)
    value.sum().backward()
    return value.detach(), leaf.grad


# Quality focal loss -----------------------------------------------------------------------------


def test_qfl_is_the_one_worked_by_hand():
    # Scores 1/2 and 3/4. Loss |y - s|^2 * -((1 - y) log(1 - s) + y log s); its derivative by the
    # logit is 2 (s - y) s (1 - s) * cross-entropy + |y - s|^2 (s - y).
    logits = torch.tensor([0.0, math.log(3), math.log(3), math.log(3)])
    target = torch.tensor([0.8, 0.25, 0.0, 1.0])
    value, grad = with_gradient(quality_focal_loss, logits, target, 2.0)
    log2, log4, log4_3 = math.log(2), math.log(4), math.log(4 / 3)
    entropy = [log2, 0.75 * log4 + 0.25 * log4_3, log4, log4_3]
    want = [0.3**2 * entropy[0], 0.5**2 * entropy[1], 0.75**2 * entropy[2], 0.25**2 * entropy[3]]
    assert_close(value, want)
    slope = [
        2 * -0.3 * 1 / 4 * entropy[0] - 0.3**3,
        2 * 0.5 * 3 / 16 * entropy[1] + 0.5**3,
        2 * 0.75 * 3 / 16 * entropy[2] + 0.75**3,
        2 * -0.25 * 3 / 16 * entropy[3] - 0.25**3,
    ]
    assert_close(grad, slope)


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_gradient_is_that_of_finite_differences(beta):
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64).requires_grad_()
    for label in (0.0, 0.3, 1.0):
        target = torch.full_like(logits, label).detach()
        assert torch.autograd.gradcheck(lambda x, y=target: quality_focal_loss(x, y, beta), logits)


def test_qfl_with_beta_zero_is_cross_entropy():
    logits, target = torch.randn(20, 5) * 4, torch.rand(20, 5)
    target[0, :3] = torch.tensor([0.0, 0.5, 1.0])
    logits[0, 1] = 0.0  # score and label are equal here
    value, grad = with_gradient(quality_focal_loss, logits, target, 0.0)
    plain = partial(F.binary_cross_entropy_with_logits, reduction="none")
    want, want_grad = with_gradient(plain, logits, target)
    assert_close(value, want)
    assert_close(grad, want_grad)


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_qfl_of_a_hard_label_is_focal_loss(label):
    logits = torch.randn(50) * 3
    target = torch.full_like(logits, label)
    value, grad = with_gradient(quality_focal_loss, logits, target, 2.0)
    want, want_grad = with_gradient(sigmoid_focal_loss, logits, target, -1, 2.0)
    assert_close(value, want)
    assert_close(grad, want_grad)
    score = logits.sigmoid()
    formula = -(score**2) * (1 - score).log() if label == 0 else -((1 - score) ** 2) * score.log()
    assert_close(value, formula, rtol=1e-4)


@pytest.mark.parametrize("label", [0.1, 0.5, 0.85])
@pytest.mark.parametrize("beta", [1.0, 2.0, 2.5])
def test_qfl_is_zero_where_the_score_is_the_label_and_grows_to_both_sides(label, beta):
    best = math.log(label / (1 - label))
    logits = best + torch.tensor([-2.0, -1.0, -0.1, 0.0, 0.1, 1.0, 2.0], dtype=torch.float64)
    target = torch.full_like(logits, label)
    value, grad = with_gradient(quality_focal_loss, logits, target, beta)
    assert value[3] < 1e-9
    assert (value[:3].diff() < 0).all() and (value[4:].diff() > 0).all() and value.min() == value[3]
    assert grad.sign().tolist()[:3] == [-1, -1, -1] and grad.sign().tolist()[4:] == [1, 1, 1]


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_of_huge_logits_is_their_distance_from_the_label(beta):
    # Far from zero the score is 0 or 1: the loss is |logit| where it is wrong, with slope 1.
    huge = torch.tensor([100.0, 1000.0, 1e4])
    logits = torch.cat((huge, -huge, huge, -huge))
    target = torch.tensor([0.0] * 3 + [1.0] * 3 + [1.0] * 3 + [0.0] * 3)
    value, grad = with_gradient(quality_focal_loss, logits, target, beta)
    assert_close(value, huge.tolist() * 2 + [0] * 6)
    assert_close(grad, [1] * 3 + [-1] * 3 + [0] * 6)


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_is_finite_for_every_logit_and_label(beta):
    logits = torch.tensor([-1e4, -1000, -100, -20, -1, -1e-7, 0, 1e-7, 1, 20, 100, 1000, 1e4])
    for label in (0.0, 1e-7, 0.5, 1 - 1e-7, 1.0):
        target = torch.full_like(logits, label)
        value, grad = with_gradient(quality_focal_loss, logits, target, beta)
        assert value.isfinite().all() and (value >= 0).all()
        assert grad.isfinite().all()
    half = torch.tensor([-65504.0, -1e4, 1e4, 65504.0], dtype=torch.float16).float()
    value, grad = with_gradient(quality_focal_loss, half, torch.zeros(4), beta)
    assert_close(value, half.clamp(min=0))
    assert_close(grad, [0, 0, 1, 1])


@pytest.mark.parametrize("beta", BETAS)
def test_qfl_has_no_gradient_where_the_score_is_exactly_the_label(beta):
    value, grad = with_gradient(
        quality_focal_loss, torch.tensor([0.0, 200.0, -200.0]), torch.tensor([0.5, 1.0, 0.0]), beta
    )
    assert_close(value, [math.log(2) if beta == 0 else 0, 0, 0])
    assert grad.tolist() == [0, 0, 0]


def test_qfl_refuses_a_negative_beta():
    with pytest.raises(ValueError, match=r"beta is -0\.5"):
        quality_focal_loss(torch.zeros(2), torch.zeros(2), -0.5)


def test_qfl_of_nothing_is_nothing():
    value, grad = with_gradient(quality_focal_loss, torch.zeros(0, 3), torch.zeros(0, 3))
    assert value.shape == grad.shape == (0, 3)


# Distribution focal loss ------------------------------------------------------------------------


def test_dfl_is_the_one_worked_by_hand():
    # Target 1.25: 3/4 on bin 1 (2/8), 1/4 on bin 2 (5/8). Target 0.5: halves on 1/8 and 2/8.
    # The gradient is softmax minus those weights.
    value, grad = with_gradient(
        distribution_focal_loss, torch.tensor([EIGHTHS, EIGHTHS]), torch.tensor([1.25, 0.5])
    )
    first = 0.75 * math.log(8 / 2) + 0.25 * math.log(8 / 5)
    second = 0.5 * math.log(8) + 0.5 * math.log(8 / 2)
    assert_close(value, [first, second])
    assert_close(
        grad, [[1 / 8, 2 / 8 - 3 / 4, 5 / 8 - 1 / 4], [1 / 8 - 1 / 2, 2 / 8 - 1 / 2, 5 / 8]]
    )


def test_dfl_gradient_is_that_of_finite_differences():
    logits = torch.randn(6, 4, 9, dtype=torch.float64, requires_grad=True)
    target = torch.rand(6, 4, dtype=torch.float64) * 7.9
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, target), logits)


def test_dfl_of_a_whole_number_is_cross_entropy_with_that_bin():
    logits, target = torch.randn(16, 17), torch.arange(16)
    value, grad = with_gradient(distribution_focal_loss, logits, target.float())
    plain = partial(F.cross_entropy, reduction="none")
    want, want_grad = with_gradient(plain, logits, target)
    assert_close(value, want)
    assert_close(grad, want_grad)


def test_dfl_is_least_where_the_expectation_is_the_target():
    # The best distribution has i + 1 - y on the left bin and y - i on the right one.
    target = torch.tensor([0.3, 2.5, 7.9], dtype=torch.float64)
    weights = torch.zeros(3, 9, dtype=torch.float64)
    weights[[0, 1, 2], [0, 2, 7]] = torch.tensor([0.7, 0.5, 0.1], dtype=torch.float64)
    weights[[0, 1, 2], [1, 3, 8]] = torch.tensor([0.3, 0.5, 0.9], dtype=torch.float64)
    best = weights.log().clamp(min=-60)
    value, grad = with_gradient(distribution_focal_loss, best, target)
    assert grad.abs().max() < 1e-12
    assert_close(expectation(best), target)
    entropy = -(weights * best).sum(1)
    assert_close(value, entropy)
    worse = distribution_focal_loss(best + torch.randn(200, 3, 9), target.expand(200, 3))
    assert (worse > value).all()


def test_dfl_steps_bring_the_expectation_to_the_target():
    target = torch.tensor([0.25, 1.5, 2.75])
    logits = torch.zeros(3, 4, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    for _ in range(300):
        optimizer.zero_grad()
        distribution_focal_loss(logits, target).sum().backward()
        optimizer.step()
    assert_close(expectation(logits), target, atol=0.01)


@pytest.mark.parametrize("target", [torch.nan, torch.inf, -torch.inf])
def test_dfl_of_what_is_no_number_is_none(target):
    value, _ = with_gradient(distribution_focal_loss, torch.zeros(1, 17), torch.tensor([target]))
    assert not value.isfinite().any()


def test_dfl_of_nothing_is_nothing():
    value, grad = with_gradient(distribution_focal_loss, torch.zeros(0, 4, 17), torch.zeros(0, 4))
    assert value.shape == (0, 4) and grad.shape == (0, 4, 17)


def test_expectation_is_the_mean_of_the_bins():
    one_hot = torch.full((5, 5), -100.0).fill_diagonal_(100.0)
    assert_close(expectation(one_hot), [0, 1, 2, 3, 4])
    assert_close(expectation(torch.full((17,), 3.0)), 8.0)
    assert_close(expectation(torch.tensor(EIGHTHS)), (2 * 1 + 5 * 2) / 8)
    assert expectation(torch.zeros(0, 4, 17)).shape == (0, 4)


# GIoU loss --------------------------------------------------------------------------------------


def test_giou_loss_is_the_one_worked_by_hand():
    boxes = [[0, 0, 4, 4], [0, 0, 1, 1], [1, 1, 3, 3], [0, 0, 2, 2], [1, 2, 5, 9]]
    target = [[2, 2, 6, 6], [2, 0, 3, 1], [0, 0, 4, 4], [2, 0, 4, 2], [1, 2, 5, 9]]
    # Overlapping 1 - 4/28 + 8/36, apart 1 + 1/3, nested 1 - 4/16, touching 1, identical 0.
    want = [1 - 1 / 7 + 2 / 9, 4 / 3, 3 / 4, 1, 0]
    assert_close(giou_loss(torch.tensor(boxes).float(), torch.tensor(target).float()), want)


def test_giou_loss_gradient_is_that_of_finite_differences():
    boxes = torch.tensor([[0, 0, 4, 4.5], [0, 0, 1, 1.5], [1, 1.5, 3, 3]], dtype=torch.float64)
    target = torch.tensor([[2, 2, 6, 6], [2, 0.5, 3, 1], [0, 0, 4, 4]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: giou_loss(x, target), boxes.requires_grad_())


def test_giou_loss_of_degenerate_boxes_is_finite_with_finite_gradients():
    # Same point: 1. Point in a box: covers nothing of it, 1. Point beside a box: enclosing 4 * 2,
    # union 4, 1 + 4/8. Two points apart: everything between them is uncovered, 2. A line: 1.
    boxes = [[3, 3, 3, 3], [1, 1, 1, 1], [4, 0, 4, 0], [0, 0, 0, 0], [0, 1, 2, 1]]
    target = [[3, 3, 3, 3], [0, 0, 2, 2], [0, 0, 2, 2], [1, 1, 1, 1], [0, 0, 2, 2]]
    target = torch.tensor(target).float()
    value, grad = with_gradient(giou_loss, torch.tensor(boxes).float(), target)
    assert_close(value, [1, 1, 1.5, 2, 1], atol=1e-5)
    assert grad.isfinite().all()


def test_giou_loss_of_nothing_is_nothing():
    value, grad = with_gradient(giou_loss, torch.zeros(0, 4), torch.zeros(0, 4))
    assert value.shape == (0,) and grad.shape == (0, 4)


# Focal loss ---------------------------------------------------------------------------------------


def test_focal_loss_is_the_one_worked_by_hand():
    # Scores 1/2 and 3/4, alpha 1/4, gamma 2: 1/4 (1 - s)^2 -log s, or 3/4 s^2 -log(1 - s).
    logits = torch.tensor([0.0, 0.0, math.log(3), math.log(3)])
    value = focal_loss(logits, torch.tensor([1.0, 0.0, 1.0, 0.0]))
    log2, log4, log4_3 = math.log(2), math.log(4), math.log(4 / 3)
    assert_close(value, [log2 / 16, 3 * log2 / 16, log4_3 / 64, 27 * log4 / 64])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.7, 2.0, 5.0])
@pytest.mark.parametrize("alpha", [0.0, 0.25, 0.6, 1.0])
def test_focal_loss_equals_torchvisions(alpha, gamma):
    logits = torch.randn(40, 5) * 3
    target = (torch.rand(40, 5) < 0.3).float()
    value, grad = with_gradient(focal_loss, logits, target, alpha, gamma)
    want, want_grad = with_gradient(sigmoid_focal_loss, logits, target, alpha, gamma)
    assert_close(value, want)
    assert_close(grad, want_grad)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0, 2.0, 2.5])
def test_focal_loss_is_finite_for_every_logit(gamma):
    logits = torch.tensor([-65504.0, -1e4, -1000, -100, -20, -1e-7, 0, 1e-7, 20, 100, 1000, 65504])
    for label in (0.0, 1.0):
        value, grad = with_gradient(focal_loss, logits, torch.full_like(logits, label), 0.25, gamma)
        assert value.isfinite().all() and (value >= 0).all() and grad.isfinite().all()
        # Where it is far wrong it is |logit| times its alpha, with that slope.
        alpha, wrong = (0.25, logits[:4]) if label else (0.75, logits[-3:])
        assert_close(value[:4] if label else value[-3:], alpha * wrong.abs())
        assert_close(grad[:4] if label else grad[-3:], alpha * wrong.sign())


def test_focal_loss_of_a_hard_label_is_the_quality_focal_loss_with_an_alpha():
    logits, target = torch.randn(50) * 3, (torch.rand(50) < 0.5).float()
    weight = torch.where(target > 0, 0.25, 0.75)
    assert_close(focal_loss(logits, target), weight * quality_focal_loss(logits, target))


def test_focal_loss_gradient_is_that_of_finite_differences():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64).requires_grad_()
    for label, gamma in ((0.0, 0.5), (1.0, 2.5)):
        target = torch.full_like(logits, label).detach()
        loss = partial(focal_loss, target=target, gamma=gamma)
        assert torch.autograd.gradcheck(loss, logits)


def test_focal_loss_refuses_a_negative_gamma_and_of_nothing_is_nothing():
    with pytest.raises(ValueError, match=r"gamma is -0\.5"):
        focal_loss(torch.zeros(2), torch.zeros(2), gamma=-0.5)
    value, grad = with_gradient(focal_loss, torch.zeros(0, 3), torch.zeros(0, 3))
    assert value.shape == grad.shape == (0, 3)


# Gaussian likelihood ------------------------------------------------------------------------------


def test_gaussian_nll_is_that_of_torchs_normal():
    mean, std, target = torch.randn(60) * 5, torch.rand(60) * 4 + 0.05, torch.randn(60) * 5
    value, grad = with_gradient(gaussian_nll_loss, mean, std, target)
    want = -torch.distributions.Normal(mean, std).log_prob(target)
    assert_close(value, want, rtol=1e-4)
    assert_close(grad, (mean - target) / std**2, rtol=1e-4)


def test_gaussian_nll_is_the_one_worked_by_hand():
    # Error 1 with deviations 1, 2, 1/2: 1/2, log 2 + 1/8, -log 2 + 2, and log(2 pi) / 2 each.
    value = gaussian_nll_loss(torch.zeros(3), torch.tensor([1.0, 2.0, 0.5]), torch.ones(3))
    log2 = math.log(2)
    want = [0.5, log2 + 1 / 8, -log2 + 2]
    assert_close(value, [half + math.log(2 * math.pi) / 2 for half in want])


def test_gaussian_nll_is_least_where_the_deviation_is_the_error():
    std = torch.linspace(0.1, 3, 30)
    value = gaussian_nll_loss(torch.zeros(30), std, torch.full((30,), 0.7))
    assert std[value.argmin()].item() == pytest.approx(0.7, abs=0.05)


@pytest.mark.parametrize("label", [-0.01, 1.01])
def test_labels_that_are_no_quality_are_an_error_in_debug_mode(label):
    target, logits = torch.tensor([[0.5], [label]]), torch.zeros(2, 1)
    losses = (
        lambda: quality_focal_loss(logits, target),
        lambda: quality_focal_loss_of_scores(logits.sigmoid(), target),
        lambda: score_distribution_loss(torch.zeros(2, 1, 3), target),
    )
    quality_focal_loss(logits, target)  # nothing waits for the device otherwise
    with torch.autograd.set_detect_anomaly(True):
        for loss in losses:
            with pytest.raises(ValueError, match=r"labels are .*, expected a quality in \[0, 1\]"):
                loss()
        quality_focal_loss(logits, target.clamp(0, 1))
