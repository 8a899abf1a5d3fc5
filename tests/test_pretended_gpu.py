"""What holds of a GPU, shown without one.

torch's `FakeTensorMode` computes shapes, types and devices of tensors that hold no values. Tensors
of two devices in one operation are an error, and so is all that must look at a value on the host
(`item`, `if tensor`, `nonzero`, boolean indices), for which the host would wait for a GPU. Copies
to the device that block are not noticed.

A pretended "cuda" has forward, autocast and losses. Autograd wants a real GPU for its backward, so
whole steps run on a pretended "lazy", a device of torch's that has no kernels either.
"""

import contextlib
import sys
from dataclasses import replace

import pytest
import torch
from builders import (
    MODES,
    name_of,
    noise_batch,
    tiny_config,
    tiny_values,
    without_auto,
    write_coco,
)
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from gfl.build import build_criterion, build_dataset, build_model, build_train_loader
from gfl.config import CONFIG_FOLDER, load_config, merge_values, parse_config
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import TrainState
from gfl.engine.ema import EMA
from gfl.engine.optim import Schedule, make_optimizer
from gfl.engine.options import LoopOptions
from gfl.engine.train import train_step
from gfl.models.recompute import recompute_activations
from gfl.tensors import OnDevice

# One for all tests: tensors of two modes do not mix, and grids are cached by device.
PRETENDED = FakeTensorMode()
NUM_CLASSES = 3


def pretended(value: OnDevice) -> OnDevice:
    """The same without values."""

    def without_values(part):
        return pretended(part) if isinstance(part, OnDevice) else PRETENDED.from_tensor(part)

    return value._map(without_values)


def model_on(device: str, config) -> nn.Module:
    """A network whose weights lie on the device. (`Module.to` does not take pretended ones.)"""
    model = build_model(config, NUM_CLASSES, load_pretrained=False).train()
    for module in model.modules():
        for name, value in module.named_parameters(recurse=False):
            there = torch.empty(value.shape, dtype=value.dtype, device=device)
            setattr(module, name, nn.Parameter(there, requires_grad=value.requires_grad))
        for name, value in module.named_buffers(recurse=False):
            there = torch.empty(value.shape, dtype=value.dtype, device=device)
            setattr(module, name, there)
    return model


@pytest.fixture
def cuda(monkeypatch):
    """Inside, tensors are pretended, and autocast finds a GPU."""
    with PRETENDED:
        # Else the mode would ask the driver for the GPU: when it begins, or with each tensor.
        monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda *_: None)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        yield "cuda"


def losses_on(device: str, config) -> dict:
    """Forward in half precision and criterion of one batch, as `train_step` has them."""
    model, criterion = model_on(device, config), build_criterion(config)
    there = pretended(noise_batch()).to(device, non_blocking=True)
    normalize = Normalize((120.0,) * 3, (60.0,) * 3, device)
    images = normalize(there.images, there.input_sizes)
    images = images.contiguous(memory_format=torch.channels_last)
    with torch.autocast(device, torch.bfloat16):
        predictions = model(images)
    return criterion(predictions, there.targets)


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_forward_and_losses_stay_on_the_gpu_and_never_wait(cuda, mode):
    config = parse_config(merge_values(tiny_values("unused"), mode))
    losses = losses_on(cuda, config)
    assert {"loss_cls", "loss_box"} <= set(losses)
    for loss in losses.values():
        assert (loss.device.type, loss.dtype, loss.shape) == (cuda, torch.float32, ())


def shipped_networks() -> list[str]:
    """Names of configs, one for each network."""
    names = {}
    for path in sorted(CONFIG_FOLDER.glob("*.yaml")):
        config = without_auto(load_config(path))
        names.setdefault(repr((config.model, config.assigner, config.loss)), path.stem)
    return list(names.values())


@pytest.mark.parametrize("name", shipped_networks())
def test_every_shipped_network_stays_on_the_gpu_in_half_precision(cuda, name):
    config = without_auto(load_config(name))
    losses = losses_on(cuda, config)
    assert all(loss.dtype == torch.float32 and loss.is_cuda for loss in losses.values())


def test_autocast_computes_convolutions_in_half_precision(cuda):
    """Else the tests above would say nothing of it."""
    model = model_on(cuda, tiny_config("unused"))
    types = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda _, __, output: types.append(output.dtype))
    with torch.autocast(cuda, torch.bfloat16):
        predictions = model(torch.zeros(2, 3, 64, 96, device=cuda))
    assert types and set(types) == {torch.bfloat16}
    assert predictions.cls_logits.dtype == predictions.box_logits.dtype == torch.float32


def test_pictures_are_resized_on_the_gpu_without_waiting(tmp_path, cuda):
    values = tiny_values(tmp_path)
    values["data"] |= {"train_size": {"short": [64, 96], "long": 128}, "resize_on_device": True}
    with fake_tensor.unset_fake_temporarily():
        write_coco(tmp_path, {"train": 6, "val": 1})
        config = parse_config(values)
        loader = build_train_loader(config, build_dataset(config, "train"))
        loaded = [loader.load(keys) for keys in loader.batch_sampler]
    for native in loaded:
        there = pretended(native).to(cuda, non_blocking=True)
        assert there.images.is_cuda and there.targets.boxes.is_cuda
        assert (there.images.dtype, there.images.shape[2:]) == (torch.uint8, native.padded_size)


@pytest.fixture
def updates(monkeypatch):
    """Calls of the optimisers' kernels, torch's own, which say nothing without values."""
    calls = []
    for name in ("_fused_sgd_", "_fused_adamw_"):
        monkeypatch.setattr(torch, name, lambda *args, **more: calls.append((*args[:2], more)))
    return calls


@pytest.fixture
def lazy(monkeypatch, updates):
    """Inside, tensors are pretended; the device has what a step needs and no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *_: False)
    monkeypatch.setattr(torch, "lazy", torch.cpu, raising=False)  # torch.utils.checkpoint asks
    for what in ("foreach", "fused"):
        name = f"_get_{what}_kernels_supported_devices"
        for module in ("torch.utils._foreach_utils", "torch.optim.optimizer"):
            monkeypatch.setattr(sys.modules[module], name, lambda: ["cuda", "lazy"])
    with PRETENDED:
        yield "lazy:0"


def step_on(
    device: str, config, criterion=None, pad_to=(), recompute=False, parts=1, taught=False
) -> tuple:
    """One optimiser step."""
    model = model_on(device, config)
    if recompute:
        recompute_activations(model.backbone)
    state = TrainState(
        model,
        make_optimizer(model),
        Schedule(0.001, 10, warmup_steps=0),
        torch.amp.GradScaler("cuda", enabled=False),
    )
    options = LoopOptions(
        epochs=1, steps_per_epoch=10, precision="fp32", channels_last=True, grad_clip=10.0
    )
    normalize = Normalize((120.0,) * 3, (60.0,) * 3, device)
    criterion = build_criterion(config) if criterion is None else criterion
    teacher = torch.no_grad()(model_on(device, config).eval()) if taught else None
    batches, options = [pretended(noise_batch())] * parts, replace(options, pad_to=pad_to)
    losses, norm = train_step(state, model, batches, criterion, normalize, options, teacher)
    return state, losses, norm


def devices(updates: list, state, losses, norm) -> set[str]:
    """Of all that a step computes: losses, norm, gradients, and whether those are finite.

    Everything that learns has to have a gradient, and to have been given to the optimiser.
    """
    trained = [p for p in state.model.parameters() if p.requires_grad]
    values = [*losses.values(), norm, *(p.grad for p in trained)]
    values += [more["found_inf"] for *_, more in updates]
    assert sum(len(gradients) for _, gradients, _ in updates) == len(trained) > 0
    return {str(value.device) for value in values}


@pytest.mark.parametrize("mode", MODES, ids=name_of)
def test_a_whole_step_never_waits(lazy, updates, mode):
    config = parse_config(merge_values(tiny_values("unused"), mode))
    assert devices(updates, *step_on(lazy, config)) == {lazy}


@pytest.mark.parametrize(
    "how",
    [
        {"parts": 2},
        {"pad_to": ((800, 1344),)},
        {"pad_to": ((1344, 1344), (832, 1344))},
        {"recompute": True},
        {"taught": True},
    ],
    ids=str,
)
def test_a_whole_step_never_waits_however_it_is_computed(lazy, updates, how):
    values = tiny_values("unused")
    if "taught" in how:
        values["distill"] = {"teacher": "unused.pt"}
    assert devices(updates, *step_on(lazy, parse_config(values), **how)) == {lazy}


@pytest.mark.parametrize("name", ["gfl_n", "gfl_r50_fpn_1x", "gflv2_r101_dconv_c3-c5_fpn_ms_2x"])
def test_a_whole_step_of_a_shipped_network_never_waits(lazy, updates, name):
    assert devices(updates, *step_on(lazy, without_auto(load_config(name)))) == {lazy}


def test_averages_never_wait(lazy):
    state, *_ = step_on(lazy, tiny_config("unused"))
    averages = EMA(nn.Identity(), 0.99, 10)
    averages.model = model_on(lazy, tiny_config("unused"))  # a copy would have a mode of its own
    averages.update(state.model, 1)
    assert all(str(value.device) == lazy for value in averages.model.state_dict().values())


def test_what_waits_is_noticed(lazy):
    """A value on the host, a size that depends on values, two devices."""
    config = tiny_config("unused")
    ours = build_criterion(config)

    def looks(predictions, targets):
        losses = ours(predictions, targets)
        return losses if losses["loss_cls"].item() > 0 else {}

    def counts(predictions, targets):
        chosen = predictions.cls_logits[predictions.cls_logits > 0]
        return {"loss": chosen.sum()}

    def mixes(predictions, targets):
        return {"loss": (predictions.cls_logits * torch.ones(NUM_CLASSES)).sum()}

    for criterion, error in (
        (looks, DataDependentOutputException),
        (counts, DynamicOutputShapeException),
        (mixes, RuntimeError),
    ):
        with pytest.raises(error):
            step_on(lazy, config, criterion)
