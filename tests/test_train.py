"""Whole trainings of a tiny model: progress, resume, faults, commands."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from builders import tiny_config, tiny_values, write_coco
from conftest import REPOSITORY

import gfl
from gfl import build
from gfl.cli import test as test_command
from gfl.cli import train as train_command
from gfl.config import merge_values, parse_config
from gfl.data.batch import Normalize
from gfl.engine.ema import EMA
from gfl.engine.optim import Schedule
from gfl.engine.train import train_step
from gfl.errors import TrainingFailed, UserError

TIMING = {"data_seconds", "step_seconds", "eval_seconds", "memory_gib"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """10 training images of two shapes, some empty: 3 steps of 4 an epoch."""
    splits = {"train": 10, "val": 5, "test": 4}
    return write_coco(tmp_path_factory.mktemp("data") / "set", splits, empty_every=7)


def metrics_of(work_dir) -> list[dict]:
    lines = (work_dir / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMING} for line in lines]


def assert_same_tensors(a, b, where="") -> None:
    """Bit for bit, through nested dicts and lists."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same_tensors(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, pair in enumerate(zip(a, b, strict=True)):
            assert_same_tensors(*pair, f"{where}[{i}]")
    elif torch.is_tensor(a):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def write_config(path, values) -> str:
    path.write_text(yaml.safe_dump(values))
    return str(path)


def test_a_training_leaves_the_promised_work_directory(folder, tmp_path):
    outcome = gfl.train(tiny_config(folder, ema_decay=0.9), work_dir=tmp_path / "run")
    run = tmp_path / "run"
    for name in ("config.yaml", "class_map.json", "last.pt", "best.pt", "metrics.jsonl", "log.txt"):
        assert (run / name).stat().st_size > 0
    assert (
        list((run / "tensorboard").iterdir()) and len(list((run / "train_batches").iterdir())) == 3
    )
    assert json.loads((run / "class_map.json").read_text()) == {
        "names": ["square", "disc"],
        "category_ids": [3, 7],
    }
    lines = metrics_of(run)
    training = [line for line in lines if "loss" in line]
    assert [line["step"] for line in training] == [1, 2, 3, 4, 5, 6]
    for line in training:
        parts = line["loss_cls"] + line["loss_box"] + line["loss_dfl"]
        assert line["loss"] == pytest.approx(parts)
    evaluations = [line for line in lines if "AP" in line]
    assert [line["epoch"] for line in evaluations] == [1, 2]
    assert evaluations[0]["weights"] == "ema"
    best = torch.load(run / "best.pt", weights_only=True)
    assert best["AP"] == outcome["best"]["AP"] and "optimizer" not in best
    assert "resumed" not in (run / "log.txt").read_text()


def test_best_pt_reproduces_the_ap_of_training(folder, tmp_path, capsys):
    outcome = gfl.train(tiny_config(folder, epochs=1), work_dir=tmp_path / "run")
    status = test_command.main(
        [str(tmp_path / "run/best.pt"), "--json", str(tmp_path / "m.json")]
        + ["--results", str(tmp_path / "r.json"), "train.eval_batch_size=5"]
    )
    assert status == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["AP"] == pytest.approx(outcome["best"]["AP"], abs=1e-6)
    printed = capsys.readouterr().out
    assert printed.startswith(f"AP      {metrics['AP']:.4f}\n") and "index" not in printed
    results = json.loads((tmp_path / "r.json").read_text())
    assert {entry["category_id"] for entry in results} <= {3, 7}


class Interrupted(Exception):
    """Stands for a kill."""


# As far from the default as it goes: another quality, box and assigner.
OTHER_MODE = {
    "model": {"quality": "iou_branch", "box": "gaussian"},
    "assigner": {"name": "retinanet", "anchor_scale": 4.0},
}


# Positives by what the network predicts.
ALIGNED = {"assigner": {"name": "tal", "soft_label": "aligned"}}
SIMOTA = {"model": {"quality": "iou_guided"}, "assigner": {"name": "simota"}}


@pytest.mark.parametrize(
    ("killed_at", "mode"),
    [(1, {}), (4, {}), (5, {}), (5, OTHER_MODE), (5, ALIGNED), (5, SIMOTA)],
)
def test_resume_equals_an_uninterrupted_run_bit_for_bit(
    folder, tmp_path, killed_at, mode, monkeypatch
):
    """Killed in mid-epoch, where the last checkpoint is behind (4, 5) or absent (1)."""
    import gfl.engine.train as loop

    values = tiny_values(folder, ema_decay=0.9, optimizer="adamw", lr=0.001)
    config = parse_config(merge_values(values, mode))
    gfl.train(config, work_dir=tmp_path / "whole")
    real_step = loop.train_step

    def dies(state, *args):
        if state.step == killed_at:
            raise Interrupted
        return real_step(state, *args)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(Interrupted):
        gfl.train(config, work_dir=tmp_path / "killed")
    monkeypatch.undo()
    done = []
    monkeypatch.setattr(
        loop, "train_step", lambda state, *args: done.append(state.step) or real_step(state, *args)
    )
    gfl.train(config, work_dir=tmp_path / "killed", resume=True)
    held = {1: 0, 4: 4, 5: 4}[killed_at]
    assert done == list(range(held, 6))
    text = (tmp_path / "killed" / "log.txt").read_text()
    assert ("resumed at step 4 of 6" in text) == (held == 4)
    for name in ("last.pt", "best.pt"):
        whole, resumed = (
            torch.load(tmp_path / run / name, weights_only=True) for run in ("whole", "killed")
        )
        assert_same_tensors(whole, resumed)
    lines = metrics_of(tmp_path / "whole")
    assert lines == metrics_of(tmp_path / "killed")
    assert ("loss_nll" in lines[0] and "loss_quality" in lines[0]) == (mode is OTHER_MODE)


def test_an_owed_evaluation_is_run_on_resume(folder, tmp_path, monkeypatch):
    import gfl.validation as validation

    config = tiny_config(folder, epochs=1)

    def dies(*args):
        raise Interrupted

    monkeypatch.setattr(validation, "evaluate_model", dies)
    with pytest.raises(Interrupted):
        gfl.train(config, work_dir=tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "best.pt").exists()
    outcome = gfl.train(config, work_dir=tmp_path / "run", resume=True)
    assert outcome["best"]["epoch"] == 1 and (tmp_path / "run" / "best.pt").exists()
    assert [line["epoch"] for line in metrics_of(tmp_path / "run") if "AP" in line] == [1]


def test_sigkill_in_mid_epoch_then_the_command_resumes(folder, tmp_path):
    """A real process, killed without warning after its first checkpoint."""
    config = write_config(tmp_path / "c.yaml", tiny_values(folder, epochs=40, eval_epochs=40))
    command = [sys.executable, str(REPOSITORY / "tools/train.py"), config, "--work-dir"]
    command += [str(tmp_path / "run"), "--resume"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    last = tmp_path / "run" / "last.pt"
    deadline = time.monotonic() + 120
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = torch.load(last, weights_only=True)["step"]
    assert 0 < step < 120
    ended = subprocess.run(
        [*command, "train.epochs=" + str(step // 3 + 1)], capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
    assert f"resumed at step {step} of" in ended.stderr
    assert "changed since the checkpoint: train.epochs: 40 ->" in ended.stderr
    assert [m["step"] for m in metrics_of(tmp_path / "run") if "loss" in m] == list(
        range(1, (step // 3 + 1) * 3 + 1)
    )


def test_one_batch_is_overfitted(folder, tmp_path):
    config = tiny_config(
        folder,
        epochs=15,
        eval_epochs=15,
        batch_size=10,
        optimizer="adamw",
        lr=0.003,
        grad_clip=5.0,
    )
    gfl.train(config, work_dir=tmp_path / "run")
    losses = [line["loss"] for line in metrics_of(tmp_path / "run") if "loss" in line]
    assert losses[-1] < 0.6 * losses[0]


def test_accumulated_parts_give_the_mean_of_their_gradients(folder):
    """Each part has normalisers of its own; losses and gradients are averaged over the parts."""
    config = tiny_config(folder)
    loader = build.build_train_loader(config, build.build_dataset(config, "train"))
    parts = list(loader)[:2]
    normalize = Normalize(config.data.mean, config.data.std)
    options = build.build_loop_options(config, 3)
    state = build.build_state(config, 2, 3, torch.device("cpu"))
    state.model.eval()
    state.schedule = Schedule(lr=0.0, total_steps=3)
    losses, gradients = [], []
    for batches in (parts[:1], parts[1:], parts):
        criterion = build.build_criterion(config)
        step_losses, _ = train_step(state, state.model, batches, criterion, normalize, options)
        losses.append(step_losses)
        gradients.append({k: p.grad.clone() for k, p in state.model.named_parameters()})
    for name, gradient in gradients[2].items():
        mean = (gradients[0][name] + gradients[1][name]) / 2
        assert torch.allclose(gradient, mean, rtol=1e-4, atol=1e-7), name
    for name, loss in losses[2].items():
        mean = (losses[0][name] + losses[1][name]).item() / 2
        assert loss.item() == pytest.approx(mean, rel=1e-5), name


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_becomes_unreadable_is_named_once_and_replaced(
    workers, folder, tmp_path, capsys, monkeypatch
):
    copied = tmp_path / "set"
    shutil.copytree(folder, copied)
    victim = next((copied / "images").glob("train_*"))
    real = build.build_dataset

    def then_damage(*args):
        dataset = real(*args)
        victim.write_bytes(b"no image")  # after the check has found it good
        return dataset

    monkeypatch.setattr(build, "build_dataset", then_damage)
    values = tiny_values(copied)
    values["data"]["workers"] = workers
    config = write_config(tmp_path / "c.yaml", values)
    status, error = run_train(capsys, config, "--work-dir", tmp_path / "run")
    assert status == 0 and error.count(f"WARNING: {victim} is not a readable image") == 1
    assert "Another one takes its place" in (tmp_path / "run" / "log.txt").read_text()
    shutil.copytree(folder / "images", copied / "images", dirs_exist_ok=True)
    options = ("--work-dir", tmp_path / "strict", "data.max_skipped=0")
    status, error = run_train(capsys, config, *options)
    assert status == 2 and "1 of 10 images could be read when the training began" in error
    assert f"{victim} is not a readable image" in error and "Traceback" not in error


def test_messy_images_are_named_in_the_log_and_left_out(folder, tmp_path):
    copied = tmp_path / "set"
    shutil.copytree(folder, copied)
    victim = sorted((copied / "images").glob("train_*"))[0]
    victim.write_bytes(b"no image")
    gfl.train(tiny_config(copied, epochs=1), work_dir=tmp_path / "run")
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "train: 9 images" in log and "1 unreadable images left out" in log
    assert f"{victim} is not a readable image" in log


def test_changed_settings_hold_after_resuming(folder, tmp_path, monkeypatch):
    import gfl.engine.train as loop

    gfl.train(tiny_config(folder, epochs=1), work_dir=tmp_path / "run")
    seen, real_step = [], loop.train_step

    def watched(state, *args):
        seen.append(state.optimizer.param_groups[0]["weight_decay"])
        return real_step(state, *args)

    monkeypatch.setattr(loop, "train_step", watched)
    changed = tiny_config(folder, epochs=2, weight_decay=0.5)
    gfl.train(changed, work_dir=tmp_path / "run", resume=True)
    assert seen == [0.5] * 3
    with pytest.raises(UserError, match="trained with sgd, the config says adamw"):
        gfl.train(tiny_config(folder, optimizer="adamw"), work_dir=tmp_path / "run", resume=True)


def test_an_infinite_pixel_spoils_neither_weights_nor_statistics(folder, tmp_path, monkeypatch):
    real, calls = Normalize.__call__, []

    def spoiled(self, images, sizes):
        calls.append(1)
        normalised = real(self, images, sizes)
        return normalised * torch.inf if len(calls) == 2 else normalised

    monkeypatch.setattr(Normalize, "__call__", spoiled)
    gfl.train(tiny_config(folder, epochs=1, ema_decay=0.9), work_dir=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    for name in ("model", "ema"):
        assert all(v.isfinite().all() for v in last[name].values() if v.is_floating_point())
    assert "step 2 skipped" in (tmp_path / "run" / "log.txt").read_text()


# Faults -----------------------------------------------------------------------------------------


def run_train(capsys, *argv) -> tuple[int, str]:
    status = train_command.main([str(arg) for arg in argv])
    return status, capsys.readouterr().err


def test_nan_loss_skips_steps_then_stops_with_one_message(folder, tmp_path, monkeypatch, capsys):
    from gfl.losses.criterion import GFLCriterion

    real = GFLCriterion._losses

    def poisoned(self, *args):
        losses = real(self, *args)
        return {**losses, "loss_box": losses["loss_box"] * torch.nan}

    monkeypatch.setattr(GFLCriterion, "_losses", poisoned)
    config = write_config(tmp_path / "c.yaml", tiny_values(folder, max_bad_steps=3))
    status, error = run_train(capsys, config, "--work-dir", tmp_path / "run")
    assert status == 1
    assert "training failed: 3 steps in a row were not finite" in error
    assert "loss_box not finite" in error and "Traceback" not in error
    assert "step 1 skipped" in (tmp_path / "run" / "log.txt").read_text()


def test_a_skipped_step_leaves_the_weights_alone(folder, tmp_path, monkeypatch):
    from gfl.losses.criterion import GFLCriterion

    real, calls = GFLCriterion._losses, []

    def first_is_nan(self, *args):
        calls.append(1)
        losses = real(self, *args)
        return {k: v * torch.nan if len(calls) == 1 else v for k, v in losses.items()}

    monkeypatch.setattr(GFLCriterion, "_losses", first_is_nan)
    gfl.train(tiny_config(folder, epochs=1, weight_decay=0.0), work_dir=tmp_path / "run")
    weights = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["model"]
    assert all(v.isfinite().all() for v in weights.values() if v.is_floating_point())


def test_images_and_batches_without_objects_train(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 6, "val": 3})
    for split in ("train", "val"):
        path = folder / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        keep = {image["id"] for image in content["images"][:1]}
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in keep]
        path.write_text(json.dumps(content))
    gfl.train(tiny_config(folder, epochs=2, batch_size=1), work_dir=tmp_path / "run")
    lines = [line for line in metrics_of(tmp_path / "run") if "loss" in line]
    empty = [line for line in lines if line["loss_box"] == 0]
    assert len(lines) == 12 and len(empty) == 10
    assert all(line["loss_cls"] > 0 and line["loss_dfl"] == 0 for line in empty)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", "unknown key 'train.epoch'; did you mean 'epochs'?"),
        ("data.path=nowhere", "nowhere is no folder: expected one with annotations/train"),
        ("model.backbone.name=resnet19", "unknown model.backbone.name 'resnet19'; did you mean"),
        ("assigner.name=atts", "unknown assigner.name 'atts'; did you mean 'atss'?"),
        ("model.num_classes=5", "model.num_classes is 5, but the data has 2 classes"),
        ("train.batch_size=5 train.accumulate=2", "it must be a multiple of 2"),
        ("model.backbone.pretrained=no.pth", "weights file no.pth does not exist"),
        ("model.backbone.norm=sync", "sync needs GPUs"),
        ("device=gpu", "device is 'gpu'"),
        ("device=cuda:99", "asks for GPU 99"),
    ],
)
def test_a_users_mistake_is_one_message_and_status_2(folder, tmp_path, capsys, override, message):
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    status, error = run_train(capsys, config, *override.split(), "--work-dir", tmp_path / "run")
    assert status == 2
    assert message in error and "Traceback" not in error


def test_a_split_without_any_object_is_refused(folder, tmp_path, capsys):
    content = json.loads((folder / "annotations" / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": []}))
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    val = f"data.val={{images: {folder}/images, annotations: {tmp_path}/val.json}}"
    status, error = run_train(capsys, config, val, "--work-dir", tmp_path / "run")
    assert status == 2 and "data.val has no object at all" in error


def test_val_files_that_share_image_ids_stop_before_training(folder, tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    pair = f"{{images: {folder}/images, annotations: {folder}/annotations/val.json}}"
    argv = (config, f"data.val=[{pair}, {pair}]", "--work-dir", tmp_path / "run")
    status, error = run_train(capsys, *argv)
    assert status == 2 and "share image ids" in error
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_class_names_that_differ_stop_before_training(folder, tmp_path, capsys):
    content = json.loads((folder / "annotations" / "val.json").read_text())
    content["categories"][0]["name"] = "Square"
    (tmp_path / "val.json").write_text(json.dumps(content))
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    val = f"data.val={{images: {folder}/images, annotations: {tmp_path}/val.json}}"
    status, error = run_train(capsys, config, val, "--work-dir", tmp_path / "run")
    assert status == 2 and "['Square']" in error and "['square']" in error


def test_a_used_directory_is_refused_without_resume(folder, tmp_path, capsys):
    config = write_config(tmp_path / "c.yaml", tiny_values(folder, epochs=1))
    assert run_train(capsys, config, "--work-dir", tmp_path / "run")[0] == 0
    before = (tmp_path / "run" / "last.pt").read_bytes()
    status, error = run_train(capsys, config, "--work-dir", tmp_path / "run")
    assert status == 2 and "--resume" in error
    assert (tmp_path / "run" / "last.pt").read_bytes() == before


def test_a_finished_run_says_so_and_its_config_trains_longer(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    argv = (config, "train.epochs=1", "--work-dir", "runs/mine")
    status, error = run_train(capsys, *argv)
    threads = f"{torch.get_num_threads()} thread"
    assert status == 0 and "torch" in error and f", 1 process on the CPU, {threads}" in error
    best = torch.load("runs/mine/best.pt", weights_only=True)["AP"]
    own = Path("runs/mine/config.yaml")
    status, error = run_train(capsys, own)
    assert status == 2 and f"its settings are in {own}" in error
    status, error = run_train(capsys, own, "--resume")
    assert status == 0
    assert f"this training is finished, 1 of 1 epochs; best AP {best:.4f} on val" in error
    assert "--resume train.epochs=2" in error
    status, error = run_train(capsys, own, "--resume", "train.epochs=2")
    assert status == 0 and "resumed at step 3 of 6" in error and "finished" not in error
    assert [line["step"] for line in metrics_of(Path("runs/mine")) if "loss" in line][-1] == 6
    assert [path.name for path in Path("runs").iterdir()] == ["mine"]
    settings = own.read_text()
    status, error = run_train(capsys, own, "--resume", "train.epochs=1")
    assert status == 2 and "train.epochs is 1, but the checkpoint has 2 epochs behind it" in error
    assert own.read_text() == settings


def test_a_checkpoint_of_other_classes_names_the_few_that_differ(folder, tmp_path):
    gfl.train(tiny_config(folder, epochs=1), work_dir=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    names = last["class_map"]["names"]
    for others, says in (
        ([f"n{i:02d}" for i in range(60)], ("gone ['n00', ", "'n09', ... 50 more], new ['disc'")),
        (names[::-1], ("their order has changed",)),
    ):
        last["class_map"]["names"] = others
        torch.save(last, tmp_path / "run" / "last.pt")
        with pytest.raises(UserError) as caught:
            gfl.train(tiny_config(folder), work_dir=tmp_path / "run", resume=True)
        message = str(caught.value)
        assert f"checkpoint's {len(others)} classes are not the 2 of the data" in message
        assert all(part in message for part in says) and len(message) < 400


def test_resuming_something_else_is_refused(folder, tmp_path):
    gfl.train(tiny_config(folder, epochs=1), work_dir=tmp_path / "run")
    with pytest.raises(UserError, match="steps an epoch"):
        gfl.train(tiny_config(folder, batch_size=2), work_dir=tmp_path / "run", resume=True)
    values = tiny_values(folder)
    values["model"]["head"]["channels"] = 96
    why = r"does not fit this config's model .*changed .*: model\.head\.channels: 64 -> 96"
    with pytest.raises(UserError, match=why):
        gfl.train(gfl.config.parse_config(values), work_dir=tmp_path / "run", resume=True)
    torch.save({"anything": 1}, tmp_path / "run" / "last.pt")
    with pytest.raises(UserError, match="not a checkpoint of gfl"):
        gfl.train(tiny_config(folder), work_dir=tmp_path / "run", resume=True)


def test_offline_pretrained_names_the_file_to_place(folder, tmp_path, monkeypatch, capsys):
    import torch.hub

    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    overrides = ("model.backbone.name=resnet18", "model.backbone.pretrained=true")
    status, error = run_train(capsys, config, *overrides, "--work-dir", tmp_path / "run")
    assert status == 2
    assert "resnet18-f37072fd.pth" in error and str(tmp_path / "cache") in error


def test_failures_of_our_own_keep_their_traceback(folder, tmp_path, monkeypatch):
    import gfl.training as training

    def bug(*args, **kwargs):
        raise IndexError("ours")

    monkeypatch.setattr(training, "train_one_epoch", bug)
    config = write_config(tmp_path / "c.yaml", tiny_values(folder))
    with pytest.raises(IndexError):
        train_command.main([config, "--work-dir", str(tmp_path / "run")])


def test_training_failed_is_not_a_users_mistake():
    assert not issubclass(TrainingFailed, UserError)
    assert os.environ.get("RANK") is None


@pytest.mark.parametrize("content", [b"text", None])
def test_evaluating_a_wrong_checkpoint_is_one_message(tmp_path, capsys, content):
    path = tmp_path / "best.pt"
    if content:
        path.write_bytes(content)
    assert test_command.main([str(path)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and str(path) in error and "Traceback" not in error


def test_two_trainings_do_not_share_a_directory(tmp_path):
    from gfl.work_dir import only_one_training

    with only_one_training(tmp_path / "run"):
        with pytest.raises(gfl.UserError, match="another training runs in"):
            with only_one_training(tmp_path / "run"):
                pass
    with only_one_training(tmp_path / "run"):
        pass


@pytest.mark.parametrize("resume", [False, True])
def test_the_outcome_of_a_training_whose_last_is_gone_is_not_written_over(resume, tmp_path):
    from gfl.work_dir import start_work_dir

    (tmp_path / "best.pt").write_bytes(b"mine")
    with pytest.raises(gfl.UserError, match="init_from="):
        start_work_dir(tmp_path, resume)
    assert (tmp_path / "best.pt").read_bytes() == b"mine"


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("name", ["config.yaml", "log.txt", "metrics.jsonl"])
def test_files_that_no_training_has_made_are_not_written_over(name, resume, tmp_path):
    from gfl.work_dir import start_work_dir

    (tmp_path / name).write_text("mine")
    with pytest.raises(gfl.UserError, match=f"{name} is of no training"):
        start_work_dir(tmp_path, resume)
    assert (tmp_path / name).read_text() == "mine"
    (tmp_path / "class_map.json").write_text('{"mine": 1}')
    with pytest.raises(gfl.UserError, match="is of no training"):
        start_work_dir(tmp_path, resume)
    # A training that ended before its first save.
    (tmp_path / "class_map.json").write_text('{"names": [], "category_ids": []}')
    assert start_work_dir(tmp_path, resume)[0] is None


def test_a_class_map_of_the_users_is_not_written_over_and_makes_no_work_dir(tmp_path):
    from gfl.cli.train import _default_work_dir
    from gfl.work_dir import start_work_dir

    (tmp_path / "class_map.json").write_text('{"mine": 1}')
    with pytest.raises(gfl.UserError, match="class_map.json is of no training"):
        start_work_dir(tmp_path, False)
    assert _default_work_dir(tmp_path / "config.yaml") == Path("runs/config")
    (tmp_path / "class_map.json").write_text('{"names": [], "category_ids": []}')
    assert _default_work_dir(tmp_path / "config.yaml") == tmp_path


def test_a_loading_process_that_outlives_a_training_does_not_hold_its_directory(tmp_path):
    from gfl.work_dir import only_one_training

    with only_one_training(tmp_path / "run"):
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(0)
        time.sleep(0.5)
    try:
        with only_one_training(tmp_path / "run"):
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # it still lives
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_disk_without_locks_is_told_of_and_used(tmp_path, monkeypatch, capsys):
    from gfl import work_dir

    def no_locks(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(work_dir.fcntl, "flock", no_locks)
    with work_dir.only_one_training(tmp_path / "run"):
        pass
    assert "can not be locked here" in capsys.readouterr().err


def test_a_work_dir_whose_name_logs_can_not_hold_is_refused(tmp_path):
    from gfl.work_dir import only_one_training

    with pytest.raises(gfl.UserError, match="is no UTF-8"):
        with only_one_training(tmp_path / "r\udce9s"):
            pass
    assert not any(tmp_path.iterdir())


def test_a_finished_training_whose_best_is_gone_evaluates_again(folder, tmp_path, capsys):
    config = tiny_config(folder, epochs=1)
    gfl.train(config, work_dir=tmp_path / "run")
    before = metrics_of(tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    capsys.readouterr()
    outcome = gfl.train(config, work_dir=tmp_path / "run", resume=True)
    assert "best.pt is not there, so these weights are evaluated now" in capsys.readouterr().err
    assert outcome["best"]["epoch"] == 1 and (tmp_path / "run" / "best.pt").is_file()
    after = metrics_of(tmp_path / "run")
    for line in [*before, *after]:
        line.pop("eval_seconds", None)
    assert after == before


def test_one_image_for_batch_norms_is_explained_before_half_precision_is_tried(folder, tmp_path):
    config = tiny_config(folder, epochs=1, batch_size=1, precision="bf16")
    config = config.with_values({"model.head.norm": "batch"})
    with pytest.raises(gfl.UserError, match="batch norms can not learn from one image"):
        gfl.train(config, work_dir=tmp_path / "run")


def test_the_average_knows_how_many_steps_are_done(folder, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(EMA, "update", lambda self, model, step: seen.append(step))
    gfl.train(tiny_config(folder, epochs=1, ema_decay=0.9), work_dir=tmp_path / "run")
    assert seen == [1, 2, 3]
