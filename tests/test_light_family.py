"""Resume, export, conversion and faults with the shipped gfl_n, which other files show in small.

It is trained as it is (norms of levels that learn, mosaic, a flat cosine, values chosen from the
data) but for sizes and length, and for a line of metrics each step.
"""

import os
import signal

import jobs
import pytest
import torch
from builders import write_coco
from public_files import write_public_file
from test_predictor import same
from test_train import Interrupted, assert_same_tensors, metrics_of

import gfl
import gfl.engine.train as loop
from gfl import build
from gfl.build import build_model, build_postprocess
from gfl.cli.convert import main as convert_command
from gfl.config import load_config
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import load_checkpoint, save_checkpoint
from gfl.errors import TrainingStopped
from gfl.exporting import make_form
from gfl.initialise import CLASS_OUTPUT, initialise
from gfl.interop.exported import ExportedForm

NAMES = ("square", "disc")
# 8 pictures in batches of 2, the least with which norms learn at this size.
EPOCH, TOTAL = 4, 8
LEVELS = 4


def recipe(folder, *more: str) -> list[str]:
    """What is overridden in gfl_n."""
    size = "{short: 64, long: 96}"
    own = [f"data.path={folder}", f"data.train_size={size}", f"data.test_size={size}"]
    return [*own, "data.workers=0", "train.epochs=2", "train.log_steps=1", "device=cpu", *more]


def before_steps(patch, action) -> None:
    """Call `action(state, batches)` before each step of the trainings to come."""
    real = loop.train_step

    def step(state, network, batches, *args):
        action(state, batches)
        return real(state, network, batches, *args)

    patch.setattr(loop, "train_step", step)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As processes that tests start have: sums depend on it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": 8, "val": 3})


@pytest.fixture(scope="module")
def pictures(folder):
    return sorted((folder / "images").iterdir())[:4]


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """Config and directory of a run that nothing interrupts, and each step's count of mosaics."""
    run, mosaics = tmp_path_factory.mktemp("light_family") / "whole", []
    config = load_config("gfl_n", recipe(folder))
    with pytest.MonkeyPatch.context() as patch:
        before_steps(
            patch,
            lambda state, batches: mosaics.append(sum(bool(m.others) for m in batches[0].metas)),
        )
        gfl.train(config, work_dir=run)
    return config, run, mosaics


@pytest.fixture(scope="module")
def loud(whole, tmp_path_factory):
    """The run's checkpoint with larger weights: so few steps leave every score at its start."""
    content = load_checkpoint(whole[1] / "last.pt")
    for name, value in content["model"].items():
        if "_tower" in name and name.endswith("conv.weight"):
            value *= 8
        if name.endswith("_out.weight"):
            value *= 3
    path = tmp_path_factory.mktemp("loud") / "loud.pt"
    save_checkpoint(path, content)
    return path


def statistics_of(model: dict) -> dict:
    return {name: value for name, value in model.items() if "running_" in name}


def norm(tower: str, block: int, level: int, value: str) -> str:
    return f"head.{tower}_tower.{block}.norm.{level}.{value}"


# Training


def test_the_run_has_mosaics_and_learns_statistics_of_each_level(whole):
    config, run, mosaics = whole
    shipped = load_config("gfl_n")
    stated = {"data.train_size", "data.test_size", "train.epochs"}
    assert {*config.auto_keys} == {*shipped.auto_keys} - stated
    assert config.model == shipped.model and config.data.augment == shipped.data.augment
    assert len(mosaics) == TOTAL and sum(mosaics[:EPOCH]) >= 2
    assert sum(mosaics[EPOCH:]) == 0  # closed for the last epoch
    last = load_checkpoint(run / "last.pt")
    assert (last["step"], last["steps_per_epoch"], last["ema"]) == (TOTAL, EPOCH, None)
    assert len(statistics_of(last["model"])) == 2 * (20 + 2 * 2 * LEVELS)
    for tower in ("cls", "box"):
        for block in (0, 1):
            means = [last["model"][norm(tower, block, n, "running_mean")] for n in range(LEVELS)]
            for level, mean in enumerate(means):
                assert mean.abs().min() > 0
                assert not any(torch.equal(mean, other) for other in means[:level])
                counter = norm(tower, block, level, "num_batches_tracked")
                assert last["model"][counter] == TOTAL


def assert_is_the_whole_run(whole, work_dir) -> None:
    """Weights, statistics, moments, losses and AP, bit for bit."""
    _, uninterrupted, _ = whole
    for name in ("last.pt", "best.pt"):
        a, b = (load_checkpoint(run / name) for run in (uninterrupted, work_dir))
        assert_same_tensors(a, b)
    lines = metrics_of(work_dir)
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, TOTAL + 1))
    assert lines == metrics_of(uninterrupted)


def test_stopped_among_mosaics_and_after_them_it_ends_as_the_whole_run(
    whole, tmp_path, monkeypatch
):
    config, run = whole[0], tmp_path / "run"
    for done in (2, 7):

        def signal_in_time(state, batches, done=done):
            if state.step == done - 1:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            before_steps(patch, signal_in_time)
            with pytest.raises(TrainingStopped, match=f"SIGTERM: stopped after step {done} of 8"):
                gfl.train(config, work_dir=run, resume=True)
        assert load_checkpoint(run / "last.pt")["step"] == done
    gfl.train(config, work_dir=run, resume=True)
    assert_is_the_whole_run(whole, run)
    text = (run / "log.txt").read_text()
    assert "resumed at step 2 of 8" in text and "resumed at step 7 of 8" in text
    assert "auto: train.batch_size=2: that of the checkpoint" in text


@pytest.mark.slow  # a process that imports everything anew; test_kill.py has small ones
def test_killed_while_saving_it_ends_as_the_whole_run(whole, folder, tmp_path):
    """SIGKILL with half of the second epoch's last.pt on the disk."""
    run = tmp_path / "run"
    argv = ["gfl_n", *recipe(folder), "--work-dir", run]
    assert jobs.run(argv, spoil=("killed_in_the_bytes", 2)) == -9
    assert load_checkpoint(run / "last.pt")["step"] == EPOCH
    gfl.train(whole[0], work_dir=run, resume=True)
    assert_is_the_whole_run(whole, run)


# Faults


def test_a_mosaic_that_spoils_the_loss_is_skipped_and_its_pictures_are_named(
    folder, tmp_path, monkeypatch
):
    """One infinite picture would reach the statistics of every level, by the batch's mean."""
    run, before, spoilt = tmp_path / "run", [], []
    real = Normalize.__call__

    def look(state, batches):
        before.append({name: value.clone() for name, value in state.model.state_dict().items()})
        metas = batches[0].metas
        row = next((row for row, meta in enumerate(metas) if meta.others), None)
        if not spoilt and row is not None and state.step > 0:
            spoilt.extend([batches[0].images[row].clone(), metas[row], state.step + 1])

    def normalize(self, images, sizes):
        bad = [bool(spoilt) and torch.equal(image, spoilt[0]) for image in images]
        bad = torch.tensor(bad)[:, None, None, None]
        return torch.where(bad, torch.inf, real(self, images, sizes))

    before_steps(monkeypatch, look)
    monkeypatch.setattr(Normalize, "__call__", normalize)
    gfl.train(load_config("gfl_n", recipe(folder)), work_dir=run)
    _, meta, step = spoilt
    assert 1 < step < TOTAL
    for name, value in before[step].items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, before[step - 1][name]), name
    after = before[step + 1]
    for name in statistics_of(after):  # goes on learning
        assert not torch.equal(after[name], before[step][name]), name
    [line] = [line for line in (run / "log.txt").read_text().splitlines() if "skipped" in line]
    assert line.startswith(f"step {step} skipped: loss_cls, loss_box, loss_dfl not finite; images")
    kept = torch.load(run / "bad_batches" / f"step_{step}.pt", weights_only=True)
    assert kept["culprits"] == [meta.image_id, *meta.others] and len(meta.others) == 3
    for image_id in kept["culprits"]:
        [file] = kept["files"][image_id]
        assert f"{image_id} ({file})" in line
    last = load_checkpoint(run / "last.pt")["model"]
    assert all(value.isfinite().all() for value in last.values())


def test_a_picture_that_becomes_unreadable_is_replaced_in_mosaics_too_and_named_once(
    tmp_path, monkeypatch
):
    folder, run = write_coco(tmp_path / "set", {"train": 8, "val": 3}), tmp_path / "run"
    victim, lost = folder / "images" / "train_3.png", 30
    real, metas = build.build_dataset, []

    def then_damage(*args):
        dataset = real(*args)
        victim.write_bytes(b"no image")  # after the check has found it good
        return dataset

    monkeypatch.setattr(build, "build_dataset", then_damage)
    before_steps(monkeypatch, lambda state, batches: metas.extend(batches[0].metas))
    gfl.train(load_config("gfl_n", recipe(folder)), work_dir=run)
    replaced = [meta for meta in metas if meta.stands_in_for]
    assert len(metas) == 16 and len(replaced) > 2  # twice itself, else as a part of others
    assert all(f"{victim} is not a readable" in meta.stands_in_for for meta in replaced)
    shown = {image_id for meta in metas for image_id in (meta.image_id, *meta.others)}
    assert shown == set(range(10, 90, 10)) - {lost}
    text = (run / "log.txt").read_text()
    assert text.count(f"WARNING: {victim} is not a readable image") == 1
    assert text.count("takes its place") == 1


# Its checkpoint elsewhere


@torch.no_grad()
@pytest.mark.parametrize("form", ["decoded", "nms"])
def test_each_form_ends_in_the_detections_of_the_checkpoint(form, loud):
    """The module that is exported, of folded norms, against the network as it was trained."""
    detector = gfl.load(loud, device="cpu", fuse=False)
    dataset = build.build_dataset(detector.config, "train")
    batch = next(iter(build.build_eval_loader(detector.config, dataset)))
    rules = build_postprocess(detector.config)
    wanted = rules(detector.model(detector.normalize(batch.images, batch.input_sizes)), batch.metas)
    module = make_form(gfl.load(loud, device="cpu"), form)
    assert not any("norm" in name for name in module.state_dict() if "head" in name)
    values = module(batch.images.float(), batch.input_sizes)
    outputs = dict(zip(module.outputs, values, strict=True))
    strides = detector.model.neck.strides
    way_back = ExportedForm(form, strides, "corner", rules.score_threshold)
    got = way_back.detections(outputs, tuple(batch.images.shape[-2:]), rules, batch.metas)
    assert strides == (8, 16, 32, 64) and len(got) >= 4 and min(map(len, wanted)) > 5
    for one, other in zip(got, wanted, strict=True):
        same(one, other, atol=2e-3)


@pytest.mark.slow  # 25 s each; test_light.py exports a light network of another neck
@pytest.mark.parametrize("form", ["decoded", "nms"])
def test_the_onnx_file_is_the_checkpoint(form, loud, pictures, tmp_path):
    from test_exporting import agree  # which imports onnx

    report = gfl.export(loud, tmp_path / "n.onnx", form, image=pictures[0])
    original, exported = gfl.load(loud, device="cpu"), gfl.load(tmp_path / "n.onnx")
    assert report["detections"]["same"] > 5 and exported.class_names == NAMES
    assert exported.config == original.config
    rules = build_postprocess(original.config)
    agree(exported.predict(pictures, batch_size=3), original.predict(pictures), rules)


def test_fine_tuning_keeps_what_fits_and_says_so(whole, tmp_path, monkeypatch):
    folder = write_coco(
        tmp_path / "set", {"train": 8, "val": 3}, categories=((1, "disc"), (4, "triangle"))
    )
    source = whole[1] / "last.pt"
    config = load_config("gfl_n", recipe(folder, f"init_from={source}"))
    found = {}

    def look(state, batches):
        found.update({name: value.clone() for name, value in state.model.state_dict().items()})
        raise Interrupted

    before_steps(monkeypatch, look)
    with pytest.raises(Interrupted):
        gfl.train(config, work_dir=tmp_path / "run")
    theirs = load_checkpoint(source)["model"]
    assert found.keys() == theirs.keys()
    for name, value in found.items():
        if name not in CLASS_OUTPUT:
            assert torch.equal(value, theirs[name]), name
    for name in CLASS_OUTPUT:
        assert torch.equal(found[name][0], theirs[name][1])
        assert not torch.equal(found[name][1], theirs[name][0])
    text = (tmp_path / "run" / "log.txt").read_text()
    assert f"init_from {source}: 100.0% of the tensors fit" in text
    assert "classes with rows of the same name: disc\nclasses that start anew: triangle" in text
    assert f"auto: model.reg_max=8: that of init_from {source}" in text


def test_a_level_more_has_new_norms_and_keeps_those_of_the_others(whole):
    _, run, _ = whole
    overrides = ["model.neck.levels=5", f"init_from={run / 'last.pt'}"]
    config = load_config(run / "config.yaml", overrides)
    model = build_model(config, 2, load_pretrained=False)
    outcome = initialise(model, NAMES, config)
    towers = [(tower, block) for tower in ("cls", "box") for block in (0, 1)]
    values = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    fresh = {norm(*tower, LEVELS, value) for tower in towers for value in values}
    fresh |= {"neck.downsample.1.weight", "neck.downsample.1.bias", "head.scales.4.scale"}
    assert {*outcome.comparison.missing} == fresh and outcome.comparison.mismatched == ()
    assert 0.8 < outcome.fraction < 1 and f"missing     {len(fresh)}" in str(outcome)
    theirs = load_checkpoint(run / "last.pt")["model"]
    for name, value in model.state_dict().items():
        assert name in fresh or torch.equal(value, theirs[name]), name


def test_converted_saved_and_restored_it_finds_the_same(whole, loud, pictures, tmp_path, capsys):
    """Its own names in a public file; what the file does not say, the training's config does."""
    content = load_checkpoint(loud)
    save_checkpoint(tmp_path / "saved.pt", content)
    public = write_public_file(
        tmp_path / "a.pth", content["model"], prefix="module.", meta={"CLASSES": NAMES}
    )
    given = ["--config", str(whole[1] / "config.yaml")]
    assert convert_command([str(public), "--out", str(tmp_path / "a.pt"), *given]) == 0
    count = len(content["model"])
    assert f"matched     {count}\nmissing     0\nunexpected  0\n" in capsys.readouterr().out
    wanted = gfl.load(loud, device="cpu").predict(pictures)
    assert min(map(len, wanted)) > 2
    for path in (tmp_path / "saved.pt", tmp_path / "a.pt"):
        detector = gfl.load(path, device="cpu")
        assert detector.class_names == NAMES
        for one, other in zip(detector.predict(pictures), wanted, strict=True):
            same(one, other)


def test_what_can_not_be_converted_is_one_message(whole, loud, tmp_path, capsys):
    model = load_checkpoint(loud)["model"]
    lacks = {name: value for name, value in model.items() if ".norm.3." not in name}
    missing = len(model) - len(lacks) - 4  # counters of batches, which old files lack
    given = ["--config", str(whole[1] / "config.yaml")]
    for state, options, says in (
        (model, [], "does not fit a GFL detector on resnet18 (no shipped config has it)"),
        (lacks, given, f"missing     {missing}\n    {norm('cls', 0, 3, 'weight')}"),
        (None, given, "checkpoint of gfl already"),
    ):
        path = loud
        if state is not None:
            path = write_public_file(tmp_path / "a.pth", state, meta={"CLASSES": NAMES})
        assert convert_command([str(path), "--out", str(tmp_path / "a.pt"), *options]) == 2
        error = capsys.readouterr().err
        assert says in error and "Traceback" not in error and not (tmp_path / "a.pt").exists()
