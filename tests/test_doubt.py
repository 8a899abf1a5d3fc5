"""Doubt beside error and blur."""

import numpy as np
import pytest
from test_matched import BOX, found_of, split_of

from gfl.analysis.doubt import doubt_and_blur, doubt_and_error, groups
from gfl.analysis.matching import partial_spearman, spearman


def test_doubt_and_error_of_each_side():
    # Sides are off by 1, 2, 3, 4 pixels, and doubted by 2, 4, 6, 1.
    found = found_of([(0, 0.9, (11, 12, 53, 54)), (0, 0.1, (60, 60, 80, 80))])
    found.edge_std.data = found.edge_std.new_tensor([[2, 4, 6, 1], [99, 99, 99, 99]])
    numbers = doubt_and_error(split_of([[(0, BOX)]], [found]).records)
    assert [numbers[side]["rms_error"] for side in ("left", "top", "right", "bottom")] == [
        1, 2, 3, 4,
    ]  # fmt: skip
    assert [numbers[s]["rms_deviation"] for s in ("left", "top", "right", "bottom")] == [2, 4, 6, 1]
    everything = numbers["all"]
    assert everything["sides"] == 4 and everything["mean_error"] == 2.5
    # Ranks of errors 0 1 2 3, of deviations 1 2 3 0: 1 - 6 * (1 + 1 + 1 + 9) / 60.
    assert everything["rank_correlation"] == pytest.approx(-0.2)
    assert everything["rms_error"] == pytest.approx(np.sqrt(30 / 4))
    assert numbers["left"]["rank_correlation"] is None  # one side has no rank


def test_clipped_sides_are_left_out_and_counted():
    found = found_of([(0, 0.9, (0, 10, 50, 50))])
    numbers = doubt_and_error(split_of([[(0, (0, 10, 50, 50))]], [found]).records)
    assert numbers["clipped_left_out"] == 1 and numbers["all"]["sides"] == 3
    assert numbers["left"] == {
        "sides": 0, "rank_correlation": None, "size_held_fixed": None, "rms_deviation": None,
        "rms_error": None, "mean_error": None,
    }  # fmt: skip


def test_correlation_that_is_size_alone_vanishes_with_the_size_held_fixed():
    rng = np.random.default_rng(0)
    size = np.repeat(np.arange(100.0), 20)
    std, error = size + rng.normal(0, 3, 2000), size + rng.normal(0, 3, 2000)
    assert spearman(std, error) > 0.9
    assert abs(partial_spearman(std, error, size)) < 0.05


def test_partial_spearman_by_hand():
    # r12 = 0.8, r13 = 0.8, r23 = 0.4: (0.8 - 0.32) / sqrt(0.36 * 0.84).
    first, second, third = [1, 2, 3, 4], [1, 3, 2, 4], [2, 1, 3, 4]
    assert [spearman(first, second), spearman(first, third)] == pytest.approx([0.8, 0.8])
    assert spearman(second, third) == pytest.approx(0.4)
    want = 0.48 / np.sqrt(0.36 * 0.84)
    assert partial_spearman(first, second, third) == pytest.approx(want)
    assert partial_spearman(first, second, [5, 5, 5, 5]) == pytest.approx(0.8)
    assert partial_spearman(first, second, first) is None
    assert partial_spearman([1, 1], [1, 2], [1, 2]) is None


def test_groups_are_of_equal_number_the_surest_first():
    found = groups(np.array([4.0, 1, 3, 2]), np.array([40.0, 10, 30, 10]), 2)
    assert [one["sides"] for one in found] == [2, 2]
    assert found[0] == {"by": np.sqrt(2.5), "value": 10.0, "sides": 2}
    assert found[1]["value"] == pytest.approx(np.sqrt(1250))
    assert groups(np.zeros(0), np.zeros(0)) == [] and len(groups(np.ones(3), np.ones(3))) == 3


def test_doubt_and_blur_where_it_is_known():
    found = found_of([(0, 0.9, BOX)])
    found.edge_std.data = found.edge_std.new_tensor([[1.0, 2, 4, 3]])
    blur = {(10, 10, 10, 40, 40): [0.5, 0.6, 2.0, 4.0]}
    numbers = doubt_and_blur(split_of([[(0, BOX)]], [found], blur=blur).records)
    assert numbers["all"]["sides"] == 4
    assert numbers["all"]["rank_correlation"] == pytest.approx(0.8)
    assert doubt_and_blur(split_of([[(0, BOX)]], [found]).records) is None
    other = {(10, 1, 1, 40, 40): [1.0] * 4}
    unknown = doubt_and_blur(split_of([[(0, BOX)]], [found], blur=other).records)
    assert unknown["all"] == {"sides": 0, "rank_correlation": None, "size_held_fixed": None}
