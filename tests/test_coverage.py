"""Coverage of intervals: counts by hand, temperatures that are known, and what may be said."""

from dataclasses import replace
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
from test_matched import BOX, split_of

from gfl.analysis.coverage import (
    LEVELS,
    MIN_IMAGES,
    MIN_SIDES,
    TEMPERATURES,
    Coverage,
    Sides,
    coverage,
    cross_fitted_levels,
    curve,
    fit_temperature,
    judge,
    student_quantile,
    summarise,
)
from gfl.analysis.plots import reliability
from gfl.analysis.svg import Plot


def normal_sides(count: int, error: float, seed: int = 0, per_image: int = 10) -> Sides:
    """Distributions of deviation 2 over fine bins; true sides off by `error` times that."""
    rng = np.random.default_rng(seed)
    positions = np.arange(-60, 61) * 0.5
    p = np.exp(-(positions**2) / 8)
    return Sides(
        probabilities=np.tile(p / p.sum(), (count, 1)),
        positions=np.tile(positions, (count, 1)),
        truth=rng.normal(0, 2 * error, count),
        images=np.arange(count) // per_image,
    )


def test_coverage_counts_and_takes_images_as_units():
    levels = np.array([0.1, 0.2, 0.9, 0.3])
    # Covered at 0.5: yes yes no yes. Two images: surpluses 0.5 and -0.5, so that the clustered
    # variance is (0.25 + 0.25) / 16 * 2 / 1 = 1 / 16, 4/3 of it where the share is 0.5.
    one = coverage(levels, np.array([7, 7, 9, 9]), 0.5)
    of_two = student_quantile(1)
    assert one.share == 0.75 and one.margin == pytest.approx(of_two / 4 * np.sqrt(4 / 3))
    # All sides of an image alike: much less is known than of 100 independent ones.
    alike = coverage(np.repeat([0.0, 1.0], 50), np.repeat([0, 1], 50), 0.5)
    apart = coverage(np.tile([0.0, 1.0], 50), np.arange(100), 0.5)
    assert alike.margin == pytest.approx(of_two * 0.5)
    assert apart.margin == pytest.approx(student_quantile(99) * 0.5 / np.sqrt(99), rel=1e-6)


def test_students_quantile_is_that_of_the_tables():
    for freedom, wanted in {3: 3.182, 5: 2.571, 9: 2.262, 30: 2.042, 120: 1.980}.items():
        assert student_quantile(freedom) == pytest.approx(wanted, rel=0.01)
    assert student_quantile(10**6) == pytest.approx(1.96, abs=1e-5)
    assert student_quantile(0) == student_quantile(1) > 4


@pytest.mark.parametrize("probability", [0.5, 0.9, 0.95])
def test_a_confidence_interval_holds_the_truth_with_few_images(probability):
    """Ten images whose sides err together (correlation 0.3), calibrated: 95 % is promised."""
    rng, held, tries = np.random.default_rng(0), 0, 1000
    limit = NormalDist().inv_cdf(probability)
    for _ in range(tries):
        images = np.repeat(np.arange(10), rng.integers(4, 60, 10))
        common, own = rng.normal(size=10)[images], rng.normal(size=len(images))
        inside = np.sqrt(0.3) * common + np.sqrt(0.7) * own <= limit
        one = coverage(np.where(inside, 0.0, 1.0), images, probability)
        held += abs(one.share - probability) <= one.margin
    assert held / tries > 0.9


def test_a_share_of_one_is_not_taken_for_certain():
    one = coverage(np.zeros(100), np.arange(100), 0.9)
    assert one.share == 1.0 and one.margin == pytest.approx(1.96 * 0.03)


@pytest.mark.parametrize("error", [0.5, 1.0, 2.5])
def test_the_temperature_of_known_errors_is_found(error):
    assert fit_temperature(normal_sides(4000, error)) == pytest.approx(error, rel=0.06)


def test_one_is_among_the_temperatures_and_what_calibrated_sides_get():
    assert 1.0 in TEMPERATURES and len(TEMPERATURES) == 97
    assert TEMPERATURES[[0, -1]] == pytest.approx([0.1, 10])
    assert fit_temperature(normal_sides(4000, 1.0)) == 1.0


def test_a_temperature_stretches_about_the_expectation():
    # Half at 10, half at 14, evenly from 8 to 16. The true side is at 17, which no interval
    # reaches; with T = 2 it is where (17 - 12) / 2 + 12 = 14.5 was: 81.25 % lie below.
    p, x = np.array([[0.5, 0.5]]), np.array([[10.0, 14.0]])
    sides = Sides(p, x, np.array([17.0]), np.array([0]))
    assert sides.levels().tolist() == [1.0]
    assert sides.levels(2.0).tolist() == pytest.approx([2 * 0.8125 - 1])


def test_cross_fitting_uses_the_other_half_only():
    one, other = normal_sides(2000, 0.5, 1), normal_sides(2000, 2.0, 2)
    images = np.concatenate((one.images * 2, other.images * 2 + 1))  # every second image
    fields = ("probabilities", "positions", "truth")
    both = Sides(*(np.concatenate([getattr(s, f) for s in (one, other)]) for f in fields), images)
    levels = cross_fitted_levels(both)
    # Each half gets the temperature of the other: 2 where 0.5 were right, and the reverse.
    assert (levels[:2000] <= 0.5).mean() > 0.95 and (levels[2000:] <= 0.5).mean() < 0.2
    assert cross_fitted_levels(normal_sides(5, 1.0)) is None  # one image


def test_sides_of_normal_distributions_have_the_levels_of_the_normal():
    """Whatever the bins of the detections say: here nothing, as far beyond `reg_max`."""
    offsets, deviations = np.array([[0.0, -1.5, 3.0, 4.5]]), np.array([[2.0, 1.0, 3.0, 9.0]])
    split = split_of([[(0, BOX)]], [[(0, 0.9, tuple(np.array(BOX) + offsets[0]))]])
    records = replace(
        split.records,
        edge_std=deviations,
        probabilities=np.eye(17)[None, :4],
        positions=np.tile(np.arange(17.0), (1, 4, 1)),
        is_normal=True,
    )
    sides = records.sides()
    want = [2 * NormalDist().cdf(z) - 1 for z in (0.0, 1.5, 1.0, 0.5)]
    assert sides.levels().tolist() == pytest.approx(want, abs=0.003)
    halves = [2 * NormalDist().cdf(z) - 1 for z in (0.0, 0.75, 0.5, 0.25)]
    assert sides.levels(2.0).tolist() == pytest.approx(halves, abs=0.003)
    assert records.sides(1).levels().tolist() == pytest.approx(want[1:2], abs=0.003)


def coverages(*shares: float, margin: float = 0.01) -> list[Coverage]:
    return [Coverage(p, share, margin) for p, share in zip(LEVELS, shares, strict=True)]


@pytest.mark.parametrize(
    ("shares", "margin", "verdict"),
    [
        ((0.5, 0.8, 0.9, 0.95), 0.01, "calibrated"),
        ((0.535, 0.8, 0.865, 0.95), 0.01, "calibrated"),
        ((0.545, 0.8, 0.9, 0.95), 0.01, "open"),  # reaches across the tolerance
        ((0.5, 0.8, 0.9, 0.95), 0.06, "open"),  # right on average, but hardly known
        ((0.4, 0.7, 0.9, 0.95), 0.01, "too_narrow"),
        ((0.6, 0.9, 0.9, 0.95), 0.01, "too_wide"),
        ((0.6, 0.8, 0.9, 0.80), 0.01, "uneven"),
        ((0.6, 0.8, 0.9, 0.90), 0.02, "too_wide"),  # the last one may be within the tolerance
    ],
)
def test_words_follow_the_numbers(shares, margin, verdict):
    key, text = judge(coverages(*shares, margin=margin), 5000, 100)
    assert key == verdict
    assert text.startswith("Calibrated") == (verdict == "calibrated")
    assert "5000 true sides in 100 images" in text and f"{100 * shares[0]:.0f}, " in text


@pytest.mark.parametrize(("sides", "images"), [(MIN_SIDES - 1, 100), (5000, MIN_IMAGES - 1)])
def test_few_sides_or_images_say_nothing(sides, images):
    key, text = judge(coverages(0.5, 0.8, 0.9, 0.95), sides, images)
    assert key == "too_few" and "calibrated" not in text.lower()


def test_sides_that_are_as_doubtful_as_they_are_wrong_are_calibrated():
    sides = normal_sides(8000, 1.0)
    found = summarise(sides.levels(), sides.images)
    assert found["verdict"] == "calibrated"
    assert [one["level"] for one in found["levels"]] == list(LEVELS)
    narrow = normal_sides(8000, 2.0)
    assert summarise(narrow.levels(), narrow.images)["verdict"] == "too_narrow"
    assert summarise(np.zeros(0), np.zeros(0))["verdict"] == "too_few"


def test_whiskers_end_at_none_and_all(monkeypatch):
    drawn = []
    monkeypatch.setattr(Plot, "whisker", lambda self, *ends_and_name: drawn.append(ends_and_name))
    records = SimpleNamespace(sides=lambda: normal_sides(50, 1.0))
    levels = [{"level": p, "share": share, "margin": 0.1} for p, share in ((0.5, 0.05), (0.9, 1.0))]
    reliability(
        records, {"temperature": 1.0, "stored_temperature": None, "plain": {"levels": levels}}
    )
    assert [ends[1:3] for ends in drawn] == [(0, pytest.approx(0.15)), (0.9, 1)]


def test_of_equal_temperatures_the_one_nearest_to_1_is_taken():
    """The true side is the expectation: whatever the temperature, the level is 0."""
    sides = Sides(np.array([[0.5, 0.5]]), np.array([[10.0, 14.0]]), np.array([12.0]), np.array([0]))
    assert fit_temperature(sides) == pytest.approx(1.0)


def test_the_curve_counts_what_lies_at_its_points():
    points = dict(curve(np.array([0.0, 0.5, 1.0])))
    assert [points[x] for x in (0.0, 0.25, 0.5, 1.0)] == pytest.approx([1 / 3, 1 / 3, 2 / 3, 1])
    assert len(points) == 41 and set(dict(curve(np.zeros(0))).values()) == {0.0}
