"""Schedule, optimiser, averaged weights, checkpoints and logs."""

import copy
import json
import math
import os
import subprocess
import sys
import zipfile

import pytest
import torch
from conftest import assert_close
from torch import nn

from gfl.cli.command import run
from gfl.conversion import open_checkpoint
from gfl.engine import keeper as keeper_module
from gfl.engine.checkpoint import (
    TrainState,
    is_checkpoint,
    load_checkpoint,
    save_checkpoint,
    write_atomically,
)
from gfl.engine.ema import EMA
from gfl.engine.finite import not_finite
from gfl.engine.keeper import DAMAGED, LAST, PREVIOUS, Keeper, find_last
from gfl.engine.optim import Schedule, make_optimizer
from gfl.engine.run_log import RunLog
from gfl.engine.stop import StopSignal
from gfl.errors import TrainingFailed, UserError


def test_warmup_rises_linearly_to_the_rate():
    schedule = Schedule(0.01, 1000, warmup_steps=500, warmup_factor=0.001, milestones=(800, 900))
    assert schedule(0) == pytest.approx(0.00001)
    assert schedule(250) == pytest.approx(0.01 * (0.001 + 0.999 / 2))
    assert schedule(500) == 0.01


def test_multistep_divides_by_ten_at_each_milestone():
    schedule = Schedule(0.01, 1000, warmup_steps=0, milestones=(800, 900))
    assert [schedule(s) for s in (799, 800, 899, 900)] == pytest.approx([0.01, 0.001, 0.001, 1e-4])


def test_cosine_ends_at_its_final_factor():
    schedule = Schedule(0.01, 100, kind="cosine", warmup_steps=0, final_factor=0.1)
    assert schedule(0) == pytest.approx(0.01)
    assert schedule(50) == pytest.approx(0.01 * (0.1 + 0.9 / 2))
    assert schedule(100) == pytest.approx(0.001)


def test_flat_cosine_is_flat_and_then_a_cosine():
    schedule = Schedule(
        0.01, 100, kind="flat_cosine", warmup_steps=10, final_factor=0.1, flat_fraction=0.6
    )
    assert schedule(5) == pytest.approx(0.01 * (0.001 + 0.999 / 2))
    assert schedule(10) == schedule(60) == 0.01
    # 20 of the 40 steps that are left: half of the way from 1 to 0.1; 10: cos 45 degrees.
    assert schedule(80) == pytest.approx(0.01 * 0.55)
    assert schedule(70) == pytest.approx(0.01 * (0.1 + 0.45 * (1 + 0.5**0.5)))
    assert schedule(100) == schedule(120) == pytest.approx(0.001)
    plain, none_flat = (
        Schedule(0.01, 100, kind=kind, warmup_steps=0, flat_fraction=0.0)
        for kind in ("cosine", "flat_cosine")
    )
    assert [plain(step) for step in range(101)] == [none_flat(step) for step in range(101)]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_found_inf_leaves_weights_and_moments_alone(name):
    model = nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(model, name)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    weight = model.weight.detach().clone()
    state = {k: v.clone() for k, v in optimizer.state[model.weight].items() if torch.is_tensor(v)}
    model.weight.grad = torch.full_like(model.weight, torch.nan)
    optimizer.found_inf = torch.tensor(1.0)
    optimizer.step()
    assert torch.equal(model.weight, weight)
    assert all(torch.equal(optimizer.state[model.weight][k], v) for k, v in state.items())


def test_a_first_step_that_is_skipped_leaves_clean_moments():
    model = nn.Linear(2, 1, bias=False)
    optimizer = make_optimizer(model, "sgd")
    optimizer.param_groups[0]["lr"] = 0.1
    before = model.weight.detach().clone()
    for found_inf, gradient in ((1.0, torch.nan), (0.0, 1.0)):
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
    # The first step that counts: the buffer is the gradient plus weight decay.
    assert torch.allclose(model.weight, before - 0.1 * (1 + 0.0001 * before))


def test_sgd_step_worked_by_hand():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 2.0)
    optimizer = make_optimizer(model, "sgd", momentum=0.9, weight_decay=0.5)
    for _ in range(2):
        optimizer.param_groups[0]["lr"] = 0.1
        model.weight.grad = torch.ones_like(model.weight)
        optimizer.step()
    # d = 1 + 0.5 * 2 = 2, w = 1.8; then d = 1.9, buffer = 0.9 * 2 + 1.9 = 3.7, w = 1.43
    assert model.weight.item() == pytest.approx(1.43)


def test_norms_and_biases_escape_weight_decay_when_asked():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))
    optimizer = make_optimizer(model, "adamw", weight_decay=0.1, decay_norm_and_bias=False)
    decayed, plain = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1 and [p.dim() for p in decayed["params"]] == [4]
    assert plain["weight_decay"] == 0.0 and len(plain["params"]) == 3


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_the_optimiser_is_the_fused_one(name):
    """One kernel for all parameters; the others would loop over them, and know no `found_inf`."""
    optimizer = make_optimizer(nn.Linear(2, 1), name)
    assert [group["fused"] for group in optimizer.param_groups] == [True]


def test_frozen_parameters_are_not_optimised():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    optimizer = make_optimizer(model)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 2


def test_ema_worked_by_hand_with_warmup():
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 1.0)
    ema = EMA(model, decay=0.9, warmup_steps=10)
    nn.init.constant_(model.weight, 3.0)
    ema.update(model, step=5)
    decay = 0.9 * (1 - math.exp(-0.5))
    assert ema.model.weight.item() == pytest.approx(decay * 1.0 + (1 - decay) * 3.0)


def test_ema_of_an_unchanged_model_is_that_model():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    ema = EMA(model, decay=0.99, warmup_steps=1)
    model[1].num_batches_tracked += 7
    for step in range(3):
        ema.update(model, step + 1)
    for ours, theirs in zip(
        ema.model.state_dict().values(), model.state_dict().values(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_checkpoint_round_trip_and_weights_only(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"w": torch.arange(3.0)}, "step": 7})
    content = load_checkpoint(path)
    assert content["step"] == 7 and torch.equal(content["model"]["w"], torch.arange(3.0))
    assert torch.load(path, weights_only=True)["format"] == "gfl"


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_moments_take_the_memory_layout_of_their_parameters(name):
    """A training that goes on with `train.channels_last` is the one without, to rounding."""

    def state(layout):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
        model = model.to(memory_format=layout)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return TrainState(model, make_optimizer(model, name), Schedule(0.1, 10), scaler)

    def step(state):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.01
        state.optimizer.zero_grad()
        state.model(images).square().mean().backward()
        state.optimizer.step()
        return [parameter.detach().clone() for parameter in state.model.parameters()]

    images = torch.randn(2, 3, 10, 10)
    first = state(torch.contiguous_format)
    before = step(first)
    kept = copy.deepcopy(first.state_dict())
    want = step(first)
    other = state(torch.channels_last)
    other.load_state_dict(kept)
    got = step(other)
    for old, ours, theirs in zip(before, got, want, strict=True):
        assert_close(ours, theirs, atol=1e-6)
        assert not torch.equal(old, theirs)


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path):
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {}, "step": 1})

    def fails(file):
        file.write(b"half")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_atomically(path, fails)
    assert load_checkpoint(path)["step"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a checkpoint", "damaged or no checkpoint"),
        ({"state_dict": {}}, "not a checkpoint of gfl"),
        ({"format": "gfl", "version": 99}, "update gfl"),
    ],
)
def test_wrong_checkpoints_are_refused_with_the_reason(tmp_path, content, message):
    path = tmp_path / "best.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match=message) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(UserError, match="absent.pt does not exist"):
        load_checkpoint(tmp_path / "absent.pt")


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.9}, {"step": 2, "AP": 0.1}]
    lines += [{"step": 3, "loss": 0.8}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 4, "lo')
    log = RunLog(tmp_path, resume_step=2, resume_evaluated=0)
    log.metrics(3, {"loss": 0.7})
    log.close()
    kept = [json.loads(line) for line in path.read_text().splitlines()]
    assert kept == [*lines[:2], {"step": 3, "loss": 0.7}]


# What is written and what is gone on from -------------------------------------------------------


def weights(step: int) -> dict:
    return {"model": {"w": torch.full((3,), math.pi)}, "step": step}


def test_the_file_before_stays_beside_the_new_one(tmp_path):
    last, previous = tmp_path / "last.pt", tmp_path / "last.previous.pt"
    for step in (1, 2, 3):
        save_checkpoint(last, weights(step), previous)
        assert load_checkpoint(last)["step"] == step
    assert load_checkpoint(previous)["step"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.previous.pt", "last.pt"]


def test_a_file_system_without_hard_links_keeps_it_too(tmp_path, monkeypatch):
    def refuses(*args):
        raise OSError("no links here")

    monkeypatch.setattr("os.link", refuses)
    for step in (1, 2):
        save_checkpoint(tmp_path / "last.pt", weights(step), tmp_path / "last.previous.pt")
    assert [load_checkpoint(tmp_path / n)["step"] for n in ("last.pt", "last.previous.pt")] == [
        2,
        1,
    ]


def test_a_full_disk_is_the_systems_error_and_leaves_no_part(tmp_path):
    """A real limit of the system on the size of files, in a process of its own."""
    code = (
        "import resource, sys, torch\n"
        "from pathlib import Path\n"
        "from gfl.engine.checkpoint import load_checkpoint, save_checkpoint\n"
        "path = Path(sys.argv[1])\n"
        "save_checkpoint(path, {'model': {}, 'step': 1})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    save_checkpoint(path, {'model': {'w': torch.zeros(10**6)}, 'step': 2})\n"
        "except OSError as error:\n"
        "    files = list(path.parent.iterdir())\n"
        "    print(error.strerror, load_checkpoint(path)['step'], len(files))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "last.pt")], capture_output=True, text=True
    )
    assert done.stdout == "File too large 1 1\n", done.stderr


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "missing"])
def test_resuming_takes_the_last_good_file(tmp_path, damage):
    for step in (1, 2):
        save_checkpoint(tmp_path / LAST, weights(step), tmp_path / PREVIOUS)
    assert find_last(tmp_path) == (LAST, None)
    last = tmp_path / LAST
    content = bytearray(last.read_bytes())
    content[content.find(torch.full((3,), math.pi).numpy().tobytes())] ^= 1  # one bit of a weight
    last.write_bytes({"cut": content[:-100], "changed": content}.get(damage, b""))
    if damage == "missing":
        last.unlink()
    name, note = find_last(tmp_path)
    assert name == PREVIOUS and "Going on from last.previous.pt, of step 1" in note
    assert (tmp_path / DAMAGED).exists() == (damage != "missing")
    assert not last.exists()  # so that the next file does not push out the good one


def test_two_damaged_files_are_the_users_to_look_at(tmp_path):
    for name in (LAST, PREVIOUS):
        (tmp_path / name).write_bytes(b"PK half")
    with pytest.raises(UserError, match="last.previous.pt is damaged"):
        find_last(tmp_path)
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(UserError, match="last.pt is damaged"):
        find_last(tmp_path)
    assert (tmp_path / LAST).exists()
    assert find_last(tmp_path / "empty") == (None, None)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_named(value):
    content = {
        "model": {"a": torch.ones(2), "b": torch.tensor([1.0, value]), "n": torch.tensor(7)},
        "list": [torch.full((2,), value)],
        "empty": torch.zeros(0),
        "best": {"AP": 0.5},
    }
    assert not_finite(content) == ["model.b", "list.0"]
    large = {"w": torch.full((9,), 3e38), "n": torch.ones(2, dtype=torch.int64)}  # norm overflows
    assert not_finite(large) == [] and not_finite({}) == []


def test_all_processes_believe_the_first_ones_word_that_the_best_is_gone(tmp_path, monkeypatch):
    keeper = keeper_of(tmp_path, [])
    state = keeper.state
    for there in (True, False):
        monkeypatch.setattr(keeper_module, "broadcast_object", lambda mine, there=there: there)
        state.best, state.step, state.evaluated_step = {"AP": 0.5, "epoch": 2}, 4, 4
        Keeper(tmp_path, state, {}, 2, print)  # no best.pt lies here
        assert bool(state.best) == there and state.evaluated_step == (4 if there else 3)


def test_a_message_that_nobody_can_be_told_ends_nothing(tmp_path, monkeypatch):
    class Full:
        def write(self, text):
            raise OSError(28, "No space left on device")

        flush = isatty = lambda self: False

    monkeypatch.setattr(sys, "stderr", Full())
    log = RunLog(tmp_path)
    log.say("a path \udce9 of bytes")
    log.close()
    assert (tmp_path / "log.txt").read_text() == "a path \\udce9 of bytes\n"
    assert run(lambda: (_ for _ in ()).throw(UserError("mine"))) == 2
    stop = StopSignal()
    monkeypatch.setattr(os, "write", lambda *_: Full().write(""))
    stop._receive(15, None)
    assert stop.number == 15


# One long call, in which Python handles no signal; timers send them.
SIGNALLED = """
import hashlib, os, signal, sys, threading, time
from gfl.engine.stop import StopSignal

def one_call(seconds):
    begun = time.monotonic()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 200_000)
    count = 200_000 * seconds / (time.monotonic() - begun)
    hashlib.pbkdf2_hmac("sha256", b"", b"", int(count))

with StopSignal() as stop:
    if sys.argv[1] == "to a fork":
        child = os.fork()
        if not child:
            for number in (signal.SIGTERM, signal.SIGINT):
                os.kill(os.getpid(), number)
                time.sleep(1.3)
            os._exit(0)
        os.waitpid(child, 0)
    else:
        for number, after in ((signal.SIGINT, 0.1), (signal.SIGTERM, float(sys.argv[1]))):
            threading.Timer(after, os.kill, (os.getpid(), number)).start()
        time.sleep(0.2)  # the first is handled
        one_call(3)
print("went on with", stop.number)
"""


@pytest.mark.parametrize(
    ("second", "status", "said"),
    [("0.5", 0, "went on with 2"), ("1.8", 143, ""), ("to a fork", 0, "went on with None")],
)
def test_signals_are_told_apart_by_when_they_arrive(second, status, said):
    command = [sys.executable, "-c", SIGNALLED, second]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (status, said), done.stderr


def keeper_of(tmp_path, said: list) -> Keeper:
    model = nn.Linear(2, 1)
    state = TrainState(
        model,
        make_optimizer(model),
        Schedule(0.1, 10),
        torch.amp.GradScaler("cpu", enabled=False),
        EMA(model, 0.9, 1),
    )
    return Keeper(tmp_path, state, {"class_map": {}}, 2, said.append)


@pytest.mark.parametrize("spoiled", ["model", "ema", "momentum"])
def test_weights_that_are_not_finite_reach_no_file(tmp_path, spoiled):
    keeper = keeper_of(tmp_path, [])
    keeper.state.step = 2
    keeper.save_last()
    before = (tmp_path / LAST).read_bytes()
    state = keeper.state
    tensors = {
        "model": state.model.weight,
        "ema": state.ema.model.weight,
        "momentum": state.optimizer.state[state.model.weight]["momentum_buffer"],
    }
    with torch.no_grad():
        tensors[spoiled].view(-1)[0] = torch.nan
    state.step = 4
    with pytest.raises(TrainingFailed, match="last.pt of step 4 is refused: 1 tensors.*step 2"):
        keeper.save_last()
    if spoiled == "ema":
        with pytest.raises(TrainingFailed, match="best.pt of step 4 is refused"):
            keeper.save_best({"AP": 0.5, "epoch": 2})
    assert (tmp_path / LAST).read_bytes() == before and state.best == {}
    assert [path.name for path in tmp_path.iterdir()] == [LAST]


def test_best_weights_that_found_no_room_are_written_later_as_they_were(tmp_path, monkeypatch):
    said = []
    keeper = keeper_of(tmp_path, said)
    with torch.no_grad():
        keeper.state.ema.model.weight.fill_(1.0)
    real = keeper_module.save_checkpoint

    def full(path, *args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(keeper_module, "save_checkpoint", full)
    keeper.save_best({"AP": 0.5, "epoch": 1})
    assert "best.pt of step 0 could not be written" in said[0]

    def full_for_best(path, *args):
        return full(path) if path.name == "best.pt" else real(path, *args)

    monkeypatch.setattr(keeper_module, "save_checkpoint", full_for_best)
    keeper.save_last()
    assert load_checkpoint(tmp_path / LAST)["best"] == {}  # a resumed run must not rely on it
    with torch.no_grad():
        keeper.state.ema.model.weight.fill_(9.0)  # training goes on
    monkeypatch.setattr(keeper_module, "save_checkpoint", real)
    keeper.save_last()
    assert load_checkpoint(tmp_path / "best.pt")["model"]["weight"].tolist() == [[1.0, 1.0]]
    assert load_checkpoint(tmp_path / LAST)["best"] == {"AP": 0.5, "epoch": 1}
    keeper.finish()


def test_numbers_without_objects_stay_out_of_tensorboard(tmp_path, monkeypatch):
    log, got = RunLog(tmp_path), []
    monkeypatch.setattr(log.board, "add_scalar", lambda *point: got.append(point))
    log.metrics(4, {"epoch": 1.0, "AP": 0.5, "APs": -1.0, "ARs": -1.0, "APm": 0.0, "lr": 0.1})
    log.close()
    assert got == [("epoch", 1.0, 4), ("AP", 0.5, 4), ("APm", 0.0, 4), ("lr", 0.1, 4)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["APs"] == -1


def test_a_log_that_can_not_be_written_is_said_once_and_training_goes_on(tmp_path, capsys):
    log = RunLog(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    log._text.write, real = full, log._metrics
    log._metrics = type("Full", (), {"write": full, "close": real.close})()
    for step in (1, 2):
        log.say("hello")
        log.metrics(step, {"loss": 1.0})
    log.close()
    assert (
        capsys.readouterr().err.count("can not be written and will have gaps: No space left") == 1
    )


@pytest.mark.parametrize("damage", ["encrypted", "deflated"])
def test_a_zip_that_can_not_be_read_is_a_message(tmp_path, damage):
    whole, path = tmp_path / "whole.pt", tmp_path / "best.pt"
    save_checkpoint(whole, {"model": {"w": torch.arange(3.0)}, "step": 7})
    content = bytearray(whole.read_bytes())
    if damage == "encrypted":
        for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            start = content.find(mark)
            while start >= 0:
                content[start + offset] |= 1
                start = content.find(mark, start + 1)
        path.write_bytes(content)
    else:
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
            info = next(info for info in new.infolist() if info.filename.endswith("data.pkl"))
            start = info.header_offset + 30 + len(info.filename)
        content = bytearray(path.read_bytes())
        content[start : start + 20] = b"\xff" * 20
        path.write_bytes(content)
    assert not is_checkpoint(path)
    with pytest.raises(UserError):
        open_checkpoint(path)


def test_all_of_a_state_comes_back():
    def state():
        model = nn.Linear(2, 1)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        optimizer, schedule = make_optimizer(model), Schedule(0.1, 10)
        return TrainState(model, optimizer, schedule, scaler, ema=EMA(model, 0.9, 1))

    first = state()
    first.ema.model.weight.add_(1)
    first.step, first.evaluated_step, first.bad_steps = 7, 6, 3
    first.best = {"AP": 0.5, "epoch": 2}
    first.precision = {"asked": "bf16", "used": "fp32"}
    kept, drawn = copy.deepcopy(first.state_dict()), torch.rand(3)
    second = state()
    second.load_state_dict(kept)
    assert torch.equal(torch.rand(3), drawn)
    for name in ("step", "evaluated_step", "best", "bad_steps", "precision"):
        assert getattr(second, name) == getattr(first, name), name
    for name in ("model", "ema"):
        for key, value in second.state_dict()[name].items():
            assert torch.equal(value, kept[name][key]), (name, key)
