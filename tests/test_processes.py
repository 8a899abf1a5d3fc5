"""Two CPU processes of one training: equal steps, and an end together whatever happens to one."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jobs
import pytest
import torch
import torch.distributed as dist
import yaml
from builders import tiny_config, tiny_values, write_coco
from conftest import REPOSITORY
from test_kill import has_logged, wait_for
from test_train import metrics_of

from gfl.build import build_dataset, build_train_loader
from gfl.build import loaders as build_loaders
from gfl.distributed import _agreed_word
from gfl.engine.checkpoint import load_checkpoint
from gfl.errors import UserError

# Seconds within which one process's end must have ended the other.
LIMIT = 60


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """8 images, every second without objects, 2 a step: one of each process."""
    tmp = tmp_path_factory.mktemp("processes")
    folder = write_coco(tmp / "set", {"train": 8, "val": 2}, (96, 96), empty_every=2)
    values = tiny_values(folder, batch_size=2, eval_epochs=2)
    (tmp / "c.yaml").write_text(yaml.safe_dump(values))
    return tmp / "c.yaml"


def start_two(argv, logs, spoil=((), ())):
    return [
        jobs.start(argv, spoil[rank], environment, logs / f"rank{rank}")
        for rank, environment in enumerate(jobs.ranks(2))
    ]


def ends_together(processes) -> list[int]:
    """Exit statuses; the second end must follow the first in time."""
    wait_for(lambda: not all(process.is_alive() for process in processes), 120)
    started = time.monotonic()
    for process in processes:
        process.join(LIMIT)
    print(f"the other process ended {time.monotonic() - started:.1f} s later")
    assert not any(process.is_alive() for process in processes)
    return [process.exitcode for process in processes]


def test_a_process_without_objects_takes_as_many_steps_and_another_number_resumes(config, tmp_path):
    """Half of the shares hold no object. One process then goes on with what two have trained."""
    argv = [config, "--work-dir", tmp_path / "run"]
    assert ends_together(start_two(argv, tmp_path)) == [0, 0]
    training = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in training] == list(range(1, 9))
    assert all(line["loss"] is not None and line["loss_cls"] > 0 for line in training)
    log = tmp_path / "one"
    assert jobs.run([*argv, "--resume", "train.epochs=3"], log=log) == 0
    text = log.read_text()
    assert "resumed at step 8 of 12" in text
    assert "batch: 2 = 1 processes x 1 parts x 2 images" in text
    assert "changed since the checkpoint: train.epochs: 2 -> 3" in text


def test_a_batch_that_does_not_divide_is_refused(config, monkeypatch):
    monkeypatch.setattr(build_loaders, "world_size", lambda: 3)
    settings = tiny_config(config.parent / "set", batch_size=4)
    with pytest.raises(UserError, match="total of 3 processes.*a multiple of 3"):
        build_train_loader(settings, build_dataset(settings, "train"))


def test_a_signal_to_one_process_stops_both_at_the_same_step(config, tmp_path):
    run = tmp_path / "run"
    slow = ("slow_steps", 0.3)
    processes = start_two([config, "--work-dir", run], tmp_path, (slow, slow))
    wait_for(lambda: has_logged(run))
    os.kill(processes[1].pid, signal.SIGTERM)
    assert ends_together(processes) == [75, 75]
    step = load_checkpoint(run / "last.pt")["step"]
    assert 3 <= step < 8
    assert f"SIGTERM: stopped after step {step} of 8" in (tmp_path / "rank0").read_text()
    assert metrics_of(run)[-1]["step"] == step
    assert ends_together(start_two([config, "--work-dir", run, "--resume"], tmp_path)) == [0, 0]
    assert f"resumed at step {step} of 8" in (run / "log.txt").read_text()


def test_a_process_killed_in_a_step_ends_the_other(config, tmp_path):
    spoil = ((), ("in_step", 3, "kill"))
    processes = start_two([config, "--work-dir", tmp_path / "run"], tmp_path, spoil)
    assert ends_together(processes) == [1, -9]
    text = (tmp_path / "rank0").read_text()
    assert "[rank 0] training failed: another process is gone" in text
    assert "Traceback" not in text
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_the_first_error_is_what_all_processes_show(config, tmp_path):
    spoil = ((), ("in_step", 3, "raise"))
    processes = start_two([config, "--work-dir", tmp_path / "run"], tmp_path, spoil)
    assert ends_together(processes) == [1, 1]
    first, second = ((tmp_path / f"rank{rank}").read_text() for rank in (1, 0))
    assert "[rank 1] failed: IndexError: a bug of ours" in first and "Traceback" in first
    assert (
        "[rank 0] training failed: stopped because of rank 1: IndexError: a bug of ours" in second
    )
    assert "Traceback" not in second


def test_an_image_that_spoils_a_logged_step_is_found_on_its_process(config, tmp_path):
    argv = [config, "train.batch_size=4", "train.log_steps=1", "train.epochs=1"]
    spoil = ((), ("spoiled_in_step", 1))
    processes = start_two([*argv, "--work-dir", tmp_path / "run"], tmp_path, spoil)
    assert ends_together(processes) == [0, 0]
    spoilt = int(re.search(r"spoilt image (\d+)\.", (tmp_path / "rank1").read_text())[1])
    [line] = [x for x in (tmp_path / "run" / "log.txt").read_text().splitlines() if "skipped" in x]
    assert f"images {spoilt} " in line and "(each alone gives it)" in line
    kept = torch.load(tmp_path / "run" / "bad_batches" / "step_1.pt", weights_only=True)
    assert kept["culprits"] == [spoilt] and spoilt in kept["image_ids"]


SCRIPT = """
import os, sys
sys.path.insert(0, {tests!r})
import jobs
if os.environ["RANK"] == "1" and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    jobs.in_step(4, "kill")
sys.exit(jobs.command.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_torchruns_restart_resumes_by_itself(config, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(REPOSITORY / "tests")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["--max-restarts=1", str(script), str(config), "--work-dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resumed at step 2 of 8" in done.stderr
    assert [m["step"] for m in metrics_of(tmp_path / "run") if "loss" in m] == list(range(1, 9))


def test_processes_agree_on_a_word_whatever_those_before_have_left():
    """Two starts with one store, the first with a third process, the second finds its leavings."""
    store, words = dist.HashStore(), []
    with ThreadPoolExecutor() as pool:
        for count in (3, 2):
            first = pool.submit(_agreed_word, store, 0, count)
            time.sleep(0.1)  # it has answered to what was left there
            others = [pool.submit(_agreed_word, store, n, count) for n in range(1, count)]
            found = {future.result(30) for future in (first, *others)}
            assert len(found) == 1
            words += found
    assert words[0] != words[1]


@pytest.mark.slow
def test_two_nodes_restart_after_a_process_of_one_was_killed(config, tmp_path):
    """Each node counts its own failures only: they restart with different counts."""
    script = tmp_path / "script.py"
    script.write_text(
        SCRIPT.format(tests=str(REPOSITORY / "tests"))
        .replace(
            'os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"', 'not os.path.exists("restarted")'
        )
        .replace("    jobs.in", '    open("restarted", "w").close()\n    jobs.in')
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"]
    command += ["--max-restarts=2", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command += [str(script), str(config), "--work-dir", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    more = {"stderr": subprocess.PIPE, "text": True, "env": environment, "cwd": tmp_path}
    nodes = [subprocess.Popen(command, **more) for _ in range(2)]
    try:
        errors = [node.communicate(timeout=240)[1] for node in nodes]
    finally:
        for node in nodes:
            node.terminate()
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert "resumed at step" in "".join(errors)
    assert [m["step"] for m in metrics_of(tmp_path / "run") if "loss" in m] == list(range(1, 9))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_saves(config, tmp_path, number):
    """Ctrl-C reaches the processes twice, from the terminal and from torchrun."""
    run = tmp_path / "run"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(REPOSITORY / "tools/train.py"), str(config), "--work-dir", str(run)]
    command += ["train.epochs=200", "train.eval_epochs=200"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    wait_for(lambda: has_logged(run), 120)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=LIMIT)
    step = load_checkpoint(run / "last.pt")["step"]
    assert f"stopped after step {step} of 800" in error, error
    print(f"torchrun's own status: {process.returncode}")
    assert process.returncode != 0
