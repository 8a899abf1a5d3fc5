"""Killed at any moment, a training goes on at its checkpoint and ends as if nothing had been."""

import json
import random
import shutil
import time

import jobs
import pytest
import torch
import yaml
from builders import tiny_values, write_coco
from test_train import assert_same_tensors, metrics_of

from gfl.engine.checkpoint import load_checkpoint

TOTAL = 6
# Of the 6 steps: last.pt after 2, 3 (end of the epoch), best.pt and last.pt after the evaluation,
# last.pt after 4, 6, then best.pt if it is better, and last.pt. 7 files or more.
MOMENTS = [
    ("killed_before_writing", 3),
    ("killed_in_the_bytes", 2),
    ("killed_before_rename", 4),
    ("killed_after_rename", 1),
    ("killed_in_the_bytes", 1),
    ("killed_before_writing", 6),
    ("killed_in_the_bytes", 5),
    ("killed_before_rename", 1),
    ("killed_before_rename", 6),
    ("killed_after_rename", 3),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Config, directory and seconds of a run that nothing interrupts."""
    tmp = tmp_path_factory.mktemp("kill")
    folder = write_coco(tmp / "set", {"train": 10, "val": 3}, empty_every=7)
    values = tiny_values(folder, ema_decay=0.9)
    config = tmp / "c.yaml"
    config.write_text(yaml.safe_dump(values))
    jobs.run([config, "--work-dir", tmp / "warm", "train.epochs=1"])  # starts the server
    started = time.monotonic()
    assert jobs.run([config, "--work-dir", tmp / "whole"]) == 0
    return config, tmp / "whole", time.monotonic() - started


def goes_on_as_if_nothing_had_been(whole, work_dir) -> None:
    """Resume what was killed; compare weights, averages, optimiser and metrics bit for bit."""
    config, uninterrupted, _ = whole
    last = work_dir / "last.pt"
    held = load_checkpoint(last)["step"] if last.exists() else 0  # whole whenever it is there
    assert jobs.run([config, "--work-dir", work_dir, "--resume"]) == 0
    text = (work_dir / "log.txt").read_text()
    assert (f"resumed at step {held} of {TOTAL}" in text) == (held > 0)
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / name, weights_only=True) for run in (uninterrupted, work_dir))
        assert_same_tensors(a, b)
    assert metrics_of(uninterrupted) == metrics_of(work_dir)
    assert list(work_dir.glob("*.tmp")) == []


def dies_at_a_forced_moment(whole, work_dir, moment) -> None:
    assert jobs.run([whole[0], "--work-dir", work_dir], spoil=moment) == -9
    goes_on_as_if_nothing_had_been(whole, work_dir)


def dies_at_a_random_moment(whole, work_dir, seed) -> None:
    config, _, seconds = whole
    process = jobs.start([config, "--work-dir", work_dir])
    time.sleep(random.Random(seed).uniform(0.1, 0.95) * seconds)
    process.kill()
    process.join()
    goes_on_as_if_nothing_had_been(whole, work_dir)


@pytest.mark.parametrize("moment", MOMENTS[:3], ids=lambda moment: f"{moment[0]}_{moment[1]}")
def test_a_run_killed_while_saving_ends_as_the_whole_one(whole, tmp_path, moment):
    dies_at_a_forced_moment(whole, tmp_path / "run", moment)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_a_random_moment_ends_as_the_whole_one(whole, tmp_path, seed):
    dies_at_a_random_moment(whole, tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}_{moment[1]}")
def test_ten_runs_killed_while_saving_end_as_the_whole_one(whole, tmp_path, moment):
    dies_at_a_forced_moment(whole, tmp_path / "run", moment)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_ten_runs_killed_at_random_moments_end_as_the_whole_one(whole, tmp_path, seed):
    dies_at_a_random_moment(whole, tmp_path / "run", seed)


# Files ------------------------------------------------------------------------------------------


def test_a_damaged_last_pt_falls_back_to_the_one_before_it(whole, tmp_path):
    """The run ends as the whole one does, and the good file outlives the next checkpoint."""
    config, uninterrupted, _ = whole
    work_dir = tmp_path / "run"
    assert jobs.run([config, "--work-dir", work_dir], spoil=("killed_after_rename", 5)) == -9
    last = work_dir / "last.pt"
    steps = [load_checkpoint(work_dir / n)["step"] for n in ("last.pt", "last.previous.pt")]
    assert steps == [4, 3]
    content = last.read_bytes()
    cut = content[: len(content) // 3]
    last.write_bytes(cut)
    assert jobs.run([config, "--work-dir", work_dir, "--resume"]) == 0
    text = (work_dir / "log.txt").read_text()
    assert f"{last} is damaged" in text and "Going on from last.previous.pt, of step 3" in text
    assert "resumed at step 3 of 6" in text
    assert (work_dir / "last.damaged.pt").read_bytes() == cut
    a, b = (torch.load(run / "last.pt", weights_only=True) for run in (uninterrupted, work_dir))
    assert_same_tensors(a, b)


def test_a_full_disk_leaves_the_old_files_and_the_training_goes_on(whole, tmp_path):
    """Files 2 to 4 (last, best, last of epoch 1) fail; best.pt is written at the next chance."""
    config, uninterrupted, _ = whole
    work_dir, log = tmp_path / "run", tmp_path / "stderr"
    argv = [config, "--work-dir", work_dir]
    assert jobs.run([*argv, "train.epochs=1"], spoil=("disk_full", *range(2, 20)), log=log) == 1
    text = log.read_text()
    assert "WARNING" in text and "last.pt of step 3 could not be written: No space left" in text
    assert "the file of before is whole" in text
    assert "training failed: the training is done, but" in text and "--resume" in text
    assert load_checkpoint(work_dir / "last.pt")["step"] == 2
    assert not (work_dir / "best.pt").exists() and list(work_dir.glob("*.tmp")) == []
    shutil.rmtree(work_dir)
    assert jobs.run(argv, spoil=("disk_full", 2, 3, 4), log=log) == 0
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / name, weights_only=True) for run in (uninterrupted, work_dir))
        assert_same_tensors(a, b)
    assert json.loads((work_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == TOTAL
