"""Rules for the shape of a side's distribution, worked out by hand."""

import numpy as np
import pytest

from gfl.analysis.shapes import SHAPES, is_two_peaked, shapes, std_in_bins


@pytest.mark.parametrize(
    ("probabilities", "shape"),
    [
        ([0, 0, 1, 0, 0, 0], "sharp"),
        ([0, 0, 0.5, 0.5, 0, 0], "sharp"),  # between two bins: deviation 0.5
        ([0, 0.15, 0.7, 0.15, 0, 0], "sharp"),  # sqrt(0.3) = 0.55
        ([0, 0.25, 0.5, 0.25, 0, 0], "ordinary"),  # sqrt(0.5) = 0.71
        ([1 / 6] * 6, "flat"),  # sqrt(35 / 12) = 1.71
        ([0, 0.5, 0, 0, 0.5, 0], "two-peaked"),
        ([0.5, 0, 0.5, 0, 0, 0], "two-peaked"),  # deviation 1, one bin between
        ([0.5, 0.24, 0.26, 0, 0, 0], "ordinary"),  # no valley: 0.24 is more than half of 0.26
        ([0.4, 0.15, 0.45, 0, 0, 0], "two-peaked"),
        ([0.4, 0.21, 0.39, 0, 0, 0], "ordinary"),  # 0.21 is more than half of 0.39
        ([0.86, 0, 0, 0, 0.14, 0], "ordinary"),  # the second one is too light; deviation 1.39
        ([0.84, 0, 0, 0, 0.16, 0], "two-peaked"),
    ],
)
def test_shape_by_hand(probabilities, shape):
    p = np.array([probabilities], float)
    assert SHAPES[shapes(p)[0]] == shape
    assert SHAPES[shapes(p[:, ::-1])[0]] == shape  # mirrored


def test_three_peaks_are_two_peaked_and_a_long_tail_is_not():
    assert is_two_peaked(np.array([[0.3, 0, 0.4, 0, 0.3]]))[0]
    assert not is_two_peaked(np.array([[0.4, 0.3, 0.15, 0.08, 0.04, 0.03]]))[0]


def test_deviation_in_bins():
    # Bins 0 and 4, as likely: mean 2, deviation 2.
    assert std_in_bins(np.array([[0.5, 0, 0, 0, 0.5]])).tolist() == [2.0]


@pytest.mark.parametrize("size", [(0, 17), (0, 2)])
def test_no_sides(size):
    assert shapes(np.zeros(size)).shape == (0,)


def test_two_bins_have_no_valley():
    assert not is_two_peaked(np.array([[0.5, 0.5]]))[0]
