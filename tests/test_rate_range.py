"""The learning-rate range test: a problem whose largest rate is known, and a tiny training."""

import csv
import json
import math

import numpy as np
import pytest
from builders import tiny_values, write_coco
from test_train import write_config

from gfl.cli.lr_test import main
from gfl.engine.rate_range import RateRange, range_test
from gfl.errors import UserError


def noisy_quadratic(curvature: float):
    """Steps down curvature / 2 * x^2 with a little noise: they diverge beyond 2 / curvature."""
    rng, place = np.random.default_rng(0), np.full(20, 10.0)

    def step(rate: float) -> float:
        loss = float(0.5 * curvature * (place**2).mean()) + 0.1
        place[:] -= rate * curvature * (place + 0.01 * rng.normal(size=20))
        return loss

    return step


@pytest.mark.parametrize("curvature", [0.1, 1.0, 50.0])
def test_a_quadratic_diverges_at_two_over_its_curvature(curvature):
    found = range_test(noisy_quadratic(curvature), 1e-4 / curvature, 100 / curvature, 240)
    assert found.ending == "the smoothed loss is 4 times its least"
    # It is seen some ten steps later, each of a factor 1.06.
    assert 2 < found.rates[-1] * curvature < 4.5
    low, high = found.suggestion
    assert 0 < low < high < 2 / curvature
    assert found.rates[found.steepest] * curvature < 0.5
    assert found.rates[found.least] < found.rates[-1]
    assert math.isclose(found.rates[1] / found.rates[0], found.rates[9] / found.rates[8])


def test_smoothing_and_suggestion_by_hand():
    losses = iter([4.0, 2.0, 1.0])
    found = range_test(lambda rate: next(losses), 1.0, 100.0, 3)
    assert found.rates == pytest.approx((1, 10, 100)) and found.ending is None
    # 0.1 * 4 / 0.1; (0.09 * 4 + 0.1 * 2) / 0.19; (0.081 * 4 + 0.09 * 2 + 0.1) / 0.271
    assert found.smoothed == pytest.approx((4.0, 0.56 / 0.19, 0.604 / 0.271))
    assert found.least == 2 and found.steepest == 1
    assert found.suggestion == pytest.approx((10, 10))
    # Slopes over two steps: -1 and -4; a tenth of the last rate is below.
    falls = (9.0, 9.0, 8.0, 5.0, 6.0)
    found = RateRange((0.1, 1.0, 10.0, 20.0, 30.0), falls, falls, None)
    assert (found.least, found.steepest) == (3, 2) and found.suggestion == (2.0, 10.0)


def test_a_loss_that_is_not_finite_or_never_falls():
    losses = iter([3.0, 2.0, math.nan])
    found = range_test(lambda rate: next(losses), 1.0, 100.0, 30)
    assert found.ending == "the loss is not finite" and found.least == 1
    for never in (math.nan, math.inf):
        with pytest.raises(UserError, match="before any step"):
            range_test(lambda rate, loss=never: loss, 1.0, 100.0, 30)
    risen = iter([1.0, 2.0, 3.0])
    assert range_test(lambda rate: next(risen), 1.0, 100.0, 3).suggestion is None


def test_the_command_on_a_tiny_training(tmp_path, capsys):
    values = tiny_values(write_coco(tmp_path / "set", {"train": 4}), lr=0.01)
    values["data"] |= {"train_size": "auto", "auto_largest": 64}
    config, out = write_config(tmp_path / "c.yaml", values), tmp_path / "out"
    argv = [config, "--out", str(out), "--steps", "20", "--json", str(tmp_path / "found.json")]
    assert main(argv) == 0
    shown, said = capsys.readouterr()
    assert "auto: data.train_size={short: 64, long: 64}" in said
    assert "steps, train.lr 1e-05 to " in shown and "suggestion" in shown
    rows = list(csv.DictReader((out / "lr_test.csv").open()))
    found = json.loads((tmp_path / "found.json").read_text())
    assert [float(row["train.lr"]) for row in rows] == found["rates"]
    assert float(rows[0]["loss"]) == found["losses"][0] > 0.1
    assert (out / "lr_test.png").read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in out.iterdir()) == ["lr_test.csv", "lr_test.png"]

    assert main([*argv, "data.pad_to=[[32, 32]]"]) == 2
    assert "holds no batch of" in capsys.readouterr().err
    assert main([*argv, "--lowest", "1", "--highest", "0.5"]) == 2
    assert "expected 0 < lowest < highest" in capsys.readouterr().err
