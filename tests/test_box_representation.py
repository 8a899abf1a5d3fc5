"""What box channels mean: sides, their doubt, and their density loss."""

import math

import pytest
import torch
from conftest import assert_close

from gfl.losses import distribution_focal_loss
from gfl.models.box_representation import DiracBox, GaussianBox, GeneralBox


def logits_of(probabilities: list) -> torch.Tensor:
    """(K,) logits of four side distributions; bins of probability 0 get a very small one."""
    return torch.tensor(probabilities).log().clamp(min=-200).flatten()


@pytest.mark.parametrize(("reg_max", "channels"), [(1, 8), (7, 32), (16, 68)])
def test_there_is_a_channel_for_each_side_and_bin(reg_max, channels):
    assert GeneralBox(reg_max).channels == channels


def test_sides_are_outer_and_bins_inner():
    # Means: left (2 + 10) / 8, top (0 + 1 + 2) / 3, right 0, bottom (1 + 2) / 2.
    logits = logits_of([[1 / 8, 2 / 8, 5 / 8], [1 / 3] * 3, [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]])
    assert_close(GeneralBox(2).ltrb_cells(logits), [1.5, 1, 0, 1.5])
    assert_close(GeneralBox(2).ltrb_cells(logits.expand(2, 3, 12)), [[[1.5, 1, 0, 1.5]] * 3] * 2)


def test_edge_std_is_the_one_worked_by_hand():
    # Left: 1/4 at 0 and 3/4 at 4 has mean 3 and variance 1/4 * 9 + 3/4 * 1 = 3. Top: halves at 1
    # and 3, variance 1. Right: one bin, 0. Bottom: 1/8, 2/8, 5/8, mean 3/2, variance
    # 1/8 * 9/4 + 2/8 * 1/4 + 5/8 * 1/4 = 1/2.
    logits = logits_of(
        [[0.25, 0, 0, 0, 0.75], [0, 0.5, 0, 0.5, 0], [0, 0, 1.0, 0, 0], [1 / 8, 2 / 8, 5 / 8, 0, 0]]
    )
    want = [math.sqrt(3), 1, 0, math.sqrt(0.5)]
    assert_close(GeneralBox(4).edge_std_cells(logits), want)


@pytest.mark.parametrize("reg_max", [1, 8, 16])
def test_uniform_distribution_has_the_known_std(reg_max):
    logits = torch.full((3, 4 * (reg_max + 1)), -2.0)
    want = math.sqrt(((reg_max + 1) ** 2 - 1) / 12)
    assert_close(GeneralBox(reg_max).edge_std_cells(logits), torch.full((3, 4), want))


def test_density_loss_is_the_mean_over_the_sides():
    # Targets 0.5, 1, 0, 1.25 on 1/8, 2/8, 5/8.
    logits = logits_of([[1 / 8, 2 / 8, 5 / 8]] * 4)
    eighths = [math.log(8 / 1), math.log(8 / 2), math.log(8 / 5)]
    sides = [
        0.5 * eighths[0] + 0.5 * eighths[1],
        eighths[1],
        eighths[0],
        0.75 * eighths[1] + 0.25 * eighths[2],
    ]
    loss = GeneralBox(2).density_loss(logits, torch.tensor([0.5, 1.0, 0.0, 1.25]))
    assert_close(loss, sum(sides) / 4)


def test_density_loss_clamps_targets_to_the_bins():
    box, logits = GeneralBox(8), torch.randn(36)
    beyond = box.density_loss(logits, torch.tensor([100.0, -3.0, 8.0, 3.5]))
    clamped = torch.tensor([7.9, 0.0, 7.9, 3.5])
    assert_close(beyond, distribution_focal_loss(logits.reshape(4, 9), clamped).mean())


def test_distributions_are_the_sides_probabilities():
    wanted = [[1 / 8, 2 / 8, 5 / 8], [1 / 3] * 3, [1.0, 0.0, 0.0], [0.0, 0.5, 0.5]]
    assert_close(GeneralBox(2).distributions(logits_of(wanted)), wanted)
    large = GeneralBox(16).distributions(torch.randn(5, 68) * 100)
    assert_close(large.sum(-1), torch.ones(5, 4))


def test_no_locations_give_no_sides():
    box, none = GeneralBox(16), torch.zeros(0, 68, requires_grad=True)
    assert box.ltrb_cells(none).shape == box.edge_std_cells(none).shape == (0, 4)
    assert box.distributions(none).shape == (0, 4, 17)
    loss = box.density_loss(none, torch.zeros(0, 4))
    loss.sum().backward()
    assert loss.shape == (0,) and none.grad.shape == (0, 68)


# Other representations ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0.5, 2.0, 4.0])
def test_wider_bins_stretch_sides_and_deviations(width):
    """The same logits mean `width` times the distance; probabilities stay."""
    logits, one, wide = torch.randn(6, 68), GeneralBox(16), GeneralBox(16, width)
    assert_close(wide.ltrb_cells(logits), one.ltrb_cells(logits) * width)
    assert_close(wide.edge_std_cells(logits), one.edge_std_cells(logits) * width)
    assert_close(wide.distributions(logits), one.distributions(logits))
    target = torch.rand(6, 4) * 16
    assert_close(wide.density_loss(logits, target * width), one.density_loss(logits, target))


@pytest.mark.parametrize("width", [0.5, 2.0])
def test_density_targets_beyond_the_range_of_wider_bins_are_clamped_to_it(width):
    box, logits = GeneralBox(8, width), torch.randn(36)
    beyond = box.density_loss(logits, torch.tensor([100.0, -3.0, 8 * width, 3.5 * width]))
    clamped = torch.tensor([7.9, 0.0, 7.9, 3.5])
    assert_close(beyond, distribution_focal_loss(logits.reshape(4, 9), clamped).mean())


def test_dirac_sides_are_exponentials_that_start_at_four_strides():
    logits = torch.tensor([0.0, math.log(2), -math.log(8), math.log(0.25)], requires_grad=True)
    box = DiracBox()
    assert box.channels == 4 and box.density_name is None
    sides = box.ltrb_cells(logits)
    assert_close(sides, [4, 8, 0.5, 1])
    sides.sum().backward()
    assert_close(logits.grad, [4, 8, 0.5, 1])  # an exponential is its own slope
    assert box.edge_std_cells(logits).tolist() == [0, 0, 0, 0]
    assert box.distributions(logits) is None


@pytest.mark.parametrize("box", [DiracBox(), GaussianBox()])
def test_no_side_is_longer_than_a_thousand_strides_and_none_is_negative(box):
    logits = torch.tensor([-1e4, -100.0, 5.52, 5.53, 100.0, 1e4])
    logits = logits[:, None].expand(-1, box.channels).clone().requires_grad_()
    sides = box.ltrb_cells(logits)
    assert_close(sides[:, 0], [0, 0, 4 * math.exp(5.52), 1000, 1000, 1000], rtol=1e-4)
    assert sides.isfinite().all() and (sides >= 0).all()
    (sides.sum() + box.edge_std_cells(logits).sum()).backward()
    assert logits.grad.isfinite().all()


def gaussian_logits(means: list, deviations: list) -> torch.Tensor:
    """(8,) channels of four sides, mean and deviation alternating, in strides."""
    mean, deviation = torch.tensor(means), torch.tensor(deviations)
    return torch.stack(((mean / 4).log(), deviation.log()), -1).flatten()


def test_gaussian_sides_are_the_means_and_doubts_the_deviations():
    logits = gaussian_logits([4.0, 0.5, 8.0, 2.0], [1.0, 0.25, 3.0, 10.0])
    box = GaussianBox()
    assert (box.channels, box.density_name) == (8, "loss_nll")
    assert_close(box.ltrb_cells(logits), [4, 0.5, 8, 2])
    assert_close(box.edge_std_cells(logits), [1, 0.25, 3, 10])
    assert_close(box.edge_std_cells(gaussian_logits([1.0] * 4, [0.01, 0.05, 20, 99])),
                 [0.05, 0.05, 20, 20])  # fmt: skip


def test_gaussian_density_loss_is_the_mean_likelihood_of_the_sides():
    means, deviations = [4.0, 0.5, 8.0, 2.0], [1.0, 0.25, 3.0, 10.0]
    target = torch.tensor([3.0, 0.5, 30.0, -1.0])
    loss = GaussianBox().density_loss(gaussian_logits(means, deviations), target)
    normal = torch.distributions.Normal(torch.tensor(means), torch.tensor(deviations))
    assert_close(loss, -normal.log_prob(target).mean())


@pytest.mark.parametrize(("reg_max", "width"), [(16, 1.0), (8, 0.5), (4, 4.0), (1, 1.0)])
def test_gaussian_distributions_are_the_shares_of_the_bins(reg_max, width):
    means, deviations = [4.0, 0.3, 20.0, 2.0], [1.0, 0.1, 3.0, 10.0]
    got = GaussianBox(reg_max, width).distributions(gaussian_logits(means, deviations))
    assert got.shape == (4, reg_max + 1)
    for side in range(4):
        normal = torch.distributions.Normal(means[side], deviations[side])
        # Bin k reaches from k - 1/2 to k + 1/2 widths, the outer ones to infinity.
        ends = [-math.inf, *((k + 0.5) * width for k in range(reg_max)), math.inf]
        below = [float(normal.cdf(torch.tensor(end))) for end in ends]
        shares = [b - a for a, b in zip(below, below[1:], strict=False)]
        assert_close(got[side], shares, rtol=1e-4, atol=1e-6)
    assert_close(got.sum(-1), [1, 1, 1, 1])


def test_gaussian_distributions_have_mean_and_deviation_of_the_normal_inside_the_range():
    logits = gaussian_logits([4.0, 5.25, 8.0, 9.5], [1.0, 1.5, 2.0, 1.0])
    probabilities, bins = GaussianBox().distributions(logits), torch.arange(17.0)
    mean = probabilities @ bins
    assert_close(mean, [4, 5.25, 8, 9.5], rtol=1e-3)
    variance = probabilities @ bins.square() - mean.square()
    # Rounding to bins adds a twelfth.
    assert_close(variance, [s**2 + 1 / 12 for s in (1, 1.5, 2, 1)], rtol=1e-2)


@pytest.mark.parametrize("box", [DiracBox(), GaussianBox()])
def test_no_locations_give_no_sides_of_other_representations(box):
    none = torch.zeros(0, box.channels)
    assert box.ltrb_cells(none).shape == box.edge_std_cells(none).shape == (0, 4)
    if box.density_name:
        assert box.distributions(none).shape == (0, 4, 17)
        assert box.density_loss(none, torch.zeros(0, 4)).shape == (0,)
