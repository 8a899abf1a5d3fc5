"""Class scores that are expectations of distributions."""

import copy
import math

import pytest
import torch
from builders import make_targets, pyramid, tiny_values, write_coco
from conftest import assert_close

import gfl
from gfl.build import build_criterion, build_model, build_postprocess
from gfl.config import parse_config
from gfl.engine.checkpoint import load_checkpoint
from gfl.errors import UserError
from gfl.losses import quality_focal_loss, score_distribution_loss
from gfl.structures import ImageMeta, Predictions, expected_score

BETAS = [0.0, 1.0, 2.0, 2.5]


def distribution_values(folder="nowhere", bins=5, **train) -> dict:
    values = copy.deepcopy(tiny_values(folder, **train))
    values["model"]["head"] |= {"score": "distribution", "score_bins": bins}
    return values


def test_expected_score_by_hand():
    logits = torch.tensor([0.1, 0.2, 0.7]).log()
    assert expected_score(logits).item() == pytest.approx(0.2 * 0.5 + 0.7)
    assert expected_score(torch.tensor([0.0, 100.0])).item() == 1.0
    for bins in range(2, 120):  # rounded, yet never above 1
        assert expected_score(torch.eye(bins)[-1] * 100).item() == pytest.approx(1.0, abs=1e-6)
        assert expected_score(torch.eye(bins)[-1] * 100).item() <= 1.0


def test_loss_by_hand():
    # Scores 0, 1/2, 1. The label 0.6 is bin 1.2: 0.8 of it on 1/2, 0.2 on 1.
    logits = torch.tensor([[0.1, 0.2, 0.7]]).log()
    entropy = -0.8 * math.log(0.2) - 0.2 * math.log(0.7)
    got = score_distribution_loss(logits, torch.tensor([0.6]))
    assert_close(got, [(0.6 - 0.8) ** 2 * entropy])


@pytest.mark.parametrize("beta", BETAS)
def test_with_two_bins_it_is_the_quality_focal_loss(beta):
    logits = torch.randn(40, 3, 2, dtype=torch.float64, requires_grad=True)
    target = torch.rand(40, 3, dtype=torch.float64)
    target[0], target[1] = 0.0, 1.0
    ours = score_distribution_loss(logits, target, beta)
    scalar = quality_focal_loss(logits[..., 1] - logits[..., 0], target, beta)
    torch.testing.assert_close(ours, scalar, rtol=1e-12, atol=1e-14)
    (got,) = torch.autograd.grad(ours.sum(), logits, retain_graph=True)
    (want,) = torch.autograd.grad(scalar.sum(), logits)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.5, 1.0])
def test_the_loss_is_least_where_the_expectation_is_the_label(target):
    logits = torch.zeros(11, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=200)

    def closure():
        optimizer.zero_grad()
        loss = score_distribution_loss(logits, torch.tensor(target, dtype=torch.float64), 0.0)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert expected_score(logits).item() == pytest.approx(target, abs=2e-3)


def test_a_negative_beta_is_refused():
    with pytest.raises(ValueError, match="beta is -1"):
        score_distribution_loss(torch.zeros(1, 3), torch.zeros(1), -1)


@pytest.mark.parametrize("bins", [2, 11])
def test_scores_start_at_the_prior(bins):
    model = build_model(parse_config(distribution_values(bins=bins)), 3)
    with torch.no_grad():
        predictions = model(torch.zeros(1, 3, 64, 64))
    assert predictions.cls_logits.shape == (1, predictions.grid.strides.shape[0], 3, bins)
    assert_close(predictions.joint_scores(), torch.full((1, 86, 3), 0.01), atol=1e-4)


def test_criterion_with_two_bins_is_that_of_scalars():
    config = parse_config(distribution_values(bins=2))
    criterion = build_criterion(config)
    grid = pyramid(64, 96)
    count = grid.strides.shape[0]
    logits = torch.randn(2, count, 3, 2).requires_grad_()
    boxes = torch.randn(2, count, 4 * 9)
    targets = make_targets([[[5.0, 6, 60, 50]], []], [[2], []], size=(64, 96))
    ours = criterion(Predictions(logits, boxes, grid), targets)
    scalar = criterion(Predictions(logits[..., 1] - logits[..., 0], boxes, grid), targets)
    assert ours.keys() == scalar.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], scalar[name], rtol=1e-5, atol=1e-6)


def test_detections_come_from_expected_scores():
    config = parse_config(distribution_values(bins=3))
    grid = pyramid(64, 64)
    logits = torch.zeros(1, grid.strides.shape[0], 2, 3)
    logits[..., 0] = 20.0
    logits[0, 3, 1] = torch.tensor([0.1, 0.2, 0.7]).log()
    boxes = torch.randn(1, grid.strides.shape[0], 36)
    meta = ImageMeta(1, (64, 64), (64, 64), (1.0, 1.0))
    [found] = build_postprocess(config)(Predictions(logits, boxes, grid), (meta,))
    assert found.labels.tolist() == [1]
    assert_close(found.scores, [0.8])


def test_a_wrong_shape_of_logits_is_refused():
    grid = pyramid(64, 64)
    boxes = torch.zeros(1, grid.strides.shape[0], 36)
    with pytest.raises(ValueError, match="cls_logits"):
        Predictions(torch.zeros(1, 3, 2, 5), boxes, grid)


@pytest.mark.parametrize("quality", ["none", "iou_branch", "distribution_guided"])
def test_other_qualities_refuse_it_with_the_reason(quality):
    values = distribution_values()
    values["model"]["quality"] = quality
    with pytest.raises(UserError, match="learns a joint score.*Set model.quality: joint"):
        parse_config(values)


def test_training_continues_from_rows_of_the_same_classes(tmp_path):
    """Class rows are blocks of bins: those of a class move together."""
    folder = write_coco(tmp_path / "data", {"train": 4, "val": 2})
    config = parse_config(distribution_values(folder, epochs=1))
    gfl.train(config, work_dir=tmp_path / "first")
    best = tmp_path / "first" / "best.pt"
    pictures = sorted((folder / "images").iterdir())
    assert len(gfl.load(best, device="cpu").predict(pictures)) == 6

    from gfl.initialise import initialise

    again = parse_config(config.to_dict() | {"init_from": str(best)})
    names = ("disc", "other", "square")
    model = build_model(again, 3, load_pretrained=False)
    outcome = initialise(model, names, again)
    assert outcome.kept_classes == ("disc", "square")
    theirs = load_checkpoint(best)
    source = (theirs.get("ema") or theirs["model"])["head.cls_out.weight"].unflatten(0, (2, 5))
    order = theirs["class_map"]["names"]
    ours = model.head.cls_out.weight.unflatten(0, (3, 5))
    for row, name in ((0, "disc"), (2, "square")):
        assert torch.equal(ours[row], source[order.index(name)])
    assert not torch.equal(ours[1], source[0]) and not torch.equal(ours[1], source[1])


def test_an_expectation_that_is_its_label_has_a_finite_gradient_for_a_fractional_beta():
    logits = torch.zeros(1, 2, requires_grad=True)
    score_distribution_loss(logits, torch.tensor([0.5]), 0.5).sum().backward()
    assert logits.grad.isfinite().all()
