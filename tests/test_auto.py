"""Values that are chosen from the data: what stays, who decides, and whole trainings."""

from types import SimpleNamespace

import jobs
import numpy as np
import pytest
import torch
import yaml
from builders import CHOSEN, tiny_config, tiny_values, write_coco, write_formats
from test_exporting import write_checkpoint
from test_train import run_train, write_config

import gfl.automatic as automatic
from gfl import build
from gfl.ablation.study import Study
from gfl.ablation.tables import Row
from gfl.automatic import choose_all, choose_layout, choose_sizes
from gfl.cli.check_data import main as check_data
from gfl.cli.config import main as show_config
from gfl.config import load_config
from gfl.errors import UserError
from gfl.schema.automatic import AUTO_KEYS

CPU = torch.device("cpu")


class Boxes:
    """A training set of equal pictures with one object each, as far as choosing looks at it."""

    class_names = ("a",)

    def __init__(self, count: int, size=(480, 640), side: int = 40):
        self.sizes = np.tile(np.array(size, np.int32), (count, 1))
        self.box = [0, 0, side, side]

    def __len__(self):
        return len(self.sizes)

    def objects(self):
        count = len(self)
        return np.tile(np.float32(self.box), (count, 1)), np.zeros(count, int), np.arange(count)


def auto(config, *keys):
    """The config with auto in these keys, all of them by default."""
    config = config.with_values({"train.schedule": "cosine"})
    return config.with_values(dict.fromkeys(keys or AUTO_KEYS, "auto"))


@pytest.fixture
def plenty(monkeypatch):
    """A machine that has 16 GiB for images."""
    monkeypatch.setattr(automatic, "room_for_images", lambda device, fixed: 2.0**34)


@pytest.fixture
def base(tmp_path):
    return tiny_config(tmp_path / "set")


def test_each_value_is_chosen_for_those_before_it_and_stated_ones_stay(base, plenty):
    data = Boxes(1000)
    config, choices = choose_sizes(auto(base, *AUTO_KEYS[2:]), data, CPU)
    assert config.auto_keys == () and [choice.key for choice in choices] == list(AUTO_KEYS[2:])
    assert config.data.train_size == config.data.test_size
    assert (config.data.train_size.short, config.data.train_size.long) == (320, 320)
    # 40 pixels in 640 are 20 in 320; the smallest anchor has 64: 10 / 8 + 1.5 strides.
    assert config.model.reg_max == 8
    assert (config.train.batch_size, config.train.epochs) == (16, 96)
    assert str(choices[0]).startswith("auto: data.train_size={short: 320, long: 320}: 90% of")

    stated = {"data.train_size": {"short": [256, 288], "long": 512}, "train.batch_size": 10}
    keys = [key for key in AUTO_KEYS[2:] if key not in stated]
    config, choices = choose_sizes(auto(base.with_values(stated), *keys), data, CPU)
    assert [choice.key for choice in choices] == keys
    assert config.data.train_size.short == (256, 288) and config.train.batch_size == 10
    assert (config.data.test_size.short, config.data.test_size.long) == (288, 512)
    assert config.train.epochs == 60  # 100 steps
    assert choose_sizes(base, SimpleNamespace(), CPU) == (base, [])


def test_images_that_come_again_count(base, plenty):
    """10 of 1000 have a rare class, and come twice an epoch where a class of 4 % comes once."""
    data = Boxes(1000)
    data.class_names = ("a", "b")
    found = data.objects()
    data.objects = lambda: (found[0], (np.arange(1000) < 10).astype(int), found[2])
    config = auto(base, "train.epochs").with_values(
        {"data.repeat_factor": 0.04, "train.batch_size": 10}
    )
    config, [choice] = choose_sizes(config, data, CPU)
    assert config.train.epochs == 60 and "101 steps an epoch" in choice.reason


def test_batch_norms_get_two_images_where_a_map_has_one_place(plenty):
    values = {"data.train_size": {"short": 64, "long": 64}, "model.reg_max": 8}
    config = load_config("gfl_n").with_values({**values, "train.epochs": 1})
    shared = {"model.head.norm": "group", "model.head.statistics": "shared"}
    for count, batch in ((10, 2), (100, 8)):
        small = auto(config, "train.batch_size")
        assert choose_sizes(small, Boxes(count, (64, 64)), CPU)[0].train.batch_size == batch
    group = auto(config.with_values(shared), "train.batch_size")
    assert choose_sizes(group, Boxes(10, (64, 64)), CPU)[0].train.batch_size == 1


def test_the_bound_of_sizes_is_used_up(base, plenty):
    config = auto(base, "data.train_size").with_values({"data.auto_largest": 128})
    config, _ = choose_sizes(config, Boxes(20), CPU)
    assert config.data.train_size.long == 128 and config.data.auto_largest is None


def test_less_memory_makes_smaller_batches(base, monkeypatch):
    monkeypatch.setattr(automatic, "image_bytes", lambda model, size: 10.0)
    # Of several processes the one with the least room decides.
    monkeypatch.setattr(automatic, "gather_objects", lambda value: [value, 55.0])
    config, [choice] = choose_sizes(auto(base, "train.batch_size"), Boxes(1000), CPU)
    assert config.train.batch_size == 4 and "no more fit" in choice.reason


def test_a_quality_predictor_of_many_bins_has_its_network_without_content(base):
    head = {"model.quality": "distribution_guided", "model.head.quality_top_k": 20}
    base = base.with_values({**head, "model.reg_max": 19})
    config, _ = choose_sizes(auto(base, "model.reg_max"), Boxes(20), CPU)
    assert config.model.reg_max >= 19


def test_loaded_weights_keep_their_reg_max(base, tmp_path, plenty):
    path = write_checkpoint(tmp_path / "a.pt", base.with_values({"model.reg_max": 5}))
    for key in ("init_from", "distill"):
        changed = {"init_from": str(path)} if key == "init_from" else {"distill.teacher": str(path)}
        config = auto(base, "model.reg_max")
        config = config.model_copy(update=changed) if key == "init_from" else config
        config = config.with_values(changed if key == "distill" else {})
        config, [choice] = choose_sizes(config, Boxes(20), CPU)
        assert config.model.reg_max == 5 and "a.pt" in choice.reason
    free = base.with_values({"model.box": "dirac", "loss.dfl_weight": 0})
    config, [choice] = choose_sizes(auto(free, "model.reg_max"), Boxes(20), CPU)
    assert config.model.reg_max == 16 and "no end" in choice.reason


def test_a_checkpoint_decides_everything(base):
    known = base.with_values(CHOSEN).to_dict()
    config, choices = choose_layout(auto(base), known)
    assert config.auto_keys == () and len(choices) == len(AUTO_KEYS)
    assert config.data.train_size.long == 320 and config.train.epochs == 24


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        ("fpu avx2 avx512f avx512_bf16", "bf16"),
        ("fpu amx_bf16 amx_tile", "bf16"),
        ("Features : fp asimd bf16", "bf16"),
        ("fpu avx2 avx512f not_avx512_bf16", "fp32"),
        (None, "fp32"),
    ],
)
def test_precision_is_that_of_the_cpus_instructions(base, tmp_path, monkeypatch, flags, precision):
    file = tmp_path / "cpuinfo"
    if flags is not None:
        file.write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("gfl.engine.precision.CPU_INFO", file)
    bare = SimpleNamespace()  # a data set that says nothing
    config, [choice] = choose_sizes(auto(base, "train.precision"), bare, CPU)
    assert choice.key == "train.precision" and choice.value == precision
    assert config.train.precision == precision


def test_choosing_draws_no_random_number(base, plenty):
    before = torch.get_rng_state()
    choose_sizes(auto(base, *AUTO_KEYS[2:]), Boxes(20), CPU)
    assert torch.equal(torch.get_rng_state(), before)


def test_what_can_not_be_chosen_is_the_users_message(base, tmp_path):
    with pytest.raises(UserError, match="epochs: auto needs .* SimpleNamespace has no objects"):
        choose_sizes(auto(base, "train.epochs"), SimpleNamespace(sizes=[]), CPU)
    with pytest.raises(UserError, match="data.path .*set is no folder"):
        choose_all(auto(base), None, None, CPU)
    model = auto(base.with_values({"model.num_classes": 2}), "model.reg_max")
    for work in (build.build_model, build.build_criterion, build.build_postprocess):
        with pytest.raises(UserError, match="model.reg_max is auto, which a training chooses"):
            work(model)
    for key, work in (
        ("data.format", lambda config: build.build_dataset(config, "train")),
        ("data.test_size", lambda config: build.build_eval_loader(config, Boxes(1))),
        ("train.precision", lambda config: build.build_loop_options(config, 1)),
        ("train.precision", lambda config: build.build_state(config, 1, 1, CPU, False)),
        ("train.batch_size", lambda config: build.build_train_loader(config, Boxes(1))),
        ("train.epochs", lambda config: build.build_schedule(config, 1)),
    ):
        with pytest.raises(UserError, match=f"{key} is auto"):
            work(auto(base, key))


def test_a_val_is_made_where_there_is_none(tmp_path, base):
    folder = write_coco(tmp_path / "set", {"train": 10})
    config, [first, second] = choose_layout(auto(base, "data.format", "data.val_fraction"))
    assert (config.data.format, config.data.val_fraction) == ("coco", 0.2)
    assert str(folder) in first.reason and "10 training images" in second.reason
    assert len(build.build_dataset(config, "val")) == 2
    overfit = auto(base, "data.val_fraction").with_values({"data.overfit": 3})
    assert choose_layout(overfit)[0].data.val_fraction is None
    write_coco(tmp_path / "other", {"val": 1})
    (tmp_path / "other/annotations/val.json").rename(folder / "annotations/val.json")
    assert choose_layout(auto(base, "data.val_fraction"))[0].data.val_fraction is None


def test_the_config_command_shows_auto_and_the_check_what_it_becomes(tmp_path, capsys):
    assert show_config(["gfl_n"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["data"]["train_size"] == shown["model"]["reg_max"] == "auto"
    folder = write_formats(tmp_path, {"train": 6})["yolo"]
    assert check_data(["gfl_m", f"data.path={folder}"]) == 0
    rows = [line.split(maxsplit=2) for line in capsys.readouterr().out.splitlines()]
    chosen = {row[1]: row[2].split("  ")[0] for row in rows if row[0] == "auto"}
    assert tuple(chosen) == AUTO_KEYS
    assert chosen["data.format"] == "yolo" and chosen["data.val_fraction"] == "0.2"
    assert chosen["data.train_size"] == "{short: 128, long: 128}"


def test_rows_of_an_ablation_share_what_was_chosen(tmp_path, plenty, monkeypatch):
    folder = write_coco(tmp_path / "set", {"train": 40, "val": 2})
    (tmp_path / "dirac.yaml").write_text("model: {box: dirac}\nloss: {dfl_weight: 0}\n")
    (tmp_path / "beta.yaml").write_text("loss: {beta: 1.0}\n")
    rows = [Row(name, name, file=tmp_path / f"{name}.yaml") for name in ("beta", "dirac")]
    values = auto(tiny_config(folder)).to_dict()
    config, out = write_config(tmp_path / "c.yaml", values), tmp_path / "out"

    def batches() -> list:
        study = Study(config, rows, out, seeds=1, say=lambda text: None)
        assert all(run.config.auto_keys == () for run in study.runs)
        study.chosen.write(out)
        return [(run.config.train.batch_size, run.config.model.reg_max) for run in study.runs]

    out.mkdir()
    assert batches() == [(4, 8), (4, 8)]
    # Another day: no room, and still the same study.
    monkeypatch.setattr(automatic, "room_for_images", lambda device, fixed: 0.0)
    assert batches() == [(4, 8), (4, 8)]
    (out / "auto.json").unlink()
    assert batches() == [(1, 8), (1, 8)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The three layouts; the VOC folder without a val."""
    found = write_formats(tmp_path_factory.mktemp("formats") / "set", {"train": 8, "val": 2})
    (found["voc"] / "ImageSets/Main/val.txt").unlink()
    return found


@pytest.mark.parametrize("name", ["coco", "voc", "yolo"])
def test_a_folder_is_all_that_a_training_needs(folders, tmp_path, name, capsys):
    values = tiny_values(folders[name], epochs=1, schedule="cosine")
    for key in set(AUTO_KEYS) - {"train.epochs"}:
        section, entry = key.split(".")
        values[section][entry] = "auto"
    config, work_dir = write_config(tmp_path / "c.yaml", values), tmp_path / "run"
    if name == "yolo":  # by two processes
        jobs.run_on_ranks([config, "--work-dir", work_dir], tmp_path)
    else:
        status, error = run_train(capsys, config, "--work-dir", work_dir)
        assert status == 0, error
    text = (work_dir / "log.txt").read_text()
    assert f"auto: data.format={name}: " in text and "auto: train.batch_size=" in text
    plain = load_config(work_dir / "config.yaml")
    assert plain.auto_keys == () and plain.data.format == name
    assert plain.data.val_fraction == (0.2 if name == "voc" else None)
    assert plain.data.train_size.long == 128
    assert plain.train.batch_size == (2 if name == "yolo" else 1)
    if name == "coco":
        kept = torch.load(work_dir / "best.pt", weights_only=True)["config"]
        assert kept == plain.to_dict()
        more = ("train.batch_size=auto", "train.epochs=2", "--resume", "--work-dir", work_dir)
        status, error = run_train(capsys, config, *more)
        assert status == 0 and "auto: train.batch_size=1: that of the checkpoint" in error
        assert "resumed at step 8 of 16" in error and "train_size" not in error.split("changed")[1]


def test_a_batch_is_of_parts_that_fit_one_by_one(base, monkeypatch):
    monkeypatch.setattr(automatic, "image_bytes", lambda model, size: 10.0)
    monkeypatch.setattr(automatic, "room_for_images", lambda device, fixed: 55.0)
    base = base.with_values({"train.accumulate": 2})
    config, _ = choose_sizes(auto(base, "train.batch_size"), Boxes(1000), CPU)
    assert config.train.batch_size == 8


def test_narrower_bins_take_a_larger_reg_max(base):
    """20 of the 320 pixels, on stride 8: 10 / 8 + 1.5 strides are 11 bins of a quarter."""
    base = base.with_values(
        {"model.bin_width": 0.25, "data.train_size": {"short": 320, "long": 320}}
    )
    config, _ = choose_sizes(auto(base, "model.reg_max"), Boxes(20), CPU)
    assert config.model.reg_max == 11


def test_reg_max_has_as_many_bins_as_a_predictor_looks_at(base):
    values = {"model.quality": "distribution_guided", "model.head.quality_top_k": 12}
    base = base.with_values({**values, "model.reg_max": 16})
    config, _ = choose_sizes(auto(base, "model.reg_max"), Boxes(20), CPU)
    assert config.model.reg_max == 11
