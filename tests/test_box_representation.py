"""What box channels mean: sides, their doubt, and their density loss."""

import math

import pytest
import torch
from conftest import assert_close

from gfl.losses import distribution_focal_loss
from gfl.models.box_representation import GeneralBox


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
