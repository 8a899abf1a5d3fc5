"""torch.compile in training: few programs, the same losses, plain checkpoints."""

import copy

import pytest
import torch
from builders import make_targets, random_boxes, tiny_config, tiny_values, write_coco
from torch import nn
from torch.testing import assert_close

import gfl
from gfl import build
from gfl.config import merge_values, parse_config
from gfl.data.batch import Normalize
from gfl.engine import compiled
from gfl.engine.compiled import Programs, require_compiler
from gfl.engine.train import train_step
from gfl.errors import UserError
from gfl.models.recompute import recompute_activations
from gfl.structures import Batch, ImageMeta

CPU = torch.device("cpu")
SIZES = ((64, 96), (96, 64))


@pytest.fixture(autouse=True)
def forgotten():
    """Nothing compiled or counted before."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.fixture
def eager(monkeypatch):
    """Graphs are captured as for a compiler, then run as they are: takes no C++ compiler."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")


def batch_of(size: tuple[int, int], objects: int, seed: int) -> Batch:
    """Two pictures, one of them with one object."""
    rng = torch.Generator().manual_seed(seed)
    boxes = [random_boxes(n, *size, seed=seed + n) for n in (objects, 1)]
    targets = make_targets(boxes, [[i % 2 for i in range(len(b))] for b in boxes], size=size)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=rng)
    metas = tuple(ImageMeta(i, size, size, (1.0, 1.0)) for i in range(2))
    return Batch(images, torch.tensor([size] * 2), targets, metas)


# Padded to 64 x 96 pixels; to 8 objects, and the last to 32.
BATCHES = [batch_of((64, 96), 1, 0), batch_of((32, 96), 5, 1), batch_of((64, 96), 11, 2)]


def steps(compile: bool, batches=BATCHES, **train):
    """Losses of a step on each batch, the state and the programs at the end."""
    torch.manual_seed(0)
    values = merge_values(tiny_values("unused"), {"model": {"backbone": {"norm": "batch"}}})
    values["train"].update(warmup_steps=0, lr=0.001, **train)
    config = parse_config(values)
    state = build.build_state(config, 2, 10, CPU, load_pretrained=False)
    programs = Programs(state.model, build.build_criterion(config), CPU, compile)
    options = build.build_loop_options(config, 10, SIZES)
    normalize = Normalize((120.0,) * 3, (60.0,) * 3)
    programs.network.train()
    losses = []
    for batch in batches:
        found, norm = train_step(
            state, programs.network, [batch], programs.criterion, normalize, options
        )
        losses.append({name: value.item() for name, value in found.items()} | {"norm": norm.item()})
        state.step += 1
    return losses, state, programs


def test_each_shape_is_captured_once_and_gives_the_same(eager):
    wanted, plain, _ = steps(compile=False)
    got, state, programs = steps(compile=True)
    for a, b in zip(wanted, got, strict=True):
        assert b == pytest.approx(a, rel=1e-5)
    assert_close(state.model.state_dict(), plain.model.state_dict(), rtol=1e-4, atol=1e-6)
    # The network, and the criterion for each number of objects.
    said = []
    programs.tell(said.append)
    assert said == ["train.compile: 3 compiled programs, 3 of them new"]
    programs.tell(said.append)
    assert len(said) == 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_a_training_keeps_plain_checkpoints_and_goes_on_without(eager, tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 6, "val": 2})
    run = tmp_path / "run"
    values = tiny_values(folder, epochs=1, compile=True, ema_decay=0.9)
    values["data"]["group_by_aspect"] = False
    gfl.train(parse_config(values), work_dir=run)
    content = torch.load(run / "last.pt", weights_only=True)
    names = build.build_model(tiny_config(folder), 2, False).state_dict().keys()
    assert content["model"].keys() == content["ema"].keys() == names
    text = (run / "log.txt").read_text()
    assert "batches are padded to 128 x 128 pixels" in text
    assert (
        "train.compile: 2 compiled programs, 2 of them new" in text and "graph breaks" not in text
    )
    values["train"].update(compile=False, epochs=2)
    gfl.train(parse_config(values), work_dir=run, resume=True)
    text = (run / "log.txt").read_text()
    assert "resumed at step 2 of 4" in text
    assert "changed since the checkpoint: train.compile" in text


def test_more_and_more_programs_come_with_advice(eager):
    programs = Programs(torch.nn.Identity(), lambda x: x + 1, CPU, compile=False)
    programs.tell(pytest.fail)  # nothing is compiled
    programs.compile, programs._before = True, 0
    said = []
    for count in (2, 3, 3, 5):
        torch._dynamo.utils.counters["stats"]["unique_graphs"] = count
        programs.tell(said.append)
    assert [text.split(",")[0][-19:] for text in said] == [
        "2 compiled programs",
        "3 compiled programs",
        "5 compiled programs",
    ]
    assert "fewer sizes" in said[2] and "fewer sizes" not in said[1]


def test_no_compiler_is_told_with_what_to_do(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    with pytest.raises(UserError, match="train.compile is true.*g\\+\\+.*train.compile=false"):
        require_compiler(CPU)


class Block(nn.Module):
    """As those of a ResNet, in small."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


class Stages(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Sequential(Block(), Block()), nn.Sequential(Block())

    def forward(self, x):
        return self.layer2(self.layer1(x))


def test_recomputed_activations_can_be_compiled(monkeypatch):
    """The graph's backward computes them again; batch norms learn once."""
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")
    torch.manual_seed(0)
    plain, images = Stages(), torch.randn(2, 4, 8, 8)
    saving = copy.deepcopy(plain)
    assert recompute_activations(saving) == 3
    for _ in range(2):
        plain(images).square().sum().backward()
        compiled.compiled(saving.forward)(images).square().sum().backward()
    assert not torch._dynamo.utils.counters["graph_break"]
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert_close(other.grad, one.grad, rtol=1e-5, atol=1e-5, msg=name)
    for (name, one), other in zip(plain.named_buffers(), saving.buffers(), strict=True):
        assert_close(other, one, msg=name)
    assert plain.layer2[0].norm.num_batches_tracked == 2


@pytest.mark.slow
def test_compiled_kernels_give_the_losses_of_eager():
    """fp32 on the CPU, four steps: rounding alone, which the optimiser carries on."""
    batches = [*BATCHES, batch_of((96, 64), 3, 3)]
    wanted, *_ = steps(compile=False, batches=batches)
    got, *_ = steps(compile=True, batches=batches)
    for a, b in zip(wanted, got, strict=True):
        assert b == pytest.approx(a, rel=1e-3)
    first, other = copy.copy(wanted[0]), copy.copy(got[0])
    assert other == pytest.approx(first, rel=1e-4)
