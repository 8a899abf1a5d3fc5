"""GFLv2's quality predictor, joint scores and the quality focal loss of scores."""

import math

import pytest
import torch
from builders import make_targets, pyramid, random_predictions

from gfl.build import build_criterion, build_model, build_postprocess
from gfl.config import parse_config
from gfl.errors import UserError
from gfl.losses import quality_focal_loss, quality_focal_loss_of_scores
from gfl.models.quality import DistributionQuality
from gfl.structures import ImageMeta, Predictions


def test_statistics_hand_worked():
    """Left has probabilities 0.5 0.3 0.2, the other sides are flat."""
    left = torch.tensor([0.3, 0.5, 0.2]).log()
    logits = torch.cat((left, torch.zeros(9))).view(1, 12, 1, 1)
    got = DistributionQuality(top_k=2, channels=4).statistics(logits).flatten()
    third = 1 / 3
    torch.testing.assert_close(got, torch.tensor([0.5, 0.3, 0.4] + [third] * 9))


def test_statistics_do_not_depend_on_where_the_peak_is():
    logits = torch.randn(1, 4, 17, 2, 3)
    moved = logits.roll(5, dims=2)
    predictor = DistributionQuality()
    torch.testing.assert_close(
        predictor(logits.flatten(1, 2)), predictor(moved.flatten(1, 2)), rtol=1e-5, atol=1e-6
    )


def test_scores_are_products_of_two_sigmoids():
    grid = pyramid(64, 64)
    base = random_predictions(grid)
    quality = torch.randn(2, grid.strides.shape[0], 1)
    got = Predictions(base.cls_logits, base.box_logits, grid, quality).joint_scores()
    torch.testing.assert_close(got, base.cls_logits.sigmoid() * quality.sigmoid())
    torch.testing.assert_close(base.joint_scores(), base.cls_logits.sigmoid())


def test_a_wrong_shape_of_quality_is_refused():
    grid = pyramid(64, 64)
    base = random_predictions(grid)
    with pytest.raises(ValueError, match="quality_logits"):
        Predictions(base.cls_logits, base.box_logits, grid, torch.zeros(2, 5, 1))


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0, 2.5])
def test_loss_of_scores_is_the_loss_of_their_logits(beta):
    logits = torch.randn(50, 4) * 3
    target = torch.rand(50, 4)
    torch.testing.assert_close(
        quality_focal_loss_of_scores(logits.sigmoid(), target, beta),
        quality_focal_loss(logits, target, beta),
        rtol=1e-4,
        atol=1e-5,
    )


def test_loss_of_scores_hand_worked():
    """Score 0.25, label 0.75: 0.5^2 * (0.25 * -log 0.75 + 0.75 * -log 0.25)."""
    got = quality_focal_loss_of_scores(torch.tensor(0.25), torch.tensor(0.75))
    assert got.item() == pytest.approx(0.25 * (-0.25 * math.log(0.75) - 0.75 * math.log(0.25)))


def test_saturated_sigmoids_have_finite_losses_and_gradients():
    logits = torch.tensor([[-200.0, 200.0, -200.0, 200.0]], requires_grad=True)
    quality = torch.tensor([[-200.0, 200.0, 200.0, -200.0]], requires_grad=True)
    target = torch.tensor([[0.9, 0.0, 0.5, 1.0]])
    loss = quality_focal_loss_of_scores(logits.sigmoid() * quality.sigmoid(), target).sum()
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all() and quality.grad.isfinite().all()


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta"):
        quality_focal_loss_of_scores(torch.zeros(1), torch.zeros(1), -1.0)


def small_config(**head):
    return parse_config(
        {
            "model": {
                "backbone": {"name": "resnet18", "pretrained": False},
                "neck": {"channels": 32},
                "head": {"channels": 64, "stacked_convs": 1, **head},
                "quality": "distribution_guided",
                "reg_max": 8,
            }
        }
    )


@pytest.mark.parametrize("background", [False, True])
def test_a_guided_head_learns_with_every_parameter(background):
    config = small_config(background_channel=background)
    model = build_model(config, 3).train()
    predictions = model(torch.randn(2, 3, 64, 64))
    assert predictions.cls_logits.shape[2] == 3 + background
    targets = make_targets([[[4.0, 4.0, 40.0, 50.0]], []], [[2], []], size=(64, 64))
    losses = build_criterion(config)(predictions, targets)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert model.head.quality.net[0].weight.grad.abs().sum() > 0
    if background:  # a channel that no object has learns to be 0
        assert model.head.cls_out.bias.grad[3] > 0


def test_no_detection_is_made_of_the_background_channel():
    config = small_config(background_channel=True)
    grid = pyramid(64, 64)
    count = grid.strides.shape[0]
    cls_logits = torch.full((1, count, 4), -9.0)
    cls_logits[0, 3, 3], cls_logits[0, 5, 1] = 5.0, 2.0
    predictions = Predictions(
        cls_logits, torch.randn(1, count, 36), grid, torch.full((1, count, 1), 9.0)
    )
    [found] = build_postprocess(config)(
        predictions, (ImageMeta(1, (64, 64), (64, 64), (1.0, 1.0)),)
    )
    assert found.labels.tolist() == [1]
    assert found.scores.item() == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-3)


def test_more_top_probabilities_than_bins_are_refused():
    with pytest.raises(UserError, match="quality_top_k is 12"):
        small_config(quality_top_k=12)


def test_an_unknown_quality_names_the_choices():
    config = parse_config({"model": {"quality": "distribution_guide"}})
    with pytest.raises(UserError, match="did you mean 'distribution_guided'"):
        build_model(config, 3, load_pretrained=False)


def test_a_score_that_is_its_label_has_a_finite_gradient_for_a_fractional_beta():
    scores = torch.tensor([0.0, 0.5, 1.0], requires_grad=True)
    quality_focal_loss_of_scores(scores, scores.detach(), 0.5).sum().backward()
    assert scores.grad.isfinite().all()
