"""What only a CUDA device can show. Run with -m gpu."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from builders import MODES, name_of, noise_batch, tiny_config, tiny_values, write_coco
from conftest import REPOSITORY

import gfl
from gfl.build import build_criterion, build_dataset, build_model, build_train_loader
from gfl.config import merge_values, parse_config
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import TrainState, save_checkpoint
from gfl.engine.compiled import Programs
from gfl.engine.optim import Schedule, make_optimizer
from gfl.engine.options import LoopOptions
from gfl.engine.train import train_step
from gfl.models.recompute import recompute_activations
from gfl.structures import Batch

pytestmark = pytest.mark.gpu


def cuda_batch(num_images: int = 4, size=(800, 1344)) -> Batch:
    """Random pictures with 0 to 9 objects each, already on the device."""
    return noise_batch(num_images, size).to("cuda")


def training(precision: str, mode: dict | None = None):
    """A model of three classes and what a step needs, on the device."""
    values = merge_values(tiny_values("unused"), mode or {})
    config = parse_config({**values, "device": "cuda"})
    model = build_model(config, 3).cuda().train()
    state = TrainState(
        model,
        make_optimizer(model),
        Schedule(0.001, 10, warmup_steps=0),
        torch.amp.GradScaler("cuda", enabled=precision == "fp16"),
    )
    options = LoopOptions(
        epochs=1, steps_per_epoch=10, precision=precision, channels_last=True, grad_clip=10.0
    )
    normalize = Normalize((120.0,) * 3, (60.0,) * 3, "cuda")
    return state, build_criterion(config), normalize, options


@pytest.mark.parametrize(
    ("precision", "mode"),
    [("bf16", {}), ("fp16", {}), *(("fp32", mode) for mode in MODES)],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_a_step_never_waits_for_the_device(precision, mode):
    state, criterion, normalize, options = training(precision, mode)
    batch = cuda_batch()
    for _ in range(2):  # the first steps make the grid and choose algorithms
        train_step(state, state.model, [batch], criterion, normalize, options)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses, norm = train_step(state, state.model, [batch], criterion, normalize, options)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(loss) for loss in losses.values()) and torch.isfinite(norm)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("how", ["compiled", "padded", "recomputed", "compiled and recomputed"])
def test_a_step_never_waits_however_it_is_computed(precision, how):
    state, criterion, normalize, options = training(precision)
    if "recomputed" in how:
        recompute_activations(state.model.backbone)
    if how != "recomputed":
        options = replace(options, pad_to=((800, 1344),))
    programs = Programs(state.model, criterion, torch.device("cuda"), "compiled" in how)
    programs.network.train()
    batch = cuda_batch(size=(768, 1344) if how == "padded" else (800, 1344))
    step = (state, programs.network, [batch], programs.criterion, normalize, options)
    for _ in range(3):
        train_step(*step)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        losses, norm = train_step(*step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(loss) for loss in losses.values()) and torch.isfinite(norm)


def test_a_compiled_detector_finds_the_same_on_a_gpu(tmp_path):
    """Graphs of two sizes in turn, outputs of the first kept while the second is computed."""
    folder = write_coco(tmp_path / "set", {"train": 8, "val": 6})
    config = tiny_config(folder, epochs=1).model_copy(update={"device": "cuda"})
    gfl.train(config, work_dir=tmp_path / "run")
    files = sorted((folder / "images").iterdir())
    plain, fast = (
        gfl.load(tmp_path / "run" / "last.pt", device="cuda", compile=how)
        for how in (False, "fixed")
    )
    for _ in range(3):
        pairs = zip(plain.predict(files, 3), fast.predict(files, 3), strict=True)
        for one, other in pairs:
            assert len(one) == len(other)
            torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-3)
            torch.testing.assert_close(one.boxes, other.boxes, rtol=0, atol=0.1)


def test_pictures_are_resized_to_the_pixels_of_the_cpu(tmp_path):
    values = tiny_values(write_coco(tmp_path, {"train": 6, "val": 1}))
    values["data"] |= {"train_size": {"short": [64, 96], "long": 128}, "resize_on_device": True}
    config = parse_config(values)
    loader = build_train_loader(config, build_dataset(config, "train"))
    for keys in loader.batch_sampler:
        batch = loader.load(keys)
        here, there = batch.to("cpu"), batch.pin_memory().to("cuda", non_blocking=True)
        assert there.images.is_cuda and there.images.cpu().equal(here.images)


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_losses_on_the_device_are_those_of_the_cpu(mode):
    state, criterion, normalize, _ = training("fp32", mode)
    batch = cuda_batch()
    state.model.eval()
    with torch.no_grad():
        predictions = state.model(normalize(batch.images, batch.input_sizes))
        there = criterion(predictions, batch.targets)
        here = criterion(predictions.to("cpu"), batch.targets.to("cpu"))
    for name, value in here.items():
        assert there[name].item() == pytest.approx(value.item(), rel=1e-5), name


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_runs_and_resumes_on_a_gpu(tmp_path, precision):
    folder = write_coco(tmp_path / "set", {"train": 8, "val": 4})
    options = {"precision": precision, "ema_decay": 0.9, "grad_clip": 10.0, "channels_last": True}
    for epochs in (1, 2):
        config = tiny_config(folder, epochs=epochs, **options)
        config = config.model_copy(update={"device": "cuda"})
        outcome = gfl.train(config, work_dir=tmp_path / "run", resume=True)
    assert outcome["best"]["AP"] >= outcome["last"]["AP"] >= 0
    assert "resumed at step 2 of 4" in (tmp_path / "run" / "log.txt").read_text()


SYNC_BN = """
import sys, torch
from torch import nn
from gfl.distributed import process_group, rank, world_size
with process_group() as device:
    torch.manual_seed(0)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(nn.BatchNorm2d(4)).to(device)
    whole = torch.randn(4, 4, 6, 6)
    share = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    out = model(whole[share].to(device)).cpu()
    reference = nn.BatchNorm2d(4)(whole)[share]
    assert torch.allclose(out, reference, rtol=1e-5, atol=1e-6)
"""


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_sync_bn_over_two_gpus_is_batch_norm_over_the_whole_batch(tmp_path):
    script = tmp_path / "sync.py"
    script.write_text(SYNC_BN)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_a_checkpoint_of_the_gpu_is_read_without_one_and_draws_on(tmp_path):
    state, *_ = training("fp32")
    save_checkpoint(tmp_path / "last.pt", state.state_dict())
    drawn = torch.rand(4, device="cuda")
    content = torch.load(tmp_path / "last.pt", weights_only=True)
    assert all(not value.is_cuda for value in content["model"].values())
    state.load_state_dict(content)
    assert next(state.model.parameters()).is_cuda
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
