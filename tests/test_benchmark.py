"""The benchmark: statistics and wording by hand, every figure at a tiny size."""

import dataclasses
import json
import math
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
from builders import pyramid
from torch import nn

from gfl.benchmark import light, memory_program, options, scaling
from gfl.benchmark.coco_sample import coco_detections, coco_truth
from gfl.benchmark.coco_speed import agreement, coco_speed
from gfl.benchmark.inference import CANDIDATES, _some_candidates, inference
from gfl.benchmark.memory import memory
from gfl.benchmark.onnx_latency import onnx_work
from gfl.benchmark.peer import Peer, PeerMissing
from gfl.benchmark.pipeline import data_pipeline
from gfl.benchmark.record import Record, Spread, not_measured, record
from gfl.benchmark.run import FIGURES, ON_REQUEST, benchmark
from gfl.benchmark.setting import DEFAULTS, Setting, detector_config, setting
from gfl.benchmark.start import start
from gfl.benchmark.subjects import (
    Training,
    half,
    our_detector,
    random_batch,
    rival,
    rival_step,
    rivals,
)
from gfl.benchmark.table import number, table
from gfl.benchmark.timing import interleaved
from gfl.benchmark.training_step import training_step
from gfl.cli.benchmark import USUAL, main
from gfl.errors import UserError

TINY = Setting(
    size=(64, 64),
    batch=1,
    backbone="resnet18",
    repeats=1,
    warmup=0,
    batches=(1, 2),
    short_sides=((64, 96),),
    num_pictures=3,
    eval_images=8,
    eval_repeats=1,
    processes=1,
)
SCHEMA = {
    "figure": str,
    "name": str,
    "unit": str,
    "median": float,
    "low": float,
    "high": float,
    "limit": float,
    "limit_name": str,
    "ratio": float,
    "repeats": int,
    "goal": float,
    "at_most": bool,
    "note": str,
    "verdict": str,
}
MAY_BE_NONE = {"median", "low", "high", "limit", "ratio", "goal"}


def assert_well_formed(rows: list[Record]) -> None:
    """Types, and numbers that fit each other."""
    assert rows
    for row in rows:
        plain = json.loads(json.dumps(row.to_dict()))
        assert list(plain) == list(SCHEMA)
        for key, value in plain.items():
            allowed = (SCHEMA[key], type(None)) if key in MAY_BE_NONE else SCHEMA[key]
            assert isinstance(value, allowed), (key, value)
        assert row.figure in FIGURES
        assert 0 < row.low <= row.median <= row.high < math.inf and row.repeats >= 1
        if row.limit is not None:
            assert row.ratio == pytest.approx(row.median / row.limit)
            assert row.limit_name


# Statistics


def test_spread_by_hand():
    # 0, 10, ..., 100: the tenth and ninetieth percentile lie on the second and the tenth value.
    assert Spread.of(range(0, 101, 10)) == Spread(50.0, 10.0, 90.0, 11)
    # Of 1 and 2 they lie a tenth of the way inside.
    assert Spread.of([2, 1]) == Spread(1.5, pytest.approx(1.1), pytest.approx(1.9), 2)
    assert Spread.of([7]) == Spread(7.0, 7.0, 7.0, 1)


def test_units_by_hand():
    spread = Spread(0.5, 0.25, 1.0, 9)
    assert spread.times(1000) == Spread(500, 250, 1000, 9)
    # 4 images in 0.5 s are 8 a second; the slowest repeat is the lowest rate.
    assert spread.per(4) == Spread(8, 4, 16, 9)


def test_works_run_in_turn_and_warm_up_first():
    order, now = [], [0.0]
    lasts = {"a": [100, 1, 2, 9], "b": [100, 5, 5, 5]}

    def work(name):
        order.append(name)
        now[0] += lasts[name][order.count(name) - 1]

    works = {"a": lambda: work("a"), "b": lambda: work("b"), "timed itself": lambda: 0.25}
    found = interleaved(works, repeats=3, warmup=1, clock=lambda: now[0])
    rounds = list(zip(order[::2], order[1::2], strict=True))
    assert len(rounds) == 4 and set(rounds) == {("a", "b"), ("b", "a")}
    assert found["a"].median == 2 and found["a"].high == pytest.approx(2 + 0.8 * 7)
    assert found["b"] == Spread(5, 5, 5, 3)
    assert found["timed itself"] == Spread(0.25, 0.25, 0.25, 3)


# Wording


@pytest.mark.parametrize(
    ("value", "goal", "at_most", "verdict"),
    [
        (1.0, None, True, ""),
        (1.0, 0.5, True, "goal reached"),
        (1.01, 0.5, True, "above the goal"),
        (1.6, 0.8, False, "goal reached"),
        (1.5, 0.8, False, "below the goal"),
    ],
)
def test_goal_is_of_the_ratio_and_a_miss_is_said(value, goal, at_most, verdict):
    row = record("eval", "x", "s", Spread(value, value, value, 3), 2.0, "y", goal, at_most)
    assert row.ratio == value / 2 and row.verdict == verdict


def test_goal_without_a_limit_is_of_the_value():
    row = record("start", "x", "s", Spread(3.5, 3, 4, 3), goal=3.0)
    assert row.ratio is None and row.verdict == "above the goal"


def test_table_says_everything():
    rows = [
        record("eval", "x", "s", Spread(1.5, 1, 2, 3), Spread(2, 2, 2, 3), "y", 0.2, note="why"),
        record("start", "z", "s", Spread(2.0, 1, 3, 5), goal=3.0),
        not_measured("memory", "w", "no means"),
    ]
    report = {"environment": {"date": "today"}, "records": [row.to_dict() for row in rows]}
    lines = table(report).splitlines()
    assert lines[0].split() == ["date", "today"]
    first, second, third = lines[-3:]
    for text in (
        "x (why)",
        "1.5 s",
        "1 to 2, 3 x",
        "y: 2 s",
        "0.75",
        "above the goal (at most 0.2)",
    ):
        assert text in first
    assert second.endswith("goal reached (at most 3 s)")
    assert third.split()[:2] == ["memory", "w"] and third.endswith("not measured here")
    assert (number(0.0123456), number(12345.6)) == ("0.01235", "12346")


# Settings


def test_defaults_of_the_devices(monkeypatch):
    assert setting("cpu") == Setting(**DEFAULTS["cpu"], batches=(1, 4))
    assert setting("cpu", batch=4, size=None).size == (320, 320)
    assert setting("cpu").is_stated and not setting("cpu", batch=4).is_stated
    assert not setting("cpu", precision="bf16").is_stated
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    full = setting()
    assert (full.device, full.size, full.batch, full.precision) == ("cuda", (800, 1344), 16, "bf16")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (320, 300)}, "multiples of 32"),
        ({"batch": 0}, "--batch is 0"),
        ({"eval_images": 0}, "--eval-images is 0"),
        ({"pictures": "nowhere"}, "expected a folder"),
        ({"device": "tpu"}, "expected cpu or cuda"),
    ],
)
def test_settings_that_can_not_be(given, message):
    with pytest.raises(UserError, match=message):
        setting(**{"device": "cpu", **given})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_said(capsys):
    assert main(["--device", "cuda"]) == 2
    assert "no CUDA device" in capsys.readouterr().err


def test_unknown_figure_is_said(capsys):
    assert main(["--device", "cpu", "--only", "trian"]) == 2
    assert "'train'" in capsys.readouterr().err


# What is compared is the same


def test_rivals_see_the_same_pictures_and_train_the_same_stages(monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "interpolate")  # nothing is resized
    batch = random_batch(TINY)
    ours = Training(TINY).state.model
    frozen = {name for name, p in ours.backbone.named_parameters() if not p.requires_grad}
    assert any(name.startswith("layer1.") for name in frozen)
    assert not any(name.startswith("layer2.") for name in frozen)
    for model in rivals(TINY, TINY.layout).values():
        body = model.backbone.body
        assert not any(p.requires_grad for p in body.layer1.parameters())
        assert all(p.requires_grad for p in body.layer2.parameters())
        images, _ = model.transform([batch.images[0].float() / 255])
        assert images.tensors.shape == (1, 3, 64, 64)
        mine = Training(TINY).images
        assert torch.allclose(images.tensors, mine, atol=0.02)
        images, _ = model.eval().transform([batch.images[0].float() / 255])
        assert images.image_sizes == [(64, 64)] and images.tensors.shape == (1, 3, 64, 64)


def test_a_rival_with_trained_norms_trains_as_many_weights_as_ours_and_no_statistics():
    ours = Training(TINY).state.model.backbone
    model = rival("torchvision FCOS", TINY, TINY.layout, nn.BatchNorm2d)
    body = model.backbone.body
    mine, theirs = (sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, body))
    assert mine == theirs
    step = rival_step(model, TINY, random_batch(TINY))
    mean, weight = body.layer2[0].bn1.running_mean.clone(), body.layer2[0].bn1.weight
    step()
    assert torch.equal(body.layer2[0].bn1.running_mean, mean)
    assert weight.grad.abs().sum() > 0


def test_boxes_lie_in_the_pictures():
    boxes = random_batch(TINY, 5).targets.boxes
    assert boxes.min() >= 0 and boxes.max() <= 64
    assert (boxes[..., 2:] > boxes[..., :2]).all()


def test_candidates_are_as_many_as_stated():
    config = detector_config(TINY)
    predictions = _some_candidates(pyramid(64, 64), config, 3)
    above = predictions.joint_scores() > config.postprocess.score_threshold
    assert above.sum((1, 2)).tolist() == [CANDIDATES] * 3


def test_drawn_detections_are_those_of_a_detector():
    truth = coco_truth(12)
    results = coco_detections(truth, per_image=20)
    assert len(results) == 12 * 20 and coco_detections(truth, per_image=20) == results
    for start_row in range(0, len(results), 20):
        image = results[start_row : start_row + 20]
        scores = [entry["score"] for entry in image]
        assert len({entry["image_id"] for entry in image}) == 1
        assert scores == sorted(scores, reverse=True)


def test_numbers_that_differ_are_not_hidden():
    assert "equal" in agreement([0.5, 0.25], [0.5, 0.25])
    assert agreement([0.5, 0.25], [0.5, 0.5]) == "NUMBERS DIFFER from pycocotools' by up to 0.25"


# The figures


def test_training_step_beside_limit_and_rivals():
    rows = training_step(TINY)
    assert_well_formed(rows)
    assert [row.name.split(",")[0] for row in rows] == [
        "gfl step",
        "torchvision FCOS step",
        "torchvision RetinaNet step",
        "torchvision FCOS",
        "assigner",
    ]
    assert rows[-1].repeats == 50
    assert rows[-1].goal is None and "default size" in rows[-1].note


def test_inference_beside_rivals_and_post_processing_beside_the_forward():
    rows = inference(TINY)
    assert_well_formed(rows)
    assert [row.goal for row in rows[-4:]] == [0.02, 0.10] * 2
    assert len(rows) == 2 * 3 + 3 + 3 + 2 * 2
    ours, others = (
        [row for row in rows if row.name.startswith(name)] for name in ("gfl", "torchvi")
    )
    latencies = {1: ours[0].median, 2: ours[1].median}
    best = ours[2]
    fastest = min(latencies, key=lambda n: latencies[n] / n)
    assert best.name == f"gfl throughput at its best batch, {fastest}"
    assert best.median == pytest.approx(max(1000 * n / ms for n, ms in latencies.items()))
    assert {row.limit for row in others if "throughput" in row.name} == {best.median}


def test_backbones_that_torchvision_lacks_leave_rows_that_say_so():
    rows = training_step(Setting(**{**vars(TINY), "backbone": "torchvision/mobilenet_v3_small"}))
    assert [row.verdict for row in rows[1:3]] == ["not measured here"] * 2
    assert_well_formed([rows[0], rows[3]])


def test_pipeline_of_drawn_pictures_leaves_threads_alone():
    before = torch.get_num_threads(), cv2.getNumThreads()
    rows = data_pipeline(TINY)
    assert_well_formed(rows)
    assert (torch.get_num_threads(), cv2.getNumThreads()) == before
    assert "3 JPEGs of 480 x 640" in rows[0].note and rows[0].at_most is False


def test_pipeline_of_given_pictures(tmp_path):
    with pytest.raises(UserError, match="holds no .jpg"):
        data_pipeline(Setting(**{**vars(TINY), "pictures": str(tmp_path)}))
    for name in ("a.jpg", "b.JPEG", "c.txt"):
        cv2.imwrite(str(tmp_path / "x.jpg"), np.full((40, 60, 3), 90, np.uint8))
        (tmp_path / "x.jpg").rename(tmp_path / name)
    before = sorted(tmp_path.iterdir())
    rows = data_pipeline(Setting(**{**vars(TINY), "pictures": str(tmp_path)}))
    assert "2 JPEGs of 40 x 60" in rows[0].note
    assert sorted(tmp_path.iterdir()) == before


def test_evaluation_beside_pycocotools():
    rows = coco_speed(TINY)
    assert_well_formed(rows)
    assert rows[0].note == "all 12 numbers equal pycocotools' in every digit"
    assert rows[0].goal == 0.2


@pytest.mark.slow
def test_start_of_processes():
    rows = start(TINY)
    assert_well_formed(rows)
    assert [row.unit for row in rows] == ["s"] * 3 and rows[2].goal == 3.0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads Linux' /proc")
def test_options_that_can_not_be_compiled_here_say_so(monkeypatch):
    def without(*args):
        raise UserError("no compiler")

    monkeypatch.setattr(options, "require_compiler", without)
    rows = options.step_and_forward_options(TINY)
    assert [row.name.split(", ")[-1] for row in rows[1:2]] == ["train.checkpoint_activations=true"]
    assert rows[1].limit == rows[0].median
    assert [row.note for row in rows[2:]] == ["no compiler"] * 3


@pytest.mark.slow
def test_options_beside_step_and_forward_without():
    rows = options.step_and_forward_options(TINY)
    assert_well_formed(rows)
    names = [row.name.split(", ")[-1] for row in rows if row.limit is not None]
    steps = ["train.compile=true", "train.checkpoint_activations=true"]
    assert names == [*steps, *["compile=True", 'compile="fixed"'] * 2]


def test_detectors_hold_the_weights_that_autocast_would_make_in_each_forward():
    given = dataclasses.replace(TINY, precision="bf16")
    detector, plain = our_detector(given), our_detector(TINY)
    assert detector.model.head.cls_out.weight.dtype == torch.bfloat16
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode(), half(given):
        wanted, found = plain.model(images), detector.model(images)
    assert torch.equal(found.cls_logits, wanted.cls_logits)
    assert torch.equal(found.box_logits, wanted.box_logits)


def test_a_process_that_ends_is_a_row_and_not_the_end(monkeypatch, capfd):
    monkeypatch.setattr(scaling, "environment_of_child", lambda: {"PATH": "/nowhere"})
    monkeypatch.setattr(scaling.sys, "executable", "/bin/false")
    (row,) = scaling.scaling(TINY)
    assert row.verdict == "not measured here" and "ended with status 1" in row.note


def test_memory_of_processes():
    rows = memory(TINY)
    assert_well_formed(rows)
    allocated, resident = rows
    assert "allocated" in allocated.note and "resident" in resident.note
    # ResNet-18 and its pyramid and towers are 19 million weights, with gradient and momentum.
    least = 3 * 19e6 * 4 / 2**20
    assert least < allocated.median < 1.5 * least and resident.median > least


def test_allocated_peak_counts_what_lives_at_the_same_time(monkeypatch):
    """Two steps of 3 MiB, of which the first MiB is gone before the last comes; 5 MiB stay."""

    def make(name: str, setting: Setting):
        stays = torch.empty(5, 2**20, dtype=torch.uint8)

        def step():
            gone = torch.empty(2**20, dtype=torch.uint8)
            kept = torch.empty(len(stays) - 4, 2**20, dtype=torch.uint8)
            del gone
            return kept, torch.empty(2**20, dtype=torch.uint8)

        return step

    monkeypatch.setattr(memory_program, "step_of", make)
    assert memory_program.allocated_peak("any", TINY) == 7 * 2**20


def test_memory_of_a_rival_that_there_is_not_is_a_row():
    rows = memory(dataclasses.replace(TINY, backbone="resnet18_w16"))
    assert [row.verdict for row in rows] == ["not measured here"] * 2
    assert all("torchvision has no resnet18_w16" in row.note for row in rows)


# The command


def test_command_writes_what_it_prints(tmp_path, capsys):
    out = tmp_path / "numbers.json"
    options = ["--device", "cpu", "--only", "eval", "--eval-images", "4", "--json", str(out)]
    assert main(options) == 0
    report = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert list(report) == ["environment", "setting", "records"]
    assert {"date", "processor", "threads", "torch", "torchvision", "gfl"} <= set(
        report["environment"]
    )
    assert report["setting"]["channels_last"] is False and report["setting"]["size"] == [320, 320]
    assert [row["figure"] for row in report["records"]] == ["eval"]
    assert printed.strip() == table(report)


# Another environment


FAKE = """
import torch
from torch import nn
class Head(nn.Module):
    def forward(self, features):
        return features
class GFL(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bbox_head = Head()
    def extract_feat(self, images):
        return self.conv(images)
    def loss(self, images, samples):
        assert len(samples) == len(images) and len(samples[0].gt_instances.bboxes) == 7
        found = self.conv(images).square().mean()
        return {"loss_cls": [found, found], "loss_bbox": found}
"""
STUBS = {
    "mmdet/__init__.py": "__version__ = '3.3.0'\nprint('a library prints')\n",
    "mmdet/registry.py": FAKE + "class MODELS:\n    build = staticmethod(lambda cfg: GFL())\n",
    "mmdet/structures.py": "class DetDataSample:\n    def __init__(self, metainfo): pass\n",
    "mmdet/utils.py": "def register_all_modules(init_default_scope): pass\n",
    "mmengine/__init__.py": "",
    "mmengine/structures.py": (
        "class InstanceData:\n    def __init__(self, **values): self.__dict__.update(values)\n"
    ),
}


def test_peer_is_timed_in_turn(tmp_path, monkeypatch):
    """The protocol, with a stand-in for mmdetection."""
    for name, text in STUBS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    peer = Peer(sys.executable, TINY)
    try:
        assert peer.versions["mmdet"] == "3.3.0"
        rows = training_step(TINY, peer)
        assert peer.seconds("infer") > 0
    finally:
        peer.close()
    assert_well_formed(rows)
    assert rows[4].name == "mmdetection GFL step"


def test_peer_without_mmdetection_is_a_line(monkeypatch):
    monkeypatch.setitem(FIGURES, "train", lambda setting, peer: [])
    report = benchmark(Setting(**{**vars(TINY), "peer": sys.executable}), ("train",))
    (row,) = report["records"]
    assert row["verdict"] == "not measured here" and "mmdet" in row["note"]


def test_peer_that_ends_in_the_middle_is_a_line_and_the_figure_is_measured_without(
    tmp_path, monkeypatch
):
    peer = tmp_path / "peer"
    peer.write_text("#!/bin/sh\necho 'gfl-peer {\"versions\": {}}'\nexit 3\n")
    peer.chmod(0o755)

    def figure(setting, peer=None):
        seconds = peer.seconds("train") if peer else 1.0
        return [record("train", "a step", "s", Spread.of([seconds]))]

    monkeypatch.setitem(FIGURES, "train", figure)
    report = benchmark(Setting(**{**vars(TINY), "peer": str(peer)}), ("train",))
    note, row = report["records"]
    assert "ended with status 3" in note["note"] and row["median"] == 1


def test_a_figure_without_memory_is_a_line(monkeypatch):
    def figure(setting):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setitem(FIGURES, "eval", figure)
    (row,) = benchmark(TINY, ("eval",))["records"]
    assert row["verdict"] == "not measured here" and "lower --batch" in row["note"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--only", "eval", "--peer", sys.executable], "--peer is for --only train or infer"),
        (["--only", "eval", "--onnx", "x.onnx"], "--onnx is for --only onnx"),
        (["--onnx", "x.onnx"], "--onnx is for --only onnx"),
        (["--only", "eval", "--no-channels-last"], "--channels-last is for --only train or memory"),
        (["--plan", "--no-channels-last"], "leave --channels-last out"),
        (["--plan", "gfl_n", "--batch", "3"], "--plan measures nothing: leave --batch out"),
    ],
)
def test_options_that_would_do_nothing_are_refused(options, message, capsys):
    assert main(options) == 2
    assert message in capsys.readouterr().err


def test_a_picture_that_can_not_be_read_is_named(tmp_path, capsys):
    (tmp_path / "a.jpg").write_bytes(b"")
    assert main(["--only", "data", "--pictures", str(tmp_path), "--repeats", "1"]) == 2
    assert "a.jpg" in capsys.readouterr().err


def test_peer_that_is_no_interpreter_is_said():
    with pytest.raises(UserError, match="can not be started"):
        Peer("/nowhere/python", TINY)


def test_peer_of_another_backbone_is_missing():
    other = Setting(**{**vars(TINY), "backbone": "timm/convnext_tiny"})
    with pytest.raises(PeerMissing, match="no mmdetection config"):
        Peer(sys.executable, other)


def relu_file(path, dims: list, extra: bool = False):
    """An ONNX file of one ReLU, with an input of sizes beside it as gfl's have."""
    make = onnx.helper.make_tensor_value_info
    inputs = [make("images", onnx.TensorProto.FLOAT, dims)]
    nodes = [onnx.helper.make_node("Relu", ["images"], ["out"])]
    outputs = [make("out", onnx.TensorProto.FLOAT, dims)]
    if extra:
        inputs.append(make("input_sizes", onnx.TensorProto.INT64, [1, 2]))
        nodes.append(onnx.helper.make_node("Identity", ["input_sizes"], ["sizes"]))
        outputs.append(make("sizes", onnx.TensorProto.INT64, [1, 2]))
    graph = onnx.helper.make_graph(nodes, "relu", inputs, outputs)
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    return path


def test_onnx_file_that_opens_and_does_not_run_is_said_to(tmp_path):
    value = onnx.helper.make_tensor_value_info
    images = value("images", onnx.TensorProto.FLOAT, [1, 3, "h", "w"])
    shape = onnx.helper.make_tensor("shape", onnx.TensorProto.INT64, [1], [7])
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Reshape", ["images", "shape"], ["out"])],
        "seven",
        [images],
        [value("out", onnx.TensorProto.FLOAT, [7])],
        [shape],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    path = tmp_path / "seven.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=9), str(path))
    with pytest.raises(UserError, match=r"onnxruntime can not run .*seven\.onnx"):
        onnx_work(path, setting("cpu", size=(64, 96)))


def test_onnx_files_stand_beside_the_first(tmp_path, capsys):
    ours = relu_file(tmp_path / "ours.onnx", ["b", 3, "h", "w"], extra=True)
    theirs = relu_file(tmp_path / "theirs.onnx", [1, 3, 64, 96])
    options = ["--only", "onnx", "--device", "cpu", "--repeats", "2", "--json"]
    options += [str(tmp_path / "out.json"), "--onnx", str(ours), str(theirs), "--size"]
    assert main([*options, "64", "96"]) == 0
    first, second = json.loads((tmp_path / "out.json").read_text())["records"]
    assert first["name"] == "ours.onnx, 64 x 96, batch 1" and first["limit"] is None
    assert second["name"] == "theirs.onnx" and second["limit_name"] == "ours.onnx"
    assert second["ratio"] == pytest.approx(second["median"] / first["median"])
    assert main([*options, "64", "64"]) == 2
    assert "expected pictures of (1, 3, 64, 64)" in capsys.readouterr().err
    (tmp_path / "theirs.onnx").write_bytes(b"no network")
    assert main([*options, "64", "96"]) == 2
    assert "onnxruntime can not run" in capsys.readouterr().err
    assert main(["--only", "onnx", "--device", "cpu"]) == 2
    assert "--onnx FILE.onnx" in capsys.readouterr().err


def test_light_networks_stand_beside_the_smallest(tmp_path, monkeypatch):
    monkeypatch.setattr(light, "CONFIGS", ("gfl_n", "gfl_s"))
    monkeypatch.setattr(light, "_write", lambda path, *_: relu_file(path, ["b", 3, "h", "w"]))
    rows = light.light_family(setting("cpu", size=(64, 96), repeats=2, warmup=1))
    assert [row.name for row in rows] == [
        f"{name}, 64 x 96, batch 1, {where}"
        for name, where in [
            ("gfl_n", "cpu"),
            ("gfl_s", "cpu"),
            ("gfl_n.onnx", "onnxruntime"),
            ("gfl_s.onnx", "onnxruntime"),
        ]
    ]
    assert [row.limit_name for row in rows] == ["", "gfl_n", "", "gfl_n.onnx"]
    assert [row.note for row in rows[:2]] == [
        "1.10 million parameters, 80 classes",
        "3.21 million parameters, 80 classes",
    ]
    assert all(row.low <= row.median <= row.high for row in rows)


def test_what_was_measured_before_an_error_is_told(monkeypatch):
    monkeypatch.setitem(FIGURES, "train", lambda *_: [not_measured("train", "a step", "no time")])
    heard = []
    with pytest.raises(UserError, match="--only onnx needs files"):
        benchmark(TINY, ("train", "onnx"), heard.append)
    assert "measured until then" in heard[-1] and "a step (no time)" in heard[-1]


def test_the_command_knows_what_is_measured_without_only():
    assert USUAL == tuple(name for name in FIGURES if name not in ON_REQUEST)
