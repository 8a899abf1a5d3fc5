"""Public checkpoints: reading them safely, recognising them, converting them strictly."""

import hashlib
import json
import os
import pickle
import random
import re
import subprocess
import sys
import zipfile

import pytest
import torch
from builders import tiny_values
from conftest import REPOSITORY
from public_files import FORMS, write_public_file

import gfl
from gfl.build import build_model
from gfl.cli.convert import main
from gfl.config import load_config, parse_config
from gfl.conversion import convert, open_checkpoint
from gfl.data.coco_classes import COCO_CLASSES
from gfl.interop.mmdet import convert_state_dict
from gfl.interop.public_file import read_public_file
from gfl.interop.recognise import recognise_model

CLASSES = ("cat", "dog", "owl")
# Our names to mmdet's, the other way round than gfl.interop.mmdet.
THEIRS = (
    (r"^neck\.lateral\.(\d)\.", r"neck.lateral_convs.\1.conv."),
    (r"^neck\.output\.(\d)\.", r"neck.fpn_convs.\1.conv."),
    (r"^neck\.downsample\.0\.", "neck.fpn_convs.3.conv."),
    (r"^neck\.downsample\.1\.", "neck.fpn_convs.4.conv."),
    (r"^head\.cls_tower\.(\d)\.conv\.", r"bbox_head.cls_convs.\1.conv."),
    (r"^head\.box_tower\.(\d)\.conv\.", r"bbox_head.reg_convs.\1.conv."),
    (r"^head\.cls_tower\.(\d)\.norm\.", r"bbox_head.cls_convs.\1.gn."),
    (r"^head\.box_tower\.(\d)\.norm\.", r"bbox_head.reg_convs.\1.gn."),
    (r"^head\.cls_out\.", "bbox_head.gfl_cls."),
    (r"^head\.box_out\.", "bbox_head.gfl_reg."),
    (r"^head\.scales\.", "bbox_head.scales."),
    (r"^head\.quality\.net\.", "bbox_head.reg_conf."),
    (r"^backbone\.conv1\.([01346])\.", r"backbone.stem.\1."),
)


def mmdet_name(name: str) -> str:
    for pattern, replacement in THEIRS:
        name = re.sub(pattern, replacement, name)
    return name


def small_model(num_classes: int = 3, **model):
    """A ResNet-18 detector of ours with random weights and statistics."""
    values = {
        "backbone": {"name": "resnet18", "pretrained": False},
        "neck": {"channels": 32},
        "head": {"channels": 64, "stacked_convs": 1},
        "reg_max": 8,
        **model,
    }
    torch.manual_seed(3)
    net = build_model(parse_config({"model": values}), num_classes)
    for value in net.state_dict().values():
        if value.is_floating_point():
            value.copy_(torch.rand_like(value) * 0.1)
    return net


def public_state(model) -> dict[str, torch.Tensor]:
    """The state dict as mmdet would name it, with the constant that it stores."""
    state = {mmdet_name(name): value for name, value in model.state_dict().items()}
    return {**state, "bbox_head.integral.project": torch.arange(9.0)}


@pytest.fixture(scope="module")
def model():
    return small_model()


def write(path, model, form: str = "zip", **more):
    options = {**FORMS[form], **more}
    options["meta"] = {"CLASSES": CLASSES, **options.get("meta", {})}
    return write_public_file(path, public_state(model), **options)


# Forms


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_weights(form, model, tmp_path):
    content, comparison = convert(write(tmp_path / "a.pth", model, form))
    assert list(content["model"]) == list(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(content["model"][name], value), name
    assert content["class_map"] == {"names": list(CLASSES), "category_ids": [1, 2, 3]}
    assert (comparison.missing, comparison.unexpected, comparison.mismatched) == ((), (), ())
    assert len(comparison.matched) == len(model.state_dict())
    averages = content["source"]["left_out"]
    assert bool(averages) == ("ema" in form)
    assert all(name.removeprefix("module.").startswith("ema_") for name in averages)


@pytest.mark.parametrize(
    "content",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"ema_state_dict": {"module." + k: v for k, v in state.items()}},
        lambda state: {"state_dict": {k: torch.nn.Parameter(v) for k, v in state.items()}},
        lambda state: {"state_dict": {k: v.double() for k, v in state.items()}},
    ],
    ids=["bare", "model", "ema only", "parameters", "double"],
)
def test_other_places_of_the_weights(content, model, tmp_path):
    floats = {k: v for k, v in public_state(model).items() if v.is_floating_point()}
    torch.save(content(floats), tmp_path / "a.pth")
    meta = read_public_file(tmp_path / "a.pth")
    assert set(meta.state) == set(floats)
    got = convert_state_dict(meta.state)
    assert torch.equal(got["head.box_out.bias"].float(), model.state_dict()["head.box_out.bias"])


def test_a_file_without_batch_counters_and_with_three_class_names_of_mmdet_3(model, tmp_path):
    state = {k: v for k, v in public_state(model).items() if "num_batches" not in k}
    meta = {"dataset_meta": {"classes": list(CLASSES)}, "mmdet_version": "3.3.0"}
    content, _ = convert(write_public_file(tmp_path / "a.pth", state, meta=meta))
    assert content["class_map"]["names"] == list(CLASSES)
    assert content["source"]["project"] == "mmdetection"
    assert content["source"]["project_version"] == "3.3.0"
    assert content["model"]["backbone.bn1.num_batches_tracked"] == 0


def test_coco_names_and_official_ids_without_a_meta(tmp_path):
    file = write_public_file(tmp_path / "a.pth", public_state(small_model(80)))
    content, _ = convert(file)
    assert content["class_map"]["names"][:2] == ["person", "bicycle"]
    ids = content["class_map"]["category_ids"]
    assert (len(ids), ids[11:13], ids[-1]) == (80, [13, 14], 90)


def test_coco_classes_are_the_official_ones():
    assert len(COCO_CLASSES) == 80 and list(COCO_CLASSES) == sorted(COCO_CLASSES)
    gaps = sorted(set(range(1, 91)) - set(COCO_CLASSES))
    assert gaps == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]
    assert COCO_CLASSES[1] == "person" and COCO_CLASSES[90] == "toothbrush"


# Recognition


@pytest.mark.parametrize(
    "name",
    [
        "gfl_r50_fpn_1x",
        "gfl_r101_dconv_c3-c5_fpn_ms_2x",
        "gfl_x101_32x4d_dconv_c4-c5_fpn_ms_2x",
        "gflv2_r101_dconv_c3-c5_fpn_ms_2x",
        "gflv2_res2net101_dconv_c4-c5_fpn_ms_2x",
    ],
)
@pytest.mark.parametrize("version", [1, 2])
def test_the_architecture_is_recognised_from_names_and_shapes(name, version):
    override = [f"model.backbone.deformable_version={version}"] if "dconv" in name else []
    config = load_config(name, override)
    with torch.device("meta"):
        state = build_model(config, 80, load_pretrained=False).state_dict()
    public = {mmdet_name(key): value for key, value in state.items()}
    if "res2net" in name:
        public = {key.replace("backbone.bn1.", "backbone.stem.7."): v for key, v in public.items()}
        assert "backbone.stem.0.weight" in public
    ours = convert_state_dict(public)
    assert list(ours) == list(state)
    found = parse_config({"model": recognise_model(ours)}).model
    for key in ("name", "deformable_stages"):
        assert getattr(found.backbone, key) == getattr(config.model.backbone, key)
    if config.model.backbone.deformable_stages:
        assert found.backbone.deformable_version == version
    assert found.quality == config.model.quality
    assert found.reg_max == 16 and found.head.stacked_convs == 4
    # One tensor of another shape changes nothing: the comparison names it.
    for damaged in (torch.zeros(3), torch.zeros(1, 5, 1, 1)):
        again = {**ours, "backbone.layer1.0.conv2.weight": damaged}
        assert recognise_model(again) == recognise_model(ours)


def test_every_size_is_read_from_the_shapes():
    net = small_model(
        quality="distribution_guided",
        neck={"channels": 48},
        head={"channels": 96, "stacked_convs": 2, "quality_top_k": 3, "quality_channels": 16},
    )
    found = recognise_model(net.state_dict())
    assert found["neck"] == {"channels": 48} and found["reg_max"] == 8
    assert found["head"] == {
        "channels": 96, "stacked_convs": 2, "quality_top_k": 3, "quality_channels": 16,
    }  # fmt: skip
    assert found["backbone"]["name"] == "resnet18"


def test_offsets_of_the_first_fork(tmp_path):
    """`conv2_offset` beside conv2, 27 channels, the grid of mmdet 1, COCO's classes."""
    net = small_model(
        80,
        backbone={"name": "resnet18", "pretrained": False, "deformable_stages": [4, 5]},
    )
    state = {
        name.replace("conv2.conv_offset.", "conv2_offset."): value
        for name, value in public_state(net).items()
    }
    state["bbox_head.distribution_project.project"] = state.pop("bbox_head.integral.project")
    assert any("conv2_offset" in name for name in state)
    content, _ = convert(write_public_file(tmp_path / "a.pth", state, legacy=True))
    config = content["config"]
    assert config["model"]["backbone"]["deformable_stages"] == [4, 5]
    assert config["model"]["backbone"]["deformable_version"] == 2
    assert config["model"]["grid_origin"] == "pixel_center"
    assert config["postprocess"]["pre_nms_rule"] == "locations"
    assert content["source"]["project"] == "GFocal"
    for name, value in net.state_dict().items():
        assert torch.equal(content["model"][name], value), name


def test_gflv2_with_the_channel_that_is_no_class(tmp_path):
    head = {"channels": 64, "stacked_convs": 1, "background_channel": True}
    net = small_model(3, quality="distribution_guided", head=head)
    content, _ = convert(write(tmp_path / "a.pth", net))
    assert content["config"]["model"]["head"]["background_channel"]
    assert content["config"]["model"]["quality"] == "distribution_guided"
    assert content["config"]["postprocess"]["pre_nms_rule"] == "locations"
    assert content["source"]["project"] == "GFocalV2"
    assert content["model"]["head.cls_out.weight"].shape[0] == 4


MMDET_2_TEXT = """
img_norm_cfg = dict(
    mean=[103.53, 116.28, 123.675], std=[1.0, 1.0, 1.0], to_rgb=False)
train_pipeline = [dict(type='Resize', img_scale=(1333, 600), keep_ratio=True)]
test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(1000, 640), flip=False)]
test_cfg = dict(nms_pre=500, min_bbox_size=0, score_thr=0.1,
    nms=dict(type='nms', iou_threshold=0.5), max_per_img=50)
"""


def test_conventions_come_from_the_files_config_text(model, tmp_path):
    content, _ = convert(write(tmp_path / "a.pth", model, meta={"config": MMDET_2_TEXT}))
    config = content["config"]
    assert config["data"]["mean"] == [103.53, 116.28, 123.675]
    assert config["data"]["std"] == [1.0, 1.0, 1.0]
    assert config["data"]["color_order"] == "bgr"
    assert config["data"]["test_size"] == {"short": 640, "long": 1000}
    assert config["model"]["grid_origin"] == "corner"
    assert config["postprocess"] == {
        "score_threshold": 0.1, "pre_nms_top_k": 500, "pre_nms_rule": "pairs", "nms_iou": 0.5,
        "max_per_image": 50,
    }  # fmt: skip


def test_conventions_without_a_text_are_those_of_the_published_models(model, tmp_path):
    config = convert(write(tmp_path / "a.pth", model))[0]["config"]
    assert config["data"]["mean"] == [123.675, 116.28, 103.53]
    assert config["data"]["color_order"] == "rgb"
    assert config["data"]["test_size"] == {"short": 800, "long": 1333}
    assert config["postprocess"]["pre_nms_rule"] == "pairs"


def test_version_1_of_mmdet_has_the_first_forks_grid(model, tmp_path):
    content, _ = convert(write(tmp_path / "a.pth", model, meta={"mmdet_version": "1.1.0+abc"}))
    assert content["config"]["model"]["grid_origin"] == "pixel_center"


# What is written


def test_conversion_is_deterministic_and_plain(model, tmp_path):
    source = write(tmp_path / "a.pth", model, "history_legacy")
    for name in ("one.pt", "two.pt"):
        assert main([str(source), "--out", str(tmp_path / name)]) == 0
    assert (tmp_path / "one.pt").read_bytes() == (tmp_path / "two.pt").read_bytes()
    content = torch.load(tmp_path / "one.pt", weights_only=True)
    assert content["format"] == "gfl" and content["weights"] == "converted"
    assert content["source"]["licence"] == "Apache-2.0"
    assert content["source"]["file"] == "a.pth"
    assert open_checkpoint(tmp_path / "one.pt")["class_map"] == content["class_map"]


def test_the_command_prints_the_table(model, tmp_path, capsys):
    source, out, table = (tmp_path / name for name in ("a.pth", "a.pt", "a.json"))
    write(source, model)
    assert main([str(source), "--out", str(out), "--json", str(table)]) == 0
    printed = capsys.readouterr().out
    assert f"matched     {len(model.state_dict())}" in printed
    for word in ("missing     0", "unexpected  0", "mismatched  0", "corner", "Apache-2.0", "owl"):
        assert word in printed
    assert json.loads(table.read_text())["matched"] == len(model.state_dict())


def test_the_hash_in_a_published_name_is_compared(model, tmp_path, capsys):
    path = write(tmp_path / "plain.pth", model)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    right = path.rename(tmp_path / f"gfl_r18-{digest}.pth")
    assert main([str(right), "--out", str(tmp_path / "a.pt")]) == 0
    assert "warning" not in capsys.readouterr().out
    wrong = right.rename(tmp_path / "gfl_r18-00000000.pth")
    assert main([str(wrong), "--out", str(tmp_path / "a.pt")]) == 0
    assert "is not the one in the file's name" in capsys.readouterr().out


def test_a_given_config_says_the_architecture(model, tmp_path, capsys):
    """For shapes that are not recognised; here a config that does not fit is refused."""
    values = tiny_values(tmp_path)
    values["model"]["backbone"]["name"] = "resnet18"
    config = tmp_path / "mine.yaml"
    config.write_text(json.dumps({"model": values["model"]}))
    source = write(tmp_path / "a.pth", model)
    content, _ = convert(source, config)
    assert content["source"]["config"] == "mine"
    config.write_text(json.dumps({"model": {**values["model"], "reg_max": 10}}))
    assert main([str(source), "--out", str(tmp_path / "x.pt"), "--config", str(config)]) == 2
    assert "head.box_out.weight (file (36, 64, 3, 3), network (44, 64, 3, 3))" in (
        capsys.readouterr().err
    )
    assert not (tmp_path / "x.pt").exists()


# What is refused


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_each_wrong_tensor_is_named(legacy, model, tmp_path):
    state = public_state(model)
    state.pop("bbox_head.cls_convs.0.conv.weight")
    state["neck.lateral_convs.9.conv.weight"] = state.pop("neck.lateral_convs.1.conv.weight")
    state["bbox_head.gfl_reg.bias"] = torch.zeros(35)
    path = write_public_file(tmp_path / "a.pth", state, legacy=legacy, meta={"CLASSES": CLASSES})
    with pytest.raises(gfl.UserError) as refusal:
        convert(path)
    text = str(refusal.value)
    assert re.search(r"missing +2\n", text) and "head.cls_tower.0.conv.weight" in text
    assert "neck.lateral.1.weight" in text
    # It is on ResNet-18, of which there is no shipped config: none is blamed.
    assert "does not fit a GFL detector on resnet18 (no shipped config has it)" in text
    assert "gfl_r50_fpn_1x" not in text and "--config FILE.yaml" in text
    assert re.search(r"unexpected +1\n +neck.lateral.9.weight", text)
    assert re.search(r"mismatched +1\n +head.box_out.bias \(file \(35,\), network \(36,\)\)", text)


@pytest.mark.parametrize(
    "name",
    [
        "backbone.conv1.weight",
        "backbone.layer1.0.conv2.weight",
        "backbone.layer4.1.bn2.bias",
        "neck.lateral_convs.0.conv.weight",
        "bbox_head.gfl_cls.weight",
        "bbox_head.gfl_cls.bias",
        "bbox_head.gfl_reg.weight",
        "bbox_head.scales.2.scale",
    ],
)
@pytest.mark.parametrize("change", ["missing", "renamed", "reshaped"])
def test_one_wrong_tensor_anywhere_is_named(name, change, model, tmp_path):
    """Also a tensor that the architecture is recognised by."""
    state = public_state(model)
    value = state.pop(name)
    if change == "renamed":
        state[name + "_x"] = value
    if change == "reshaped":
        state[name] = torch.zeros(3, 5)
    path = write_public_file(tmp_path / "a.pth", state, meta={"CLASSES": CLASSES})
    with pytest.raises(gfl.UserError) as refusal:
        convert(path)
    [ours] = convert_state_dict({name: value})
    assert ours in str(refusal.value)
    if change == "renamed":
        assert next(iter(convert_state_dict({name + "_x": value}))) in str(refusal.value)


class Hostile:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("place", ["state_dict", "meta", "top"])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "system"), (open, "io.open"), (eval, "eval"), (exec, "exec")],
    ids=["system", "open", "eval", "exec"],
)
def test_a_hostile_file_is_refused_and_creates_nothing(
    legacy, place, function, named, model, tmp_path, capsys
):
    target = tmp_path / "created"
    argument = {
        os.system: f"touch {target}",
        open: str(target),
        eval: f"open({str(target)!r}, 'w')",
        exec: f"open({str(target)!r}, 'w')",
    }[function]
    hostile = Hostile(function, *((argument, "w") if function is open else (argument,)))
    state = public_state(model)
    content = {"meta": {"CLASSES": CLASSES}, "state_dict": state}
    {"state_dict": state, "meta": content["meta"], "top": content}[place]["x"] = hostile
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    before = sorted(tmp_path.iterdir())
    assert main([str(path), "--out", str(tmp_path / "out.pt")]) == 2
    error = capsys.readouterr().err
    assert named in error and "Nothing was executed" in error
    assert sorted(tmp_path.iterdir()) == before
    with pytest.raises(gfl.UserError, match=named):
        open_checkpoint(path)
    assert sorted(tmp_path.iterdir()) == before


def test_the_hostile_file_would_have_worked(tmp_path):
    """The test above can fail: plain unpickling does create the file."""
    target = tmp_path / "created"
    torch.save({"x": Hostile(open, str(target), "w")}, tmp_path / "hostile.pth")
    torch.load(tmp_path / "hostile.pth", weights_only=False)["x"].close()
    assert target.exists()


def test_torchs_functions_can_not_be_changed_by_a_file(tmp_path):
    """A BUILD opcode on an allowed function would set attributes of it in this process."""
    body = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb."
    with zipfile.ZipFile(tmp_path / "a.pth", "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises(gfl.UserError, match="refused"):
        read_public_file(tmp_path / "a.pth")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "a")


def write_pickle(path, body: bytes, legacy: bool = False) -> None:
    """A file of torch.save whose pickle is `body`."""
    if legacy:
        parts = [
            pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        ]
        path.write_bytes(b"".join(parts) + body + pickle.dumps([], 2))
        return
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", body)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


# A dict {key: None} with keys whose hash would recurse 400,000 deep or take 2^60 steps.
DEEP = b"\x80\x02})" + b"\x85" * 400_000 + b"Ns."
DOUBLING = b"\x80\x02})" + b"2\x86" * 60 + b"Ns."
SET = b"\x80\x04\x8f()" + b"2\x86" * 60 + b"\x90."


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("body", [DEEP, DOUBLING, SET], ids=["deep", "doubling", "set"])
def test_keys_that_would_end_or_hang_the_process_are_refused(body, legacy, tmp_path):
    write_pickle(tmp_path / "a.pth", body, legacy)
    for read in (read_public_file, open_checkpoint):
        with pytest.raises(gfl.UserError, match="damaged or no checkpoint"):
            read(tmp_path / "a.pth")


def test_storages_that_the_old_format_names_but_does_not_hold_are_refused(model, tmp_path):
    """Their tensors would be whatever the memory held."""
    path = write(tmp_path / "a.pth", model, "legacy")
    content = path.read_bytes()
    names = re.search(rb"\x80\x02\]q\x00\(.*?e\.", content, re.DOTALL)
    assert names and len(names[0]) > 500
    path.write_bytes(content[: names.start()] + pickle.dumps([], 2))
    with pytest.raises(gfl.UserError, match="names storages that it does not hold"):
        read_public_file(path)


def test_a_tensor_larger_than_its_storage_is_refused(tmp_path):
    small = torch.zeros(8)
    torch.save({"state_dict": {"a": small.as_strided((1 << 20,), (0,))}}, tmp_path / "a.pth")
    with pytest.raises(gfl.UserError, match="in a storage of 8 numbers"):
        read_public_file(tmp_path / "a.pth")


def test_flipped_bits_end_in_a_message_or_in_the_weights(model, tmp_path, capsys):
    original = write(tmp_path / "a.pth", model).read_bytes()
    rng = random.Random(0)
    for _ in range(20):
        damaged = bytearray(original)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
        (tmp_path / "b.pth").write_bytes(damaged)
        assert main([str(tmp_path / "b.pth"), "--out", str(tmp_path / "b.pt")]) in (0, 2)
    capsys.readouterr()


@pytest.mark.parametrize(
    "text",
    [
        "mean=[1.2.3], std=[,]",
        "mean=[1.2.3, 1, 2]",
        "score_thr=0.0.5 nms_pre=" + "9" * 5000,
        "nms_pre=007",
    ],
)
def test_strange_config_texts_do_no_harm(text, model, tmp_path):
    content, _ = convert(write(tmp_path / "a.pth", model, meta={"config": text}))
    assert content["config"]["data"]["mean"] == [123.675, 116.28, 103.53]


def test_a_checkpoint_of_ours_is_not_converted_again(model, tmp_path, capsys):
    assert main([str(write(tmp_path / "a.pth", model)), "--out", str(tmp_path / "a.pt")]) == 0
    before = (tmp_path / "a.pt").read_bytes()
    assert main([str(tmp_path / "a.pt"), "--out", str(tmp_path / "b.pt")]) == 2
    assert "checkpoint of gfl already" in capsys.readouterr().err
    assert (tmp_path / "a.pt").read_bytes() == before and not (tmp_path / "b.pt").exists()


@pytest.mark.parametrize(
    ("out", "json_file", "says"),
    [
        ("a.pth", None, "is the source"),
        ("folder", None, "is a folder"),
        ("no/where.pt", None, "does not exist"),
        ("x" * 300 + ".pt", None, "cannot write"),
        ("a.pt", "a.pt", "both"),
        ("a.pt", "a.pth", "is the source"),
        ("a.pt", "folder", "is a folder"),
        ("/dev/full", None, "is no plain file"),
    ],
)
def test_outputs_that_would_do_harm_are_refused(out, json_file, says, model, tmp_path, capsys):
    source = write(tmp_path / "a.pth", model)
    (tmp_path / "folder").mkdir()
    before = source.read_bytes()
    arguments = [str(source), "--out", str(tmp_path / out)]
    arguments += ["--json", str(tmp_path / json_file)] if json_file else []
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error
    assert source.read_bytes() == before
    assert {f.name for f in tmp_path.iterdir()} == {"a.pth", "folder"}


def test_two_names_for_one_tensor_are_refused(model, tmp_path):
    state = public_state(model)
    state["head.cls_out.bias"] = state["bbox_head.gfl_cls.bias"] + 1
    path = write_public_file(tmp_path / "a.pth", state, meta={"CLASSES": CLASSES})
    with pytest.raises(gfl.UserError, match="head.cls_out.bias"):
        convert(path)


@pytest.mark.parametrize(
    "change", [lambda t: t.int(), lambda t: t.to(torch.complex64), lambda t: t * float("nan")]
)
def test_tensors_that_are_no_finite_floats_are_refused(change, model, tmp_path):
    state = public_state(model)
    state["bbox_head.gfl_cls.bias"] = change(state["bbox_head.gfl_cls.bias"])
    path = write_public_file(tmp_path / "a.pth", state, meta={"CLASSES": CLASSES})
    with pytest.raises(gfl.UserError, match="head.cls_out.bias"):
        convert(path)


def damaged_zip(path, model):
    write(path, model)
    path.write_bytes(path.read_bytes()[:-2000])


def damaged_legacy(path, model):
    write(path, model, "legacy")
    path.write_bytes(path.read_bytes()[:3000])


def plain_pickle(path, model):
    path.write_bytes(pickle.dumps({"a": 1}))


def text(path, model):
    path.write_text("no checkpoint at all")


def empty(path, model):
    path.write_bytes(b"")


def a_list(path, model):
    torch.save([1, 2], path)


def numbers_only(path, model):
    torch.save({"state_dict": {"a": 3}}, path)


def nothing(path, model):
    torch.save({"state_dict": {}}, path)


def another_network(path, model):
    torch.save({"state_dict": torch.nn.Linear(2, 2).state_dict()}, path)


def script(path, model):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def absent(path, model):
    pass


def too_few_names(path, model):
    write(path, model, meta={"CLASSES": ("a", "b")})


def no_names(path, model):
    write_public_file(path, public_state(model))


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    ("make", "says"),
    [
        (damaged_zip, "damaged"),
        (damaged_legacy, "damaged"),
        (plain_pickle, "damaged or no checkpoint"),
        (text, "no file of torch.save"),
        (empty, "no file of torch.save"),
        (a_list, "holds a list"),
        (numbers_only, "'a' is a int"),
        (nothing, "it is empty"),
        (another_network, "no GFL detector"),
        (script, "TorchScript"),
        (absent, "does not exist"),
        (too_few_names, "2 classes"),
        (no_names, "3 class channels"),
    ],
)
def test_other_files_end_in_one_message(make, says, model, tmp_path, capsys):
    path = tmp_path / "a.pth"
    make(path, model)
    assert main([str(path), "--out", str(tmp_path / "out.pt")]) == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error
    assert "Traceback" not in error and not (tmp_path / "out.pt").exists()


def test_the_command_as_users_run_it(model, tmp_path):
    source = write(tmp_path / "a.pth", model)
    done = subprocess.run(
        [sys.executable, "tools/convert.py", str(source), "--out", str(tmp_path / "a.pt")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr
    assert "written" in done.stdout


@pytest.mark.parametrize("content", [b"# a text file\n", b"\xff\xd8\xff\xe0 a picture", b""])
def test_file_of_another_kind_is_said_to_be_none(tmp_path, content):
    path = tmp_path / "x.pth"
    path.write_bytes(content)
    with pytest.raises(gfl.UserError, match=r"x\.pth is no file of torch\.save: expected"):
        open_checkpoint(path)


def test_a_scale_of_the_config_text_may_have_the_short_side_first(model, tmp_path):
    text = MMDET_2_TEXT.replace("(1000, 640)", "(640, 1000)")
    content, _ = convert(write(tmp_path / "a.pth", model, meta={"config": text}))
    assert content["config"]["data"]["test_size"] == {"short": 640, "long": 1000}


@pytest.mark.parametrize(("finest", "levels"), [("P3", 4), ("P3", 6), ("P2", 4), ("P2", 5)])
def test_pyramids_of_any_extent_are_renamed(finest, levels):
    model = small_model(neck={"channels": 32, "finest": finest, "levels": levels})
    ours = {name: value for name, value in model.state_dict().items() if name.startswith("neck.")}
    outputs = len({name for name in ours if re.match(r"neck\.output\.\d\.weight", name)})

    def theirs(name: str) -> str:
        part, number, kind = name.removeprefix("neck.").split(".")
        first = outputs if part == "downsample" else 0
        part = "lateral_convs" if part == "lateral" else "fpn_convs"
        return f"neck.{part}.{int(number) + first}.conv.{kind}"

    assert outputs == (4 if finest == "P2" else 3)
    found = convert_state_dict({theirs(name): value for name, value in ours.items()})
    assert found.keys() == ours.keys()
    assert all(found[name] is value for name, value in ours.items())
