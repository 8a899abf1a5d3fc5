"""Configs: the shipped files, the schema's refusals, layers, overrides and the round trip."""

import datetime
import re
from pathlib import Path

import pytest
import torch
import yaml
from builders import write_coco
from conftest import REPOSITORY
from pydantic import ValidationError

from gfl import build
from gfl.config import Config, load_config, merge_overrides, parse_config
from gfl.errors import UserError
from gfl.models.feature_backbone import LIBRARIES

CONFIGS = REPOSITORY / "configs"
SHIPPED = sorted(path.name for path in CONFIGS.glob("*.yaml"))

# What differs between the published models: backbone, epochs, milestones, short side in training.
PUBLISHED = {
    "gfl_r50_fpn_1x": ("resnet50", 12, (8, 11), (800, 800)),
    "gfl_r50_fpn_ms_2x": ("resnet50", 24, (16, 22), (480, 800)),
    "gfl_r101_fpn_ms_2x": ("resnet101", 24, (16, 22), (480, 800)),
    "gfl_x101_32x4d_fpn_ms_2x": ("resnext101_32x4d", 24, (16, 22), (480, 800)),
}

# What all of them share, as in the reference; None stands for a part that is turned off.
RECIPE = {
    "data": {
        "format": "coco",
        "augment": {"flip_horizontal": 0.5, "flip_vertical": 0.0, "color": 0.0},
        "test_size": {"short": 800, "long": 1333},
        "mean": [123.675, 116.28, 103.53],
        "std": [58.395, 57.12, 57.375],
        "group_by_aspect": True,
    },
    "model": {
        "backbone": {"pretrained": True},
        "neck": {"name": "fpn", "channels": 256},
        "head": {"name": "gfl", "channels": 256, "stacked_convs": 4},
        "box": "general",
        "reg_max": 16,
        "grid_origin": "corner",
    },
    "assigner": {"name": "atss", "top_k": 9, "anchor_scale": 8.0},
    "loss": {"beta": 2.0, "cls_weight": 1.0, "giou_weight": 2.0, "dfl_weight": 0.25},
    "postprocess": {
        "score_threshold": 0.05,
        "pre_nms_top_k": 1000,
        "pre_nms_rule": "pairs",
        "nms_iou": 0.6,
        "max_per_image": 100,
    },
    "train": {
        "batch_size": 16,
        "accumulate": 1,
        "optimizer": "sgd",
        "lr": 0.01,
        "lr_batch_size": 16,
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "decay_norm_and_bias": True,
        "warmup_steps": 500,
        "warmup_factor": 0.001,
        "schedule": "multistep",
        "grad_clip": None,
        "precision": "fp32",
        "ema_decay": None,
    },
}


def write(folder: Path, name: str, values) -> Path:
    """A YAML file; text is written as it is."""
    path = folder / name
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return path


def message_of(values: dict) -> str:
    """The refusal of plain config values."""
    with pytest.raises(UserError) as caught:
        parse_config(values)
    return str(caught.value)


def differing(want: dict, got: dict, place: str = "") -> list[str]:
    """Dotted keys of `want` whose value in `got` is another."""
    found = []
    for key, value in want.items():
        if isinstance(value, dict):
            found += differing(value, got[key], f"{place}{key}.")
        elif got[key] != value:
            found.append(f"{place}{key}: {got[key]!r}, want {value!r}")
    return found


# The shipped files


def test_there_are_files_to_check():
    assert {f"{name}.yaml" for name in PUBLISHED} | {"base.yaml"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_config_loads_and_names_existing_parts(name):
    model = load_config(CONFIGS / name).model
    library, _, inner = model.backbone.name.partition("/")
    assert model.backbone.name in build.BACKBONES or (library in LIBRARIES and inner)
    assert model.neck.name in build.NECKS
    assert model.head.name in build.HEADS
    assert model.box in build.BOX_REPRESENTATIONS


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipe(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    backbone, epochs, milestones, short_range = PUBLISHED[name]
    assert config.model.backbone.name == backbone
    assert config.train.epochs == epochs
    assert config.train.milestones == milestones
    assert config.data.train_size.short_range == short_range
    assert config.data.train_size.long == 1333
    assert config.model.backbone.resolved_norm == "frozen"
    assert config.model.backbone.resolved_frozen_stages == 1
    assert differing(RECIPE, config.to_dict()) == []


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_network_has_the_strides_of_p3_to_p7(name):
    config = load_config(CONFIGS / f"{name}.yaml")
    with torch.device("meta"):
        model = build.build_model(config, num_classes=80, load_pretrained=False)
    assert tuple(model.neck.strides) == (8, 16, 32, 64, 128)


def test_published_learning_rate_of_the_first_steps_and_after_each_milestone():
    schedule = build.build_schedule(load_config(CONFIGS / "gfl_r50_fpn_1x.yaml"), 1000)
    # Linear from 0.001 of 0.01 at step 0 to all of it at step 500; a tenth after epochs 8 and 11.
    for step, rate in ((0, 0.00001), (500, 0.01), (7999, 0.01), (8000, 0.001), (11000, 0.0001)):
        assert schedule(step) == pytest.approx(rate, rel=1e-9), step


# What is refused


def test_unknown_key_names_it_its_neighbours_and_the_closest():
    message = message_of({"train": {"epoch": 3}})
    assert "unknown key 'train.epoch'; did you mean 'epochs'?" in message
    assert "Known keys here: epochs, batch_size," in message
    message = message_of({"trian": {}})
    assert "unknown key 'trian'; did you mean 'train'?" in message
    assert "data, model, assigner, loss, postprocess, train, init_from" in message
    message = message_of({"model": {"backbone": {"zzz": 1}}})
    assert "unknown key 'model.backbone.zzz'. Known keys here: name, pretrained, norm" in message
    assert "did you mean" not in message


def test_unknown_key_whose_name_begins_like_a_type():
    assert "unknown key 'train.interval'" in message_of({"train": {"interval": 3}})
    assert "unknown key 'integer'" in message_of({"integer": 3})


def test_unknown_key_of_a_source_knows_the_keys_of_a_source():
    source = {"images": "a", "annotation": "b"}
    for values in (source, [source]):
        message = message_of({"data": {"train": values}})
        assert "unknown key 'data.train.0.annotation'; did you mean 'annotations'?" in message
        assert "Known keys here: images, annotations." in message
        assert "data.train.0.annotations: Field required." in message


@pytest.mark.parametrize(
    ("values", "key", "got"),
    [
        ({"train": {"epochs": "many"}}, "train.epochs", "'many'"),
        ({"train": {"epochs": 1.5}}, "train.epochs", "1.5"),
        ({"train": {"epochs": 0}}, "train.epochs", "0"),
        ({"train": {"epochs": None}}, "train.epochs", "None"),
        ({"train": {"lr": "fast"}}, "train.lr", "'fast'"),
        ({"train": {"lr": 0}}, "train.lr", "0"),
        ({"train": {"milestones": 8}}, "train.milestones", "8"),
        ({"train": 5}, "train", "5"),
        ({"model": {"backbone": None}}, "model.backbone", "None"),
        ({"model": {"backbone": {"frozen_stages": 5}}}, "model.backbone.frozen_stages", "5"),
        ({"model": {"head": {"channels": 100}}}, "model.head.channels", "100"),
        ({"data": {"path": 7}}, "data.path", "7"),
        (
            {"data": {"path": datetime.date(2024, 1, 1)}},
            "data.path",
            "datetime.date(2024, 1, 1)",
        ),
        ({"data": {"train": []}}, "data.train", "[]"),
        ({"data": {"augment": {"color": 1.5}}}, "data.augment.color", "1.5"),
        ({"postprocess": {"score_threshold": 1}}, "postprocess.score_threshold", "1"),
    ],
)
def test_wrong_value_names_key_and_value(values, key, got):
    assert message_of(values).startswith(f"config: {key} is {got}: ")


def test_all_mistakes_are_told_at_once():
    message = message_of({"train": {"epochs": 0}, "loss": {"beta": -1, "gamma": 2}})
    assert "train.epochs is 0" in message
    assert "loss.beta is -1" in message
    assert "unknown key 'loss.gamma'" in message


def test_wrong_value_of_a_key_with_two_types_names_only_the_key():
    message = message_of({"data": {"train_size": {"short": "big"}}})
    assert "data.train_size.short is 'big': " in message
    assert "function-" not in message
    message = message_of({"model": {"backbone": {"pretrained": 3}}})
    assert "model.backbone.pretrained is 3: " in message
    assert "pretrained.bool" not in message


@pytest.mark.parametrize(
    ("values", "got", "choices", "meant"),
    [
        ({"train": {"optimizer": "sdg"}}, "'sdg'", "'sgd' or 'adamw'", "sgd"),
        ({"train": {"precision": "fp61"}}, "'fp61'", "'fp32', 'bf16' or 'fp16'", "fp16"),
        (
            {"model": {"backbone": {"norm": "frozn"}}},
            "'frozn'",
            "'frozen', 'batch' or 'sync'",
            "frozen",
        ),
        (
            {"model": {"grid_origin": "pixel_centre"}},
            "'pixel_centre'",
            "'corner', 'pixel_center' or 'cell_center'",
            "pixel_center",
        ),
    ],
)
def test_wrong_choice_lists_the_choices_and_the_closest(values, got, choices, meant):
    message = message_of(values)
    assert f" is {got}: " in message
    assert choices in message
    assert message.endswith(f"; did you mean {meant!r}?")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"model": {"backbone": {"pretrained": False, "norm": "frozen"}}},
            "model.backbone: pretrained: false with norm: frozen",
        ),
        (
            {"model": {"backbone": {"pretrained": False, "frozen_stages": 1}}},
            "model.backbone: pretrained: false with norm: frozen or frozen_stages > 0",
        ),
        ({"loss": {"giou_weight": 0, "dfl_weight": 0}}, "giou_weight and dfl_weight are both 0"),
        ({"data": {"train_size": {"short": [800, 480]}}}, "data.train_size: short is (800, 480)"),
        ({"data": {"train_size": {"short": 16}}}, "short is 16, expected 32 or more"),
        (
            {"data": {"test_size": {"short": 800, "long": 700}}},
            "data.test_size: long is 700, expected at least the short side 800",
        ),
        ({"train": {"milestones": [11, 8]}}, "milestones are [11, 8], expected rising epochs"),
        ({"train": {"milestones": [8, 8]}}, "milestones are [8, 8], expected rising epochs"),
        (
            {"train": {"schedule": "cosine", "flat_fraction": 0.5}},
            "flat_fraction is 0.5, but schedule is cosine, which has no flat part",
        ),
    ],
)
def test_impossible_combination(values, words):
    assert words in message_of(values)


def test_possible_neighbours_of_impossible_combinations():
    scratch = parse_config({"model": {"backbone": {"pretrained": False}}}).model.backbone
    assert (scratch.resolved_norm, scratch.resolved_frozen_stages) == ("batch", 0)
    values = {"pretrained": False, "norm": "sync", "frozen_stages": 0}
    scratch = parse_config({"model": {"backbone": values}}).model.backbone
    assert (scratch.resolved_norm, scratch.resolved_frozen_stages) == ("sync", 0)
    from_file = parse_config({"model": {"backbone": {"pretrained": "weights.pth"}}}).model.backbone
    assert (from_file.resolved_norm, from_file.resolved_frozen_stages) == ("frozen", 1)
    assert parse_config({"loss": {"giou_weight": 0}}).loss.dfl_weight == 0.25
    assert parse_config({"data": {"train_size": {"short": [480, 480]}}})


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ("train", "lr"),
        ("train", "epochs"),
        ("train", "weight_decay"),
        ("train", "grad_clip"),
        ("loss", "beta"),
        ("assigner", "anchor_scale"),
        ("postprocess", "nms_iou"),
    ],
)
@pytest.mark.parametrize("value", [float("nan"), True, False])
def test_neither_nan_nor_a_truth_value_is_a_number(section, key, value):
    assert f"{section}.{key} is {value!r}: " in message_of({section: {key: value}})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("mean", [float("nan"), 0, 0]),
        ("std", [float("nan"), 1, 1]),
        ("mean", [float("inf"), 0, 0]),
        ("std", [0, 1, 1]),
        ("std", [-1, 1, 1]),
    ],
)
def test_normalisation_that_would_ruin_every_image(key, value):
    assert f"data.{key}.0 is {value[0]!r}: " in message_of({"data": {key: value}})


@pytest.mark.parametrize(
    ("section", "key"), [("train", "lr"), ("train", "weight_decay"), ("loss", "beta")]
)
def test_infinity_is_refused_where_it_would_ruin_the_weights(section, key):
    assert f"{section}.{key} is inf: " in message_of({section: {key: float("inf")}})


@pytest.mark.parametrize("milestones", [[0, 8], [-3, 8]])
def test_milestone_before_the_first_epoch_has_ended(milestones):
    assert f"milestones are {milestones}" in message_of({"train": {"milestones": milestones}})


# Files and layers


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (7, 'expected a text, in quotes where it looks like something else: "7"'),
        (["a"], "expected a text."),
        ({"x": 3}, "expected a text."),
    ],
)
def test_a_text_is_asked_for(value, hint):
    with pytest.raises(UserError, match=re.escape(hint)):
        parse_config({"data": {"path": value}})


def test_scientific_notation_without_a_dot_is_a_number(tmp_path):
    path = write(tmp_path, "a.yaml", "train: {lr: 1e-3, weight_decay: 5e-4}\n")
    assert yaml.safe_load(path.read_text())["train"]["lr"] == "1e-3"  # PyYAML reads text
    config = load_config(path, ["train.grad_clip=1e1"])
    assert (config.train.lr, config.train.weight_decay) == (0.001, 0.0005)
    assert config.train.grad_clip == 10.0


def test_extends_chain_lets_the_nearest_file_win(tmp_path):
    (tmp_path / "sub").mkdir()
    write(tmp_path, "a.yaml", {"train": {"lr": 0.1, "epochs": 3, "milestones": [1, 2]}})
    write(tmp_path, "b.yaml", {"extends": "a.yaml", "train": {"lr": 0.2, "milestones": []}})
    path = write(tmp_path / "sub", "c.yaml", {"extends": "../b.yaml", "train": {"seed": 7}})
    train = load_config(path).train
    assert (train.epochs, train.lr, train.milestones, train.seed) == (3, 0.2, (), 7)
    assert load_config(path, ["train.lr=0.4"]).train.lr == 0.4


def test_empty_file_is_the_schema_itself(tmp_path):
    assert load_config(write(tmp_path, "a.yaml", "# nothing\n")) == Config()


@pytest.mark.parametrize("name", ["gfl_r50_fpn_1x", "gfl_r50_fpn_1x.yaml", "ablations/beta_1"])
def test_a_shipped_config_can_be_extended_from_anywhere(name, tmp_path):
    shipped = load_config(CONFIGS / f"{name.removesuffix('.yaml')}.yaml")
    path = write(tmp_path, "mine.yaml", {"extends": name, "train": {"seed": 7}})
    assert load_config(path) == shipped.with_values({"train.seed": 7})
    write(tmp_path, "gfl_r50_fpn_1x.yaml", {"train": {"epochs": 3}})  # beside it: comes first
    path = write(tmp_path, "mine.yaml", {"extends": "gfl_r50_fpn_1x.yaml"})
    assert load_config(path).train.epochs == 3


def test_extends_that_fails(tmp_path):
    child = write(tmp_path, "a.yaml", {"extends": "nowhere.yaml"})
    with pytest.raises(UserError, match=r"cannot read config .*nowhere\.yaml: No such file"):
        load_config(child)
    write(tmp_path, "b.yaml", {"extends": "c.yaml"})
    write(tmp_path, "c.yaml", {"extends": "b.yaml"})
    with pytest.raises(UserError, match=r"extends itself: b\.yaml -> c\.yaml -> b\.yaml"):
        load_config(tmp_path / "b.yaml")
    child = write(tmp_path, "d.yaml", {"extends": ["a.yaml"]})
    with pytest.raises(UserError, match=r"d\.yaml: extends is \['a\.yaml'\], expected the name"):
        load_config(child)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "holds list, expected keys and values"),
        ("words\n", "holds str, expected keys and values"),
        ("train: {epochs: 3\n", "is not valid YAML"),
        ("train:\n\tepochs: 3\n", "is not valid YAML"),
    ],
)
def test_file_that_is_no_config(tmp_path, text, words):
    path = write(tmp_path, "odd.yaml", text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path} {words}")


def test_file_that_is_not_text(tmp_path):
    path = tmp_path / "odd.yaml"
    path.write_bytes(b"\xff\xfe\x00train")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(path)


def test_missing_file_lists_the_shipped_configs(tmp_path):
    with pytest.raises(UserError) as caught:
        load_config(tmp_path / "gfl_r50_1x.yaml")
    message = str(caught.value)
    assert f"cannot read config {tmp_path / 'gfl_r50_1x.yaml'}: No such file" in message
    assert "did you mean 'gfl_r50_fpn_1x'?" in message
    for name in SHIPPED:
        assert name.removesuffix(".yaml") in message.partition("Shipped configs: ")[2]


def test_errors_name_the_file(tmp_path):
    path = write(tmp_path, "mine.yaml", {"train": {"epochs": -1}})
    with pytest.raises(UserError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: train.epochs is -1: ")


# Overrides


def test_overrides_are_dotted_and_typed():
    texts = {
        "train.epochs=3": 3,
        "train.lr=0.5": 0.5,
        "train.channels_last=true": True,
        "train.grad_clip=null": None,
        "train.milestones=[1, 2]": [1, 2],
        "data.path=some/folder": "some/folder",
        "data.path=a=b": "a=b",
        "data.path={": "{",
        "model.backbone.name=resnet18": "resnet18",
    }
    for text, value in texts.items():
        place = merge_overrides({}, [text])
        for part in text.partition("=")[0].split("."):
            place = place[part]
        assert place == value, text
        assert type(place) is type(value), text


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("data.path=dd/batch #3", "dd/batch #3"),
        ("data.path=#3", "#3"),
        ("data.path='dd/batch' # three", "dd/batch"),
        ("init_from=runs/r50 #2/best.pt", "runs/r50 #2/best.pt"),
        ("model.backbone.pretrained=w/r18 #2.pth", "w/r18 #2.pth"),
        ("data.path=NULL", None),
        ("data.path=", None),
    ],
)
def test_nothing_is_cut_off_a_text_of_an_override(text, want):
    found = merge_overrides({}, [text])
    for part in text.partition("=")[0].split("."):
        found = found[part]
    assert found == want


def test_overrides_leave_the_rest_and_the_last_wins():
    values = {"train": {"epochs": 3, "seed": 1}}
    merged = merge_overrides(values, ["train.epochs=4", "train.epochs=5", "device=cpu"])
    assert merged == {"train": {"epochs": 5, "seed": 1}, "device": "cpu"}
    assert values == {"train": {"epochs": 3, "seed": 1}}


def test_inherited_factors_of_rates_can_be_dropped(tmp_path):
    (tmp_path / "base.yaml").write_text("train: {lr_factors: {backbone: 0.1}}\ndata: {path: d}\n")
    text = "extends: base.yaml\ntrain: {lr_factors: {head: 2}}\n"
    (tmp_path / "more.yaml").write_text(text)
    both = load_config(tmp_path / "more.yaml").train.lr_factors
    assert both == {"backbone": 0.1, "head": 2.0}
    none = load_config(tmp_path / "more.yaml", ["train.lr_factors=null"])
    assert none.train.lr_factors == {}
    for wrong in ("false", "0", "[]"):
        with pytest.raises(UserError, match="train.lr_factors"):
            load_config(tmp_path / "more.yaml", [f"train.lr_factors={wrong}"])


@pytest.mark.parametrize("text", ["train.epochs", "=3", "train..epochs=3", ".train=3", ""])
def test_override_of_a_bad_form(text):
    with pytest.raises(UserError) as caught:
        merge_overrides({}, [text])
    assert str(caught.value) == (
        f"override {text!r} is not of the form key=value, such as train.epochs=3"
    )


def test_override_of_an_unknown_key(tmp_path):
    path = write(tmp_path, "a.yaml", {})
    with pytest.raises(UserError, match=r"unknown key 'train\.epoch'; did you mean 'epochs'"):
        load_config(path, ["train.epoch=3"])


def test_mistake_of_the_command_line_is_not_laid_on_the_file(tmp_path):
    path = write(tmp_path, "a.yaml", {"train": {"epochs": 2}})
    with pytest.raises(UserError, match=r"^a\.yaml as changed by train\.epoch=3: unknown key"):
        load_config(path, ["train.epoch=3"])
    path = write(tmp_path, "b.yaml", {"train": {"epochs": 0}})
    with pytest.raises(UserError, match=r"b\.yaml: train\.epochs is 0"):
        load_config(path, ["train.epoch=3"])


def test_key_of_another_section_is_found():
    message = message_of({"epochs": 3})
    assert "unknown key 'epochs'; did you mean train.epochs?" in message
    message = message_of({"train": {"channels": 3}})
    assert "did you mean model.neck.channels or model.head.channels?" in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"data": {"train_size": 320}},
            "data.train_size is 320: expected keys and values, such as {short: ...}; keys: short, "
            "long.",
        ),
        ({"assigner": "tal"}, "assigner is 'tal': expected keys and values, such as {name: ...}"),
        ({"train": {"freeze": "backbone"}}, "expected a list, such as [backbone]."),
        ({"device": "gpu"}, "device is 'gpu': expected cpu, cuda or cuda:N."),
        ({"data": {"cache": "RAM"}}, "cache is 'RAM', expected 'ram' (./RAM for a folder"),
        ({"data": {"format": "COCO"}}, "did you mean 'coco'?"),
    ],
)
def test_what_to_type_instead_is_said(values, said):
    assert said in message_of(values)


# Where data comes from


def test_no_data_says_what_to_set():
    with pytest.raises(UserError, match=r"no data for split 'val'. Set data\.path=FOLDER, or data"):
        parse_config({}).data.sources("val")


def test_path_in_a_later_layer_drops_inherited_splits(tmp_path):
    source = {"images": "old", "annotations": "old.json"}
    write(tmp_path, "a.yaml", {"data": {"train": source, "val": [source], "workers": 5}})
    by_layer = write(tmp_path, "b.yaml", {"extends": "a.yaml", "data": {"path": "new"}})
    for config in (load_config(by_layer), load_config(tmp_path / "a.yaml", ["data.path=new"])):
        assert (config.data.path, config.data.train, config.data.val) == ("new", None, None)
        assert config.data.workers == 5
    config = load_config(tmp_path / "a.yaml", ["data.workers=1"])
    assert [source.images for source in config.data.sources("val")] == ["old"]


def test_explicit_splits_beat_a_path_of_the_same_or_an_earlier_layer(tmp_path):
    source = {"images": "own", "annotations": "own.json"}
    folder = write_coco(tmp_path / "all", {"test": 1})
    path = write(tmp_path, "a.yaml", {"data": {"path": str(folder), "val": source}})
    data = load_config(path, ["data.train.images=X", "data.train.annotations=Y"]).data
    [train], [val], [test] = data.sources("train"), data.sources("val"), data.sources("test")
    assert (train.images, train.annotations) == ("X", "Y")
    assert (val.images, val.annotations) == ("own", "own.json")
    assert test.images == str(folder / "images")


def test_list_of_sources_keeps_its_order():
    sources = [{"images": name, "annotations": f"{name}.json"} for name in "ba"]
    data = parse_config({"data": {"train": sources}}).data
    assert [source.images for source in data.sources("train")] == ["b", "a"]


# The config as a value


def full_config() -> Config:
    """A config whose every kind of value differs from the default."""
    source = {"images": "a", "annotations": "b"}
    return parse_config(
        {
            "data": {"train": source, "train_size": {"short": [480, 800]}, "mean": [1, 2, 3.5]},
            "model": {"backbone": {"pretrained": "file.pth", "norm": "batch"}},
            "train": {"milestones": [], "lr": "1e-3", "grad_clip": 10, "ema_decay": 0.998},
            "device": "cpu",
        }
    )


@pytest.mark.parametrize("name", [*SHIPPED, None])
def test_round_trip_through_plain_values_and_yaml(name):
    config = full_config() if name is None else load_config(CONFIGS / name)
    values = config.to_dict()
    assert parse_config(values) == config
    read_back = yaml.safe_load(yaml.safe_dump(values))
    assert read_back == values
    assert parse_config(read_back) == config


def test_config_is_frozen():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.train.epochs = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.device = "cpu"
    assert config == Config()


def test_overrides_change_a_stored_source_and_do_not_drop_each_other(tmp_path):
    stored = parse_config({"data": {"val": {"images": "a", "annotations": "b"}}}).to_dict()
    changed = parse_config(merge_overrides(stored, ["data.val.images=c"]))
    assert [(s.images, s.annotations) for s in changed.data.val] == [("c", "b")]
    given = ["data.val.images=A", "data.val.annotations=B", "data.path=C"]
    data = parse_config(merge_overrides({}, given)).data
    assert (data.path, data.val[0].images, data.val[0].annotations) == ("C", "A", "B")


def test_a_shipped_config_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart").data.path == "data/shapes"


# Keys that are there twice, and YAML that does more than hold values


@pytest.mark.parametrize(
    "text",
    ["train:\n  lr: 0.1\n  epochs: 3\n  lr: 0.2\n", "a: 1\ntrain: {lr: 0.1}\nlr: 1\nlr: 2\n"],
)
def test_key_that_is_there_twice_is_named_with_its_lines(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    lines = [
        number for number, line in enumerate(text.splitlines(), 1) if line.strip()[:3] == "lr:"
    ]
    with pytest.raises(UserError) as caught:
        load_config(path)
    words = f"key 'lr' is there twice, on line {lines[0]} and on line {lines[1]}"
    assert str(path) in str(caught.value) and words in str(caught.value)


def test_key_that_is_there_twice_on_one_line_or_in_an_override(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("train: {lr: 0.1, lr: 0.2}\n")
    with pytest.raises(UserError, match="'lr' is there twice, on line 1 and on line 1"):
        load_config(path)


def test_same_key_in_two_sections_or_merged_is_fine(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "train: &t {lr: 0.1, epochs: 3}\ndata: {train_size: {short: 100, long: 200}, "
        "test_size: {short: 100, long: 200}}\n"
    )
    assert load_config(path).train.lr == 0.1
    path.write_text("model: {neck: &n {channels: 64}, head: {<<: *n, stacked_convs: 2}}\n")
    assert load_config(path).model.head.channels == 64


@pytest.mark.parametrize(
    "text",
    ["a: !!python/object/apply:os.getcwd []", "a: 2021-99-99", "a: !!timestamp x", "[" * 9999],
)
def test_yaml_of_no_plain_values_is_refused(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(path)


def test_policies_are_checked_by_name_and_value():
    with pytest.raises(UserError, match="data.policy.missing_imge'; did you mean 'missing_image'"):
        parse_config({"data": {"policy": {"missing_imge": "skip"}}})
    with pytest.raises(UserError, match="data.policy.missing_image is 'repair'.*'skip' or 'fail'"):
        parse_config({"data": {"policy": {"missing_image": "repair"}}})
    policy = parse_config({"data": {"policy": {"missing_image": "fail"}}}).data.policy
    assert (policy.missing_image, policy.bad_box) == ("fail", "skip")


def test_no_sample_is_drawn_into_a_folder_of_the_users():
    assert load_config("quickstart").data.draw_sample
    assert load_config("quickstart", ["data.path=data/shapes"]).data.draw_sample
    assert not load_config("quickstart", ["data.path=my/typo"]).data.draw_sample
    asked = ["data.path=elsewhere", "data.draw_sample=true"]
    assert load_config("quickstart", asked).data.draw_sample
