"""Exported networks compute what PyTorch computes, say what they are, or are not written."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from builders import pictures as picture_files
from builders import tiny_values, write_coco
from conftest import REPOSITORY
from test_predictor import same

import gfl
from gfl import exporting
from gfl.build import build_model, build_postprocess
from gfl.cli.export import main
from gfl.cli.predict import main as predict
from gfl.config import load_config, merge_values, parse_config
from gfl.data.batch import collate
from gfl.data.dataset import Sample
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.engine.checkpoint import save_checkpoint
from gfl.errors import ExportFailed
from gfl.exporting import HALF, drawn_picture, make_form
from gfl.interop.agreement import Differences, Tolerance
from gfl.interop.export_forms import FORMS
from gfl.interop.exported import ExportedForm
from gfl.interop.onnx_network import OnnxNetwork
from gfl.structures import Detections

NAMES = ("square", "disc")
V2 = {
    "model": {"quality": "distribution_guided", "head": {"background_channel": True}},
    "postprocess": {"pre_nms_rule": "locations", "pre_nms_top_k": 20},
    "data": {"color_order": "bgr"},
}
DCN = {"model": {"backbone": {"deformable_stages": [4, 5]}}}


def small_values(folder: Path) -> dict:
    """Three levels in place of five: what is written grows with them, and so does the time."""
    return merge_values(tiny_values(folder), {"model": {"neck": {"levels": 3}}})


def write_checkpoint(path: Path, config, cls_std=0.25, box_std=0.5, **more) -> Path:
    """An untrained network whose scores are high enough to detect something everywhere.

    `cls_std` and `box_std` are those of the last weights: many scores of 1.0 would be many ties.
    """
    torch.manual_seed(1)
    model = build_model(config, 2, load_pretrained=False)
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
        if name.endswith("conv_offset"):
            torch.nn.init.normal_(module.weight, std=0.02)
    torch.nn.init.normal_(model.head.cls_out.weight, std=cls_std)
    torch.nn.init.normal_(model.head.box_out.weight, std=box_std)
    content = {
        "model": model.state_dict(),
        "weights": "raw",
        "class_map": {"names": list(NAMES), "category_ids": [3, 7]},
        "config": config.to_dict(),
        "step": 1,
        "epoch": 1,
        **more,
    }
    save_checkpoint(path, content)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    data = write_coco(tmp_path_factory.mktemp("data"), {"val": 5}, size=(90, 128))
    return sorted((data / "images").iterdir())


@pytest.fixture(scope="module")
def plain(folder):
    source = {"licence": "Apache-2.0", "project": "somewhere"}
    config = parse_config(small_values(folder))
    return write_checkpoint(folder / "plain.pt", config, source=source)


@pytest.fixture(scope="module")
def v2(folder):
    return write_checkpoint(folder / "v2.pt", parse_config(merge_values(small_values(folder), V2)))


@pytest.fixture(scope="module")
def onnx_files(plain, v2, pictures):
    """The files of each form that a test asks for, made once."""
    made = {}

    def get(kind: str, form: str) -> Path:
        if (kind, form) not in made:
            checkpoint = {"plain": plain, "half": plain, "v2": v2}[kind]
            path = checkpoint.with_name(f"{kind}_{form}.onnx")
            gfl.export(checkpoint, path, form, half=kind == "half", image=pictures[0])
            made[kind, form] = path
        return made[kind, form]

    return get


def batch_of(detector, sizes: list[tuple[int, int]], short: int):
    """Noise pictures of these sizes as the detector's batch."""
    rng = np.random.default_rng(0)
    empty = np.zeros((0, 4), np.float32)
    transform = Transform(detector.config.data.test_size.long)
    return collate(
        [
            transform(
                Sample(
                    rng.integers(0, 256, (*size, 3), dtype=np.uint8),
                    empty,
                    np.zeros(0, np.int64),
                    empty,
                    number,
                ),
                SampleKey(number, 0, short),
            )
            for number, size in enumerate(sizes)
        ]
    )


BATCHES = {
    "one": [(96, 128)],
    "four": [(96, 128), (60, 128), (90, 90), (128, 50)],
}


def agree(got, wanted, rules, tolerance=None) -> Differences:
    found = Differences()
    tolerance = tolerance or Tolerance()
    for one, other in zip(got, wanted, strict=True):
        found.add_detections(one, other, rules, tolerance)
    assert found.within(tolerance), found
    assert found.same > 2 and found.near <= 0.1 * found.same
    return found


# Other qualities, boxes and assigners

VARIANTS = {
    "dirac": {
        "model": {"box": "dirac", "quality": "none"},
        "loss": {"dfl_weight": 0},
        "assigner": {"name": "retinanet", "anchor_scale": 4},
    },
    "gaussian": {
        "model": {"box": "gaussian", "quality": "iou_branch", "grid_origin": "cell_center"},
        "assigner": {"name": "fcos"},
    },
    "narrow": {"model": {"bin_width": 0.5, "head": {"score": "distribution", "score_bins": 5}}},
}


@pytest.fixture(scope="module")
def variant(folder):
    def get(name: str) -> Path:
        config = parse_config(merge_values(small_values(folder), VARIANTS[name]))
        # exp of a logit, and nine anchors a place: smaller logits, or every box is a hit.
        return write_checkpoint(folder / f"{name}.pt", config, cls_std=0.2, box_std=0.05)

    return get


@pytest.mark.parametrize(
    ("name", "form"), [("dirac", "nms"), ("gaussian", "decoded"), ("narrow", "raw")]
)
def test_a_combination_of_the_paper_exports_and_predicts_the_same(
    name, form, variant, pictures, tmp_path
):
    checkpoint, out = variant(name), tmp_path / "net.onnx"
    gfl.export(checkpoint, out, form, image=pictures[0])
    detector, exported = gfl.load(checkpoint, device="cpu"), gfl.load(out)
    assert exported.metadata["box"] == detector.config.model.box
    rules = build_postprocess(detector.config)
    agree(exported.predict(pictures), detector.predict(pictures), rules)


@pytest.mark.parametrize("name", ["dirac", "gaussian"])
def test_a_box_without_bins_has_no_raw_form(name, variant, tmp_path, capsys):
    out = tmp_path / "net.onnx"
    assert main([str(variant(name)), "--out", str(out), "--form", "raw"]) == 2
    assert f"the detector's box is {name}" in capsys.readouterr().err and not out.exists()


# The forms, without exporting


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["plain", "v2"])
def test_each_form_ends_in_the_detections_of_postprocess(kind, form, plain, v2):
    detector = gfl.load({"plain": plain, "v2": v2}[kind], device="cpu")
    batch = batch_of(detector, BATCHES["four"], 96)
    rules = build_postprocess(detector.config)
    wanted = rules(detector.model(detector.normalize(batch.images, batch.input_sizes)), batch.metas)
    module = make_form(detector, form)
    outputs = dict(
        zip(module.outputs, module(batch.images.float(), batch.input_sizes), strict=True)
    )
    way_back = ExportedForm(form, detector.model.neck.strides, "corner", rules.score_threshold)
    got = way_back.detections(outputs, tuple(batch.images.shape[-2:]), rules, batch.metas)
    assert min(len(found) for found in wanted) > 5
    for one, other in zip(got, wanted, strict=True):
        same(one, other, atol=2e-3)


@torch.no_grad()
@pytest.mark.parametrize("rule", ["pairs", "locations"])
def test_the_numbers_kept_are_those_of_postprocess(rule, plain):
    detector = gfl.load(plain, device="cpu")
    batch = batch_of(detector, BATCHES["four"], 96)
    images = batch.images.float()
    module = make_form(detector, "nms")
    rules = module.postprocess
    rules.pre_nms_rule, rules.score_threshold = rule, 0.0
    for rules.pre_nms_top_k, rules.max_per_image in ((7, 100), (1000, 9), (1, 100), (1, 1)):
        predictions = detector.model(detector.normalize(images, batch.input_sizes))
        wanted = rules(predictions, batch.metas, rescale=False)
        boxes, scores, labels, edge_std, count = module(images, batch.input_sizes)
        assert count.tolist() == [len(found) for found in wanted]
        for row, found in enumerate(wanted):
            n = len(found)
            mine = Detections(boxes[row, :n], scores[row, :n], labels[row, :n], edge_std[row, :n])
            same(mine, found, atol=1e-3)
            assert not boxes[row, n:].any() and not scores[row, n:].any()


@torch.no_grad()
def test_what_lies_in_the_padding_does_not_matter(plain):
    detector = gfl.load(plain, device="cpu")
    module = make_form(detector, "raw")
    images = torch.randint(0, 256, (1, 3, 96, 128)).float()
    other = images.clone()
    other[..., 70:, :] = 255
    other[..., 100:] = 17
    sizes = torch.tensor([[70, 100]])
    for one, two in zip(module(images, sizes), module(other, sizes), strict=True):
        assert torch.equal(one, two)
    assert not torch.equal(module(images, torch.tensor([[96, 128]]))[0], module(other, sizes)[0])


# The files


def test_onnxruntime_that_can_not_start_on_its_gpu_says_so(plain, onnx_files, monkeypatch):
    """It then takes the CPU and prints a warning."""
    import onnxruntime

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    path = onnx_files("plain", "raw")
    with pytest.raises(gfl.UserError, match="onnxruntime could not start there"):
        OnnxNetwork(path, "cuda")
    assert OnnxNetwork(path).device == "cpu"


@torch.no_grad()
@pytest.mark.parametrize("form", FORMS)
def test_an_onnx_file_computes_what_pytorch_does(form, plain, onnx_files):
    path = onnx_files("plain", form)
    detector, network = gfl.load(plain, device="cpu"), OnnxNetwork(path)
    way_back, rules = ExportedForm.of(network.metadata), build_postprocess(detector.config)
    for sizes in BATCHES.values():
        for short in (96, 40):
            batch = batch_of(detector, sizes, short)
            outputs = network(batch.images, batch.input_sizes)
            predictions = detector.model(detector.normalize(batch.images, batch.input_sizes))
            grid, box = predictions.grid, rules.box
            expected = {"scores": predictions.cls_logits.sigmoid()}
            if form == "raw":
                logits = predictions.box_logits.unflatten(-1, (4, 9))
                expected["distributions"] = logits.softmax(-1)
            if form == "decoded":
                left_top, right_bottom = (
                    box.ltrb_cells(predictions.box_logits) * grid.strides[:, None]
                ).split(2, -1)
                corners = grid.centers - left_top, grid.centers + right_bottom
                expected["boxes"] = torch.cat(corners, -1)
            if form != "nms":
                for name, value in expected.items():
                    limit = 0.05 if name == "boxes" else 1e-4
                    torch.testing.assert_close(outputs[name], value, rtol=0, atol=limit)
            size = tuple(batch.images.shape[-2:])
            got = way_back.detections(outputs, size, rules, batch.metas, rescale=False)
            agree(got, rules(predictions, batch.metas, rescale=False), rules)


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("plain", "raw"),
        ("plain", "decoded"),
        ("plain", "nms"),
        pytest.param("v2", "nms", marks=pytest.mark.slow),
    ],
)
def test_loading_the_file_is_loading_the_checkpoint(kind, form, plain, v2, onnx_files, pictures):
    original = gfl.load({"plain": plain, "v2": v2}[kind], device="cpu")
    exported = gfl.load(onnx_files(kind, form))
    assert exported.class_names == NAMES and exported.category_ids == (3, 7)
    assert exported.config == original.config
    rules = build_postprocess(original.config)
    images = [str(pictures[0]), *pictures[1:4], drawn_picture(128, 96)]
    wanted, got = original.predict(images), exported.predict(images, batch_size=3)
    agree(got, wanted, rules)
    assert got[0].class_names and got[0].names == NAMES
    scores = wanted[0].scores
    cut = ((scores[0] + scores[-1]) / 2).item()
    few = exported.predict(images[0], score_threshold=cut)[0]
    assert 0 < len(few) < len(scores) and (few.scores > cut).all()


@pytest.mark.parametrize("form", FORMS)
def test_each_picture_is_the_same_through_the_file(form, plain, onnx_files, tmp_path):
    original, exported = gfl.load(plain, device="cpu"), gfl.load(onnx_files("plain", form))
    images = picture_files(tmp_path)
    got, wanted = exported.predict(images, batch_size=8), original.predict(images, batch_size=1)
    found = agree(got, wanted, build_postprocess(original.config))
    print(f"\n{len(images)} pictures through {form}: {found}")
    assert found.near <= 0.01 * found.same


def test_distributions_come_from_the_raw_form_alone(plain, onnx_files, pictures):
    [wanted] = gfl.load(plain, device="cpu").predict(pictures[0], distributions=True)
    [found] = gfl.load(onnx_files("plain", "raw")).predict(pictures[0], distributions=True)
    torch.testing.assert_close(found.distributions[:5], wanted.distributions[:5], atol=1e-4, rtol=0)
    for form in ("decoded", "nms"):
        with pytest.raises(gfl.UserError, match="--form raw"):
            gfl.load(onnx_files("plain", form)).predict(pictures[0], distributions=True)
    with pytest.raises(gfl.UserError, match=r"0.01 is below the 0.05 inside"):
        gfl.load(onnx_files("plain", "nms")).predict(pictures[0], score_threshold=0.01)


@pytest.mark.parametrize("form", FORMS)
def test_a_page_of_predictions_needs_no_distributions(form, onnx_files, pictures, tmp_path):
    arguments = [str(onnx_files("plain", form)), str(pictures[0]), "--out", str(tmp_path), "--html"]
    assert predict([*arguments, "--device", "cpu"]) == 0
    page = (tmp_path / "predictions.html").read_text()
    assert '"edge_std":' in page and ('"distributions":' in page) == (form == "raw")


@pytest.mark.slow
def test_half_precision_is_half_inside_and_float32_outside(plain, onnx_files, pictures):
    path = onnx_files("half", "decoded")
    graph = onnx.load(path).graph
    kinds = [tensor.data_type for tensor in graph.initializer if np.prod(tensor.dims) > 1000]
    assert len(kinds) > 20 and set(kinds) == {onnx.TensorProto.FLOAT16}
    ends = [value.type.tensor_type.elem_type for value in (graph.input[0], *graph.output)]
    assert set(ends) == {onnx.TensorProto.FLOAT}
    original = gfl.load(plain, device="cpu")
    got, wanted = gfl.load(path).predict(pictures), original.predict(pictures)
    agree(got, wanted, build_postprocess(original.config), HALF)
    assert path.stat().st_size < 0.6 * onnx_files("plain", "decoded").stat().st_size


@pytest.mark.slow
@torch.no_grad()
def test_half_precision_decodes_boxes_in_float32(plain, onnx_files):
    """Boxes are those of the distributions beside them; float16 would round them to whole pixels.

    Two files of one network: what comes before the decoding is the same in both.
    """
    detector = gfl.load(plain, device="cpu")
    batch = batch_of(detector, BATCHES["four"], 96)
    raw, decoded = (
        OnnxNetwork(onnx_files("half", form))(batch.images, batch.input_sizes)
        for form in ("raw", "decoded")
    )
    grid = detector.model(detector.normalize(batch.images, batch.input_sizes)).grid
    sides = raw["distributions"].double()
    assert (sides.sum(-1) - 1).abs().max() < 1e-6  # in float16 off by 3e-4
    mean = (sides * torch.arange(9)).sum(-1)
    deviation = (sides * (torch.arange(9) - mean[..., None]) ** 2).sum(-1).sqrt()
    strides = grid.strides.double()[:, None]
    corners = grid.centers - mean[..., :2] * strides, grid.centers + mean[..., 2:] * strides
    for name, value in {"boxes": torch.cat(corners, -1), "edge_std": deviation * strides}.items():
        assert value.abs().max() > 100
        torch.testing.assert_close(decoded[name].double(), value, rtol=0, atol=2e-3)


@pytest.mark.slow
def test_deformable_convolutions_are_float32_in_half_precision(folder, pictures):
    config = parse_config(merge_values(tiny_values(folder), DCN))
    checkpoint = write_checkpoint(folder / "deformable.pt", config)
    report = gfl.export(checkpoint, folder / "deformable.onnx", half=True)
    print(report["largest_difference"], report["detections"])
    assert report["detections"]["same"] > 50
    model = onnx.shape_inference.infer_shapes(onnx.load(folder / "deformable.onnx"))
    kinds = {v.name: v.type.tensor_type.elem_type for v in model.graph.value_info}
    kinds |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "DeformConv"]
    assert len(layers) == 4
    for node in layers:
        assert {kinds[name] for name in node.input if name} == {onnx.TensorProto.FLOAT}
    assert onnx.TensorProto.FLOAT16 in kinds.values()


def test_metadata_says_all_that_is_needed(plain, onnx_files):
    for form in FORMS:
        session = onnxruntime.InferenceSession(onnx_files("plain", form))
        meta = session.get_modelmeta().custom_metadata_map
        assert meta["form"] == form and meta["gfl_version"] == gfl.__version__
        assert json.loads(meta["class_names"]) == list(NAMES)
        assert json.loads(meta["category_ids"]) == [3, 7]
        assert json.loads(meta["mean"]) == [123.675, 116.28, 103.53]
        assert json.loads(meta["std"]) == [58.395, 57.12, 57.375]
        assert meta["color_order"] == "rgb" and meta["licence"] == "Apache-2.0"
        resize = json.loads(meta["resize"])
        assert (resize["short"], resize["long"], resize["pad_multiple"]) == (96, 128, 32)
        thresholds = json.loads(meta["thresholds"])
        assert (thresholds["score"], thresholds["nms_iou"]) == (0.05, 0.6)
        inside = json.loads(meta["inside"])
        assert inside["normalization"] and inside["sigmoid"]
        assert (inside["box_decoding"], inside["nms"]) == (form != "raw", form == "nms")
        assert parse_config(json.loads(meta["config"])) == gfl.load(plain, device="cpu").config
        assert [i.name for i in session.get_inputs()] == ["images", "input_sizes"]
        assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
        assert [o.name for o in session.get_outputs()] == list(FORMS[form].outputs)
        assert list(json.loads(meta["outputs"])) == list(FORMS[form].outputs)
    assert onnx.load(onnx_files("plain", "raw")).opset_import[0].version == 20


@pytest.mark.slow
def test_a_program_of_torch_export_can_be_read_back(v2, folder, pictures):
    report = gfl.export(v2, folder / "v2.pt2", image=pictures[0])
    assert report["detections"]["same"] > 5 and report["opset"] is None
    files = {"gfl.json": ""}
    module = torch.export.load(folder / "v2.pt2", extra_files=files).module()
    assert json.loads(files["gfl.json"])["class_names"] == list(NAMES)
    detector = gfl.load(v2, device="cpu")
    images, sizes = torch.rand(3, 3, 160, 192) * 255, torch.tensor([[150, 192]] * 3)
    wanted = make_form(detector, "decoded")(images, sizes)
    for one, other in zip(module(images, sizes), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=5e-3)


def test_the_pages_example_gives_what_predict_does(plain, onnx_files, pictures, tmp_path):
    shutil.copy(onnx_files("plain", "nms"), tmp_path / "mine.onnx")
    shutil.copy(pictures[2], tmp_path / "picture.jpg")  # decoded by content
    page = (REPOSITORY / "docs" / "export.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True)
    [wanted] = gfl.load(plain, device="cpu").predict(pictures[2])
    names, scores, boxes = zip(
        *(line.split(" ", 2) for line in done.stdout.splitlines()), strict=True
    )
    assert list(names) == wanted.class_names
    torch.testing.assert_close(
        torch.tensor([float(s) for s in scores]), wanted.scores, rtol=0, atol=2e-3
    )
    torch.testing.assert_close(
        torch.tensor([json.loads(b) for b in boxes]), wanted.boxes, rtol=0, atol=0.11
    )


# What is refused


@pytest.fixture
def quick(monkeypatch, onnx_files):
    """Exporting that "writes" a file made before, to try what comes after."""
    made = onnx_files("plain", "raw")
    monkeypatch.setattr(exporting, "export_program", lambda *args: None)
    monkeypatch.setattr(exporting, "write_onnx", lambda _, path, *args: shutil.copy(made, path))


def test_a_file_that_differs_is_not_kept(quick, plain, tmp_path, pictures, capsys):
    out = tmp_path / "net.onnx"
    arguments = [str(plain), "--out", str(out), "--form", "raw", "--image", str(pictures[0])]
    assert main([*arguments, "--tolerance", "0", "0"]) == 1
    assert "export failed" in (message := capsys.readouterr().err) and "scores" in message
    assert list(tmp_path.iterdir()) == []
    out.write_text("older")
    with pytest.raises(ExportFailed):
        gfl.export(plain, out, "raw", tolerance=(0, 0))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]
    assert main([*arguments, "--json", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert 0 < report["largest_difference"]["scores"] < 1e-4
    assert [run["batch"] for run in report["runs"]] == [1, 2, 1, 2]
    assert len({(run["height"], run["width"]) for run in report["runs"]}) > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["net.onnx", "report.json"]


def test_another_networks_file_is_noticed(quick, folder, tmp_path):
    config = parse_config(merge_values(small_values(folder), {"data": {"mean": [120.0, 116, 103]}}))
    other = write_checkpoint(tmp_path / "other.pt", config)
    with pytest.raises(ExportFailed, match="differs from PyTorch"):
        gfl.export(other, tmp_path / "net.onnx", "raw")
    assert [path.name for path in tmp_path.iterdir()] == ["other.pt"]


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named(package, plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    assert main([str(plain), "--out", str(tmp_path / "net.onnx")]) == 2
    message = capsys.readouterr().err
    assert package in message and "pip install 'gfl-detection[onnx]'" in message
    assert len(message.splitlines()) == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("out", "options", "says"),
    [
        ("net.engine", {}, "ending in .onnx or .pt2"),
        ("net.onnx", {"form": "boxes"}, "unknown form 'boxes'"),
        ("net.onnx", {"opset": 11}, "18 or more"),
        ("net.pt2", {"opset": 20}, "an .onnx file"),
        ("nowhere/net.onnx", {}, "folder does not exist"),
        ("net.onnx", {"image": "nowhere.jpg"}, "nowhere.jpg"),
    ],
)
def test_what_can_not_be_exported_is_said_before_the_work(out, options, says, plain, tmp_path):
    with pytest.raises(gfl.UserError) as refusal:
        gfl.export(plain, tmp_path / out, **options)
    assert says in str(refusal.value)


def test_what_onnx_has_no_deformable_convolutions_for(folder, tmp_path):
    config = parse_config(merge_values(tiny_values(folder), DCN))
    checkpoint = write_checkpoint(tmp_path / "deformable.pt", config)
    with pytest.raises(gfl.UserError, match="19 or more"):
        gfl.export(checkpoint, tmp_path / "net.onnx", opset=18)


def test_what_is_no_exported_file_is_named(tmp_path, onnx_files):
    with pytest.raises(gfl.UserError, match="does not exist"):
        gfl.load(tmp_path / "net.onnx")
    (tmp_path / "net.onnx").write_bytes(b"no network")
    with pytest.raises(gfl.UserError, match="onnxruntime can not run"):
        gfl.load(tmp_path / "net.onnx")
    foreign = onnx.load(onnx_files("plain", "raw"))
    del foreign.metadata_props[:]
    onnx.save(foreign, tmp_path / "net.onnx")
    with pytest.raises(gfl.UserError, match="not exported by gfl"):
        gfl.load(tmp_path / "net.onnx")
    for options in ({"half": True}, {"compile": True}, {"device": "cuda:1"}):
        with pytest.raises(gfl.UserError):
            gfl.load(onnx_files("plain", "raw"), **options)


# Real sizes


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "deformable"])
def test_real_sizes(name, form, tmp_path):
    """`GFL_PICTURES=FOLDER`: compare on the pictures there, not on drawn ones."""
    folder = os.environ.get("GFL_PICTURES")
    images = sorted(Path(folder).iterdir())[:4] if folder else [drawn_picture(), drawn_picture(720)]
    values = load_config("gfl_r50_fpn_1x").to_dict()
    values["model"]["backbone"]["name"] = "resnet50" if name == "resnet50" else "resnet18"
    if name == "deformable":
        values = merge_values(values, DCN)
    config = parse_config(values)
    # Each logit is a sum over 9 x 256 inputs of size 1: deviations of 2 and 4.
    checkpoint = write_checkpoint(tmp_path / "net.pt", config, cls_std=2 / 48, box_std=4 / 48)
    image = str(images[0]) if folder else None
    report = gfl.export(checkpoint, tmp_path / "net.onnx", form, image=image)
    print(name, form, report["runs"], report["largest_difference"], report["detections"])
    assert report["detections"]["same"] > 5
    original, exported = gfl.load(checkpoint, device="cpu"), gfl.load(tmp_path / "net.onnx")
    tolerance = replace(Tolerance(), box=0.1)  # in pixels of the picture, twice the network's
    found = agree(
        exported.predict(images), original.predict(images), build_postprocess(config), tolerance
    )
    print(name, form, "on", len(images), "pictures:", found)
