"""Intervals of a side's distribution, worked out by hand."""

import pytest
import torch

from gfl.detections import Detections
from gfl.errors import UserError
from gfl.intervals import central_interval, central_level


def test_one_sure_bin_is_as_wide_as_the_bin():
    # All probability in the bin at 20, which reaches from 15 to 25: 80 % of it are 16 to 24.
    positions = torch.tensor([10.0, 20, 30])
    interval = central_interval(torch.tensor([0.0, 1, 0]), positions, 0.8)
    assert interval.tolist() == pytest.approx([16.0, 24.0])


def test_quantiles_lie_between_bins():
    # Bins at 0, 1, 2 with 0.2, 0.5, 0.3: 0.1 is reached half-way through the first bin (from -0.5
    # to 0.5), 0.9 after 0.2 of the third one's 0.3, at 1.5 + 2 / 3.
    interval = central_interval(torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.0, 1, 2]), 0.8)
    assert interval.tolist() == pytest.approx([0.0, 1.5 + 2 / 3])


def test_bins_that_count_backwards_give_the_same_interval():
    p, x = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.0, 1, 2])
    for level in (0.1, 0.5, 0.95):
        forwards = central_interval(p, x, level)
        assert central_interval(p.flip(0), x.flip(0), level).tolist() == pytest.approx(
            forwards.tolist()
        )


def test_empty_bins_at_the_ends_hold_nothing():
    p = torch.tensor([0.0, 0, 1, 0, 0])
    interval = central_interval(p, torch.arange(5.0), 0.999)
    assert 1.5 <= interval[0] < 1.501 and 2.499 < interval[1] <= 2.5


def test_the_level_of_a_place_by_hand():
    p, x = torch.tensor([0.2, 0.5, 0.3]), torch.tensor([0.0, 1, 2])
    # The median lies 0.3 / 0.5 into the middle bin; 0.5 has 0.2 below it; beyond the bins: all.
    places = torch.tensor([0.5 + 0.6, 0.5, 2.5, -7.0])
    levels = central_level(p.expand(4, 3), x.expand(4, 3), places)
    assert levels.tolist() == pytest.approx([0.0, 0.6, 1.0, 1.0], abs=1e-6)


def test_interval_and_level_are_inverse():
    torch.manual_seed(0)
    p = torch.softmax(torch.randn(50, 4, 17) * 2, -1)
    x = (torch.rand(50, 4, 1) * 100) + torch.arange(17) * (torch.rand(50, 4, 1) * 8 + 1)
    for level in (0.1, 0.5, 0.9):
        for end in central_interval(p, x, level).unbind(-1):
            got = central_level(p, x, end)
            torch.testing.assert_close(got, torch.full_like(got, level), rtol=0, atol=1e-4)


def detections(distributions: bool = True) -> Detections:
    """Two boxes; each left side is 10 or 14, as likely."""
    left = torch.tensor([[18.0, 14.0, 10.0, 6.0]])
    positions = torch.cat([left, left + 1, 58 - left, 59 - left])[None].repeat(2, 1, 1)
    p = torch.tensor([0.0, 0.5, 0.5, 0.0]).repeat(2, 4, 1)
    return Detections(
        boxes=torch.tensor([[12.0, 13, 46, 47]] * 2),
        scores=torch.tensor([0.9, 0.8]),
        labels=torch.zeros(2, dtype=torch.long),
        edge_std=torch.full((2, 4), 2.0),
        distributions=p if distributions else None,
        edge_positions=positions if distributions else None,
    )


def test_edge_interval_of_each_side():
    # Half at 10, half at 14, bins 4 wide: evenly from 8 to 16.
    interval = detections().edge_interval(0.5)
    assert interval.shape == (2, 4, 2) and interval.dtype == torch.float32
    want = [[10, 14], [11, 15], [44, 48], [45, 49]]
    torch.testing.assert_close(interval[1], torch.tensor(want, dtype=torch.float32))
    assert detections().select(torch.tensor([], dtype=torch.long)).edge_interval(0.5).shape == (
        0,
        4,
        2,
    )


@pytest.mark.parametrize("p", [0, 1, 1.2, -0.5, "half", True, None, float("nan")])
def test_a_probability_that_is_none(p):
    with pytest.raises(UserError, match="between 0 and 1"):
        detections().edge_interval(p)


def test_without_distributions_the_message_says_how_to_get_them():
    with pytest.raises(UserError, match="distributions=True"):
        detections(False).edge_interval(0.9)


def test_a_temperature_widens_about_the_side_and_moves_nothing():
    found = detections()
    wide = found.widened(3.0)
    for field in ("boxes", "scores", "labels", "distributions"):
        assert torch.equal(getattr(wide, field), getattr(found, field))
    assert torch.equal(wide.edge_std, found.edge_std * 3)
    # 10 and 14 about 12 become 6 and 18; the expectation is where it was.
    assert wide.edge_positions[0, 0].tolist() == pytest.approx([30, 18, 6, -6])
    expected = (wide.distributions * wide.edge_positions).sum(-1)
    torch.testing.assert_close(expected, found.boxes)
    torch.testing.assert_close(
        wide.edge_interval(0.5) - found.boxes[..., None],
        3 * (found.edge_interval(0.5) - found.boxes[..., None]),
    )
    assert found.widened(1.0) is found
    assert torch.equal(detections(False).widened(2.0).edge_std, torch.full((2, 4), 4.0))
