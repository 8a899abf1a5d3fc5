"""Killed at any moment, a training goes on at its checkpoint and ends as if nothing had been."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jobs
import pytest
import torch
import yaml
from builders import tiny_values, write_coco
from conftest import REPOSITORY
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


def parts_of_files(work_dir) -> list[str]:
    """What a killed process has left beside the files that are meant to be there."""
    return [p.name for p in work_dir.iterdir() if p.name[0] == "." and p.name != ".lock"]


def assert_goes_on_as_if_nothing_had_been(whole, work_dir) -> None:
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
    assert parts_of_files(work_dir) == []


def assert_unharmed_by_a_death_while_saving(whole, work_dir, moment) -> None:
    assert jobs.run([whole[0], "--work-dir", work_dir], spoil=moment) == -9
    assert_goes_on_as_if_nothing_had_been(whole, work_dir)


def assert_unharmed_by_a_death_at_random(whole, work_dir, seed) -> None:
    config, _, seconds = whole
    process = jobs.start([config, "--work-dir", work_dir])
    time.sleep(random.Random(seed).uniform(0.1, 0.95) * seconds)
    process.kill()
    process.join()
    assert_goes_on_as_if_nothing_had_been(whole, work_dir)


@pytest.mark.parametrize("moment", MOMENTS[:3], ids=lambda moment: f"{moment[0]}_{moment[1]}")
def test_a_run_killed_while_saving_ends_as_the_whole_one(whole, tmp_path, moment):
    assert_unharmed_by_a_death_while_saving(whole, tmp_path / "run", moment)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_run_killed_at_a_random_moment_ends_as_the_whole_one(whole, tmp_path, seed):
    assert_unharmed_by_a_death_at_random(whole, tmp_path / "run", seed)


@pytest.mark.slow
@pytest.mark.parametrize("moment", MOMENTS, ids=lambda moment: f"{moment[0]}_{moment[1]}")
def test_ten_runs_killed_while_saving_end_as_the_whole_one(whole, tmp_path, moment):
    assert_unharmed_by_a_death_while_saving(whole, tmp_path / "run", moment)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
def test_ten_runs_killed_at_random_moments_end_as_the_whole_one(whole, tmp_path, seed):
    assert_unharmed_by_a_death_at_random(whole, tmp_path / "run", seed)


# Files ------------------------------------------------------------------------------------------


@pytest.mark.slow  # test_engine.py has the same in small
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
    assert not (work_dir / "best.pt").exists() and parts_of_files(work_dir) == []
    shutil.rmtree(work_dir)
    assert jobs.run(argv, spoil=("disk_full", 2, 3, 4), log=log) == 0
    for name in ("last.pt", "best.pt"):
        a, b = (torch.load(run / name, weights_only=True) for run in (uninterrupted, work_dir))
        assert_same_tensors(a, b)
    assert json.loads((work_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"] == TOTAL


# Signals ----------------------------------------------------------------------------------------


def wait_for(condition, seconds: float = 60) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.02)


def has_logged(work_dir) -> bool:
    path = work_dir / "metrics.jsonl"
    return path.exists() and bool(path.read_text())


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_asks_to_be_started_again(whole, tmp_path, number):
    work_dir, log = tmp_path / "run", tmp_path / "stderr"
    argv = [whole[0], "--work-dir", work_dir]
    process = jobs.start(argv, spoil=("slow_steps", 0.4), log=log)
    wait_for(lambda: has_logged(work_dir))  # step 1 is reported while step 2 has just been done
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 75
    name, step = signal.Signals(number).name, load_checkpoint(work_dir / "last.pt")["step"]
    assert 2 <= step < TOTAL
    text = log.read_text()
    assert f"{name}: stopped after step {step} of 6; {work_dir}/last.pt holds step {step}" in text
    assert "Traceback" not in text
    assert_goes_on_as_if_nothing_had_been(whole, work_dir)


@pytest.mark.slow
def test_a_signal_in_an_evaluation_leaves_it_owed(whole, tmp_path):
    work_dir = tmp_path / "run"
    argv = [whole[0], "--work-dir", work_dir]
    assert jobs.run(argv, spoil=("signalled_in_evaluation",)) == 75
    assert load_checkpoint(work_dir / "last.pt")["evaluated_step"] == 0
    assert_goes_on_as_if_nothing_had_been(whole, work_dir)


def test_a_second_signal_leaves_at_once_and_harms_no_file(whole, tmp_path):
    work_dir, log = tmp_path / "run", tmp_path / "stderr"
    process = jobs.start([whole[0], "--work-dir", work_dir], spoil=("stuck_at", 3), log=log)
    wait_for(lambda: (work_dir / "last.pt").exists())
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    os.kill(process.pid, signal.SIGTERM)  # the same signal, passed on by torchrun
    time.sleep(1.3)
    assert process.is_alive()
    os.kill(process.pid, signal.SIGTERM)
    process.join(5)
    assert process.exitcode == 143
    assert "a second signal leaves at once" in log.read_text()
    assert load_checkpoint(work_dir / "last.pt")["step"] == 2


@pytest.mark.slow
def test_a_terminals_ctrl_c_reaches_the_loading_processes_too(whole, tmp_path):
    """The command in a process group of its own, with workers; the whole group is signalled."""
    work_dir = tmp_path / "run"
    command = [sys.executable, str(REPOSITORY / "tools/train.py"), str(whole[0]), "--work-dir"]
    command += [str(work_dir), "data.workers=2", "train.epochs=40", "train.eval_epochs=40"]
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(
            [*command, "--resume"], stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        before = load_checkpoint(work_dir / "last.pt")["step"] if has_logged(work_dir) else 0
        wait_for(lambda before=before: has_logged(work_dir) and last_step(work_dir) > before + 2)
        os.killpg(process.pid, number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 75, error
        assert "Traceback" not in error and "stopped after step" in error
    assert metrics_of(work_dir)[-1]["step"] == load_checkpoint(work_dir / "last.pt")["step"]


def last_step(work_dir) -> int:
    try:
        return json.loads((work_dir / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    except (ValueError, IndexError):
        return 0
