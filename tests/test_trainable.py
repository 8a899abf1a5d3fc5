"""Freezing, and factors of the learning rate."""

import pytest
import torch
from builders import make_targets, tiny_config, tiny_values, write_coco
from torch import nn

import gfl
from gfl import build
from gfl.build.model import build_backbone
from gfl.config import parse_config
from gfl.data.batch import Normalize
from gfl.engine.optim import Schedule, describe_rates, make_optimizer
from gfl.engine.train import train_step
from gfl.errors import UserError
from gfl.models.recompute import recompute_activations
from gfl.models.trainable import dependent_outputs, freeze, rate_factors
from gfl.opening import _idle_rates
from gfl.schema.model import Backbone
from gfl.structures import Batch, ImageMeta

CPU = torch.device("cpu")


class TwoStages(nn.Module):
    """A backbone worked by hand: stem and first make the first output, second the second."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.first = nn.Conv2d(4, 4, 3)
        self.second = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), nn.BatchNorm2d(4))
        self.unused = nn.Linear(1, 1)

    def forward(self, images):
        first = self.first(self.stem(images))
        return [first, self.second(first)]


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = TwoStages()
        self.head = nn.Linear(2, 2)


def state_of(name: str, **train):
    """Everything that a training changes, for the smallest detector."""
    values = tiny_values("nowhere", **train)
    values["model"]["backbone"] = {"name": name, "pretrained": False}
    return build.build_state(parse_config(values), 2, 3, CPU)


def steps(state, count: int, lr: float = 0.01, warmup_steps: int = 0) -> None:
    state.schedule = Schedule(lr, total_steps=100, warmup_steps=warmup_steps)
    state.model.train()
    targets = make_targets([[[8, 8, 72, 80]], [[20, 4, 60, 90]]], [[0], [1]], size=(96, 96))
    metas = tuple(ImageMeta(i, (96, 96), (96, 96), (1.0, 1.0)) for i in range(2))
    options = build.build_loop_options(parse_config({}), 3)
    criterion = build.build_criterion(parse_config({"model": {"reg_max": 8}}))
    for number in range(count):
        generator = torch.Generator().manual_seed(number)
        images = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8, generator=generator)
        batch = Batch(images, torch.full((2, 2), 96), targets, metas)
        normalize = Normalize((128.0,) * 3, (60.0,) * 3)
        train_step(state, state.model, [batch], criterion, normalize, options)
        state.step += 1


# Factors


def test_stages_are_what_autograd_sees():
    outputs, count = dependent_outputs(TwoStages().train())
    assert count == 2
    assert outputs == {
        "stem.weight": [1, 2],
        "stem.bias": [1, 2],
        "first.weight": [1, 2],
        "first.bias": [1, 2],
        "second.0.weight": [2],
        "second.1.weight": [2],
        "second.1.bias": [2],
    }


def test_asking_for_stages_leaves_the_backbone_as_it_is():
    backbone = TwoStages().train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    dependent_outputs(backbone)
    assert all(torch.equal(before[k], v) for k, v in backbone.state_dict().items())
    assert backbone.training and backbone.second[1].training
    assert all(p.grad is None for p in backbone.parameters())


def test_the_longest_name_decides_and_decay_multiplies():
    factors = rate_factors(
        Toy(), {"backbone": 0.1, "backbone.first": 0.5, "backbone.second.1": 3.0}, layer_decay=0.8
    )
    assert factors == pytest.approx(
        {
            "backbone.stem.weight": 0.1 * 0.8,
            "backbone.stem.bias": 0.1 * 0.8,
            "backbone.first.weight": 0.5 * 0.8,
            "backbone.first.bias": 0.5 * 0.8,
            "backbone.second.0.weight": 0.1,
            "backbone.second.1.weight": 3.0,
            "backbone.second.1.bias": 3.0,
            "backbone.unused.weight": 0.1,
            "backbone.unused.bias": 0.1,
            "head.weight": 1.0,
            "head.bias": 1.0,
        }
    )


def test_rates_of_what_is_frozen_are_told(folder):
    stated = {"freeze": ["backbone"], "layer_decay": 0.5, "lr_factors": {"backbone": 0.1}}
    config = tiny_config(folder, **stated)
    model = build.build_model(config, 3)
    freeze(model, config.train.freeze)
    [line] = _idle_rates(config, model)
    assert "train.lr_factors of backbone, train.layer_decay changes nothing" in line
    assert _idle_rates(tiny_config(folder, lr_factors={"neck": 0.5}), model) == []


def test_a_name_ends_at_a_dot():
    model = nn.ModuleDict({"layer1": nn.Linear(1, 1), "layer10": nn.Linear(1, 1)})
    factors = rate_factors(model, {"layer1": 0.1})
    assert [factors["layer1.weight"], factors["layer10.weight"]] == [0.1, 1.0]


@pytest.mark.parametrize("name", ["resnet18", "timm/resnet18", "torchvision/resnet18"])
def test_layer_decay_of_a_resnet(name):
    state = state_of(name, layer_decay=0.5)
    found = {}
    for group, names in zip(state.optimizer.param_groups, state.trained, strict=True):
        found[group["lr_factor"]] = {k.replace("body.", "").split(".")[1] for k in names}
    assert {k: v for k, v in found.items() if k != 1.0} == {
        0.125: {"conv1", "bn1", "layer1"},
        0.25: {"layer2"},
        0.5: {"layer3"},
    }
    assert "layer4" in found[1.0] and "cls_tower" in found[1.0]


def test_layer_decay_of_a_backbone_with_a_frozen_stage():
    """The first stage counts, though it does not train."""
    values = tiny_values("nowhere", layer_decay=0.5)
    values["model"]["backbone"] = {"name": "resnet18", "frozen_stages": 1}
    values["model"]["backbone"]["pretrained"] = "weights.pth"
    state = build.build_state(parse_config(values), 2, 3, CPU, load_pretrained=False)
    groups = zip(state.optimizer.param_groups, state.trained, strict=True)
    first = {group["lr_factor"]: names[0].rsplit(".", 1)[0] for group, names in groups}
    assert first == {
        0.25: "backbone.layer2.0.conv1",
        0.5: "backbone.layer3.0.conv1",
        1.0: "backbone.layer4.0.conv1",
    }


# Groups


def test_without_factors_the_groups_are_the_old_ones():
    model = Toy()
    [group] = make_optimizer(model).param_groups
    plain = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=0.0001)
    assert group.keys() == plain.param_groups[0].keys()
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    [weights, others] = make_optimizer(model, decay_norm_and_bias=False).param_groups
    assert [p.dim() > 1 for p in weights["params"]] == [True] * 5
    assert len(others["params"]) == 6 and "lr_factor" not in others


def test_parameters_of_equal_settings_share_a_group():
    model = Toy()
    factors = rate_factors(model, {"backbone.stem": 0.1, "head": 0.1, "backbone.first": 0.2})
    groups = make_optimizer(model, "adamw", factors=factors).param_groups
    assert [(group["lr_factor"], len(group["params"])) for group in groups] == [
        (0.1, 4),
        (0.2, 2),
        (1.0, 5),
    ]
    split = make_optimizer(model, "adamw", decay_norm_and_bias=False, factors=factors)
    rows = [(g["lr_factor"], g["weight_decay"], len(g["params"])) for g in split.param_groups]
    assert rows == [
        (0.1, 0.0001, 2),
        (0.1, 0.0, 2),
        (0.2, 0.0001, 1),
        (0.2, 0.0, 1),
        (1.0, 0.0001, 2),
        (1.0, 0.0, 3),
    ]


def test_rates_in_words():
    model = nn.ModuleDict({"a": nn.Linear(1000, 100), "b": nn.Linear(500, 100)})
    assert describe_rates(make_optimizer(model)) == ""
    optimizer = make_optimizer(model, factors=rate_factors(model, {"a": 0.05}))
    assert describe_rates(optimizer) == ": 0.10 million at lr x 0.05, 0.05 million at lr x 1"


def test_a_step_moves_each_parameter_by_its_own_rate():
    """Plain SGD: the move is rate x factor x gradient."""
    state = state_of("resnet18", momentum=0.0, weight_decay=0.0, lr_factors={"backbone": 0.25})
    before = {name: p.detach().clone() for name, p in state.model.named_parameters()}
    steps(state, 1, lr=0.5)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.125, 0.5]
    for name, p in state.model.named_parameters():
        rate = 0.125 if name.startswith("backbone.") else 0.5
        assert torch.allclose(p, before[name] - rate * p.grad, atol=1e-7), name


# Freezing


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("resnet18", ["backbone", "neck.lateral"]),
        ("resnet18", ["backbone.layer2"]),
        ("timm/resnet18", ["backbone.body.layer1", "head.cls_tower"]),
        ("torchvision/mobilenet_v3_small", ["backbone"]),
    ],
)
def test_frozen_modules_stay_as_they_are(name, frozen):
    torch.manual_seed(0)
    state = state_of(name, freeze=frozen)
    inside = {n for n in state.model.state_dict() if any(n.startswith(f"{f}.") for f in frozen)}
    optimised = {name for names in state.trained for name in names}
    assert inside and not inside & optimised
    assert inside | optimised >= {name for name, _ in state.model.named_parameters()}
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    steps(state, 2)
    same = {k for k, v in state.model.state_dict().items() if torch.equal(before[k], v)}
    assert inside <= same
    running = {k for k in before if k.endswith("running_mean")}
    assert running - inside == running - same
    outside = optimised - {n for n in optimised if n.startswith("head.")}
    moved = outside - same
    assert moved == outside


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("name", ["resnet18", "torchvision/resnet18"])
def test_frozen_stages_do_no_backward_work(name, recompute):
    """Autograd has not even recorded them."""
    backbone = build_backbone(Backbone(name=name, pretrained=False, norm="batch", frozen_stages=2))
    if recompute:
        recompute_activations(backbone)
    outputs = backbone.train()(torch.randn(2, 3, 64, 64))
    assert [output.grad_fn is None for output in outputs] == [True, True, False, False]
    assert [output.requires_grad for output in outputs] == [False, False, True, True]


def test_without_the_key_statistics_are_learned():
    state = state_of("resnet18")
    before = state.model.backbone.bn1.running_mean.clone()
    steps(state, 1)
    assert not torch.equal(before, state.model.backbone.bn1.running_mean)


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"freeze": ["backbon"]}, "train.freeze names 'backbon'.*did you mean 'backbone'?"),
        ({"freeze": ["neck.laterals"]}, "did you mean 'neck.lateral'?"),
        ({"freeze": ["backbone.relu"]}, "no module with parameters"),
        ({"freeze": [""]}, "train.freeze names ''"),
        ({"freeze": ["backbone", "neck", "head"]}, "no parameter is left that trains"),
        ({"lr_factors": {"backbone.layer5": 0.1}}, "train.lr_factors names.*'backbone.layer"),
        ({"lr_factors": {"backbone": 0.0}}, "lr_factors is 0.0"),
        ({"layer_decay": 1.5}, "layer_decay is 1.5"),
    ],
)
def test_mistakes(train, message):
    with pytest.raises(UserError, match=message):
        state_of("resnet18", **train)


def test_freezing_nothing_changes_nothing():
    model = Toy()
    freeze(model, [])
    assert all(p.requires_grad for p in model.parameters())


# Runs


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": 8, "val": 2})


SETTINGS = {
    "optimizer": "adamw",
    "lr": 0.001,
    "freeze": ["backbone.layer1"],
    "lr_factors": {"head": 0.5},
    "layer_decay": 0.8,
}


def test_a_resumed_run_with_factors_is_the_uninterrupted_one(folder, tmp_path, monkeypatch):
    import gfl.engine.train as loop

    config = tiny_config(folder, **SETTINGS)
    gfl.train(config, work_dir=tmp_path / "whole")
    real_step = loop.train_step

    def dies(state, *args):
        if state.step == 3:
            raise Interrupted
        return real_step(state, *args)

    monkeypatch.setattr(loop, "train_step", dies)
    with pytest.raises(Interrupted):
        gfl.train(config, work_dir=tmp_path / "run")
    monkeypatch.undo()
    gfl.train(config, work_dir=tmp_path / "run", resume=True)
    whole, resumed = (
        torch.load(tmp_path / name / "last.pt", weights_only=True) for name in ("whole", "run")
    )
    assert whole["model"].keys() == resumed["model"].keys()
    assert all(torch.equal(v, resumed["model"][k]) for k, v in whole["model"].items())
    groups = [state["optimizer"]["param_groups"] for state in (whole, resumed)]
    assert groups[0] == groups[1]
    for index, moments in whole["optimizer"]["state"].items():
        again = resumed["optimizer"]["state"][index]
        assert all(torch.equal(value, again[k]) for k, value in moments.items())
    text = (tmp_path / "whole" / "log.txt").read_text()
    assert "at lr x 0.5, " in text and "at lr x 0.512, " in text and "at lr x 1" in text


def test_what_may_change_on_resuming(folder, tmp_path, monkeypatch):
    import gfl.engine.train as loop

    both = {"backbone": 0.5, "neck": 0.5, "head": 0.5}
    gfl.train(tiny_config(folder, epochs=1, lr_factors=both), work_dir=tmp_path / "run")
    seen, real_step = [], loop.train_step

    def watched(state, *args):
        result = real_step(state, *args)
        seen.append([group["lr"] for group in state.optimizer.param_groups])
        return result

    monkeypatch.setattr(loop, "train_step", watched)
    # One group before and after: the factor must not stay behind.
    gfl.train(tiny_config(folder, epochs=2), work_dir=tmp_path / "run", resume=True)
    assert seen == [[0.01], [0.01]]
    other = tiny_config(folder, epochs=3, freeze=["head.cls_tower"])
    with pytest.raises(
        UserError, match="parameters that train, or the groups .* are others"
    ) as caught:
        gfl.train(other, work_dir=tmp_path / "run", resume=True)
    assert "train.freeze: [] -> ['head.cls_tower']" in str(caught.value)


def test_a_step_has_the_rate_of_the_steps_before_it():
    """The second of a warm-up of four."""
    state = state_of("resnet18")
    steps(state, 2, lr=1.0, warmup_steps=4)
    [group] = state.optimizer.param_groups
    assert group["lr"] == pytest.approx(0.001 + 0.999 / 4)


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_a_scaled_loss_is_clipped_at_its_own_norm(scale):
    """As in fp16: with plain SGD at rate 1 the whole move has the length of grad_clip."""
    state = state_of("resnet18", momentum=0.0, weight_decay=0.0)
    state.schedule = Schedule(1.0, total_steps=10, warmup_steps=0)
    state.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    before = [p.detach().clone() for p in state.model.parameters()]
    targets = make_targets([[[8, 8, 72, 80]], [[20, 4, 60, 90]]], [[0], [1]], size=(96, 96))
    metas = tuple(ImageMeta(i, (96, 96), (96, 96), (1.0, 1.0)) for i in range(2))
    images = torch.randint(0, 255, (2, 3, 96, 96), dtype=torch.uint8)
    batch = Batch(images, torch.full((2, 2), 96), targets, metas)
    config = parse_config({"model": {"reg_max": 8}, "train": {"grad_clip": 0.1}})
    options, normalize = build.build_loop_options(config, 3), Normalize((128.0,) * 3, (60.0,) * 3)
    criterion = build.build_criterion(config)
    _, norm = train_step(state, state.model.train(), [batch], criterion, normalize, options)
    assert 0.1 < norm < 1000
    moves = [p.detach() - old for p, old in zip(state.model.parameters(), before, strict=True)]
    moved = torch.stack([move.square().sum() for move in moves]).sum().sqrt()
    assert moved.item() == pytest.approx(0.1, rel=1e-3)
