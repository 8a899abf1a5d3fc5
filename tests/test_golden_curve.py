"""Twenty training steps give the same losses whichever way they are computed."""

import json

import numpy as np
import pytest
import torch
import torchvision
from builders import tiny_config, write_coco

import gfl
import gfl.engine.compiled
import gfl.models.backbone
import gfl.models.conv_blocks
from gfl.config import parse_config

STEPS = 20
# Relative difference of each step's loss. fp32 adds in another order, bf16 rounds each factor to 8
# bits; the others are the same bits. The rate is small: at ten times the rate differences grow
# from step to step, as places cross thresholds of the assigner.
FP32, BF16, SAME = 1e-5, 0.02, 0


def losses(folder, name: str, **changes) -> np.ndarray:
    """Total loss of each step of a training with frozen statistics."""
    config = tiny_config(folder, epochs=2, lr=0.0002, eval_epochs=2, checkpoint_steps=STEPS)
    values = config.to_dict()
    values["data"]["train_size"] = {"short": 64, "long": 96}
    values["model"]["backbone"].update(name="resnet18", pretrained=str(folder / "backbone.pth"))
    for section, keys in changes.items():
        values[section].update(keys)
    gfl.train(parse_config(values), work_dir=folder / name)
    lines = (folder / name / "metrics.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    return np.array([line["loss"] for line in found if "loss" in line])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    write_coco(folder, {"train": 40, "val": 2})
    torch.manual_seed(0)
    backbone = torchvision.models.resnet18()
    backbone(torch.randn(8, 3, 64, 64))  # moves the statistics from 0 and 1
    torch.save(backbone.state_dict(), folder / "backbone.pth")
    return folder


@pytest.fixture(scope="module")
def golden(folder):
    """Convolution and norm one after the other, towers keep all, fp32, nothing switched on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gfl.models.backbone, "fold_frozen_norms", lambda network: None)
        patch.setattr(gfl.models.conv_blocks, "checkpoint", lambda work, x, **_: work(x))
        curve = losses(folder, "golden")
    assert len(curve) == STEPS and len(set(curve)) == STEPS
    return curve


@pytest.fixture(scope="module")
def default(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gfl.models.conv_blocks, "FEWEST_RECOMPUTED", 0)
        return losses(folder, "default")


def test_the_curve_stays_with_norms_in_convolutions_and_towers_that_recompute(default, golden):
    assert (np.abs(default - golden) <= FP32 * golden).all()


@pytest.mark.parametrize(
    "name, changes, tolerance",
    [
        ("channels last", {"train": {"channels_last": True}}, FP32),
        ("recomputed", {"train": {"checkpoint_activations": True, "ema_decay": 0.9}}, SAME),
        pytest.param("bf16", {"train": {"precision": "bf16"}}, BF16, marks=pytest.mark.slow),
        ("on the device", {"data": {"resize_on_device": True, "cache": "ram"}}, SAME),
    ],
)
def test_the_curve_stays(folder, default, name, changes, tolerance):
    curve = losses(folder, name, **changes)
    assert (np.abs(curve - default) <= tolerance * default).all()


@pytest.mark.slow
def test_the_curve_stays_with_compiled_programs(folder, default, monkeypatch):
    monkeypatch.setattr(gfl.engine.compiled, "BACKEND", "aot_eager")
    curve = losses(folder, "compiled", train={"compile": True})
    assert (np.abs(curve - default) <= FP32 * default).all()
