"""What tools/experiments make their tables of."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from builders import tiny_config, write_coco
from conftest import REPOSITORY

from gfl.errors import UserError

sys.path.insert(0, str(REPOSITORY / "tools" / "experiments"))
import compared
import noisy_labels


def verdicts(*rows) -> list[str]:
    text = compared.table({str(n): row for n, row in enumerate(rows)}, ("a", "b"), "AP")
    return [line.split("|")[-2].strip() for line in text.splitlines()[4:]]


def test_a_difference_is_resolved_where_it_exceeds_both_ranges():
    assert verdicts(([0.1, 0.2], [0.4, 0.45]), ([0.1, 0.2], [0.2, 0.29])) == ["yes", "no"]
    assert verdicts(([0.1, 0.12], [0.2, 0.5])) == ["no"]


def test_one_seed_resolves_nothing():
    assert verdicts(([0.1], [0.9])) == ["no"]


def test_runs_of_other_settings_are_not_mixed(tmp_path):
    settings = {"config": "quickstart", "overrides": ["train.epochs=2"]}
    compared.same_settings(tmp_path / "out", settings)
    compared.same_settings(tmp_path / "out", settings)
    with pytest.raises(UserError, match=r"overrides \['train.epochs=2'\], now \[\]"):
        compared.same_settings(tmp_path / "out", {**settings, "overrides": []})


@pytest.mark.parametrize(
    "command",
    [
        ["noisy_labels.py", "classifier", "--data", "MISSING"],
        ["distillation.py", "--data", "MISSING"],
        ["distillation.py", "--data", "MISSING", "--config", "nope"],
    ],
)
def test_a_users_mistake_is_a_sentence(command, tmp_path):
    program, *rest = command
    rest = [str(tmp_path / "missing") if word == "MISSING" else word for word in rest]
    path = REPOSITORY / "tools" / "experiments" / program
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, path, *rest, "--out", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "Traceback" not in done.stderr


def test_an_output_folder_that_can_not_be_is_a_message(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"cannot write .*settings\.json"):
        compared.same_settings(tmp_path / "file" / "out", {})


def test_a_finished_run_is_read_and_not_repeated(tmp_path):
    assert compared.kept(tmp_path / "out" / "a.json", lambda: 0.25) == 0.25
    assert compared.kept(tmp_path / "out" / "a.json", lambda: 1 / 0) == 0.25
    assert json.loads((tmp_path / "out" / "a.json").read_text()) == 0.25


def test_flipped_labels_are_others_and_a_larger_share_holds_the_smaller():
    labels = np.arange(3000) % 3
    few, many = (noisy_labels.flip(labels, 3, share, 5) for share in (0.2, 0.4))
    assert (noisy_labels.flip(labels, 3, 0.0, 5) == labels).all()
    assert abs((few != labels).mean() - 0.2) < 0.03 and abs((many != labels).mean() - 0.4) < 0.03
    changed = few != labels
    assert (few[changed] == many[changed]).all() and set(many) == {0, 1, 2}


def test_a_training_that_had_ended_still_gives_its_ap(tmp_path):
    config = tiny_config(write_coco(tmp_path / "data", {"train": 4, "val": 2}), epochs=1)
    first = compared.last_ap(config, tmp_path / "run")
    assert compared.last_ap(config, tmp_path / "run") == pytest.approx(first, abs=1e-9)
