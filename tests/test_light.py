"""Light networks: blocks, path aggregation, norms of levels, folding, and the shipped configs."""

import copy

import pytest
import torch
from builders import make_targets, without_auto
from conftest import REPOSITORY
from test_exporting import write_checkpoint
from torch import nn
from torch.testing import assert_close

import gfl
from gfl.build import NECKS, build_criterion, build_model, build_state
from gfl.config import load_config, parse_config
from gfl.engine.checkpoint import save_checkpoint
from gfl.errors import UserError
from gfl.exporting import drawn_picture
from gfl.models.conv_blocks import BlockOptions, ConvNormAct, Tower
from gfl.models.feature_backbone import FeatureBackbone
from gfl.models.folding import folded_blocks
from gfl.models.head import GFLHead
from gfl.models.neck import FPN
from gfl.models.pafpn import PAFPN
from gfl.schema.automatic import AUTO_KEYS

LIGHT = {"gfl_n": 1e6, "gfl_s": 3e6, "gfl_m": 8e6, "gfl_l": 13e6}
BATCH = BlockOptions("depthwise", 5, "batch")
PER_LEVEL = BlockOptions("depthwise", 3, "batch", norm_levels=2)
SMALL_HEAD = {"channels": 16, "stacked_convs": 1, "norm": "batch"}


def test_a_neck_of_ones_own_needs_strides_alone(monkeypatch):
    class LastMap(nn.Module):
        """One level of the coarsest map."""

        def __init__(self, in_channels, strides, channels):
            super().__init__()
            self.reduce = nn.Conv2d(in_channels[-1], channels, 1)
            self.channels, self.strides = channels, strides[-1:]

        def forward(self, features):
            return [self.reduce(features[-1])]

    monkeypatch.setitem(NECKS, "last", LastMap)
    config = small(neck={"name": "last", "channels": 16})
    predictions = build_model(config, 2)(torch.zeros(1, 3, 64, 96))
    assert predictions.cls_logits.shape == (1, 2 * 3, 2)


def message_of(model: dict) -> str:
    with pytest.raises(UserError) as caught:
        parse_config({"model": model})
    return str(caught.value)


def small(**model):
    """A config of a small network from scratch."""
    backbone = {"name": "resnet18", "pretrained": False}
    parts = {"backbone": backbone, "neck": {"channels": 16}, "head": SMALL_HEAD}
    return parse_config({"model": {**parts, **model}})


@torch.no_grad()
def make_identity(part: nn.Module) -> nn.Module:
    """Every convolution passes its middle pixel on, every batch norm its input, in eval mode."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.zero_()
            middle = module.kernel_size[0] // 2
            for channel in range(module.out_channels):
                inner = channel % module.weight.shape[1] if module.groups == 1 else 0
                module.weight[channel, inner, middle, middle] = 1
            if module.bias is not None:
                module.bias.zero_()
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0
    return part.eval()


@torch.no_grad()
def give_statistics(part: nn.Module) -> nn.Module:
    """Batch norms whose numbers all differ."""
    for module in part.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.3)
            module.running_var.uniform_(0.5, 2.0)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_(std=0.3)
    return part


def norms(part: nn.Module) -> list:
    return [m for m in part.modules() if isinstance(m, nn.BatchNorm2d)]


# Blocks


def test_a_depthwise_block_is_a_channel_by_channel_convolution_and_a_1x1():
    tower = Tower([8, 16], BATCH)
    assert [tuple(part.conv.weight.shape) for part in tower] == [(8, 1, 5, 5), (16, 8, 1, 1)]
    assert [type(part.norm) for part in tower] == [nn.BatchNorm2d] * 2


@pytest.mark.parametrize(
    ("name", "expected"),
    # At -1 and 2: max(x, 0); x min(max(x + 3, 0), 6) / 6; x / (1 + exp(-x)).
    [("relu", [0, 2]), ("hardswish", [-1 / 3, 5 / 3]), ("silu", [-0.268941, 1.761594])],
)
def test_activations(name, expected):
    part = make_identity(ConvNormAct(1, 1, BlockOptions(norm="batch", activation=name)))
    with torch.no_grad():
        assert_close(part(torch.tensor([[[[-1.0, 2.0]]]])), torch.tensor([[[expected]]]).float())


def test_a_strided_block_halves_and_rounds_up():
    part = ConvNormAct(4, 4, BATCH, stride=2, groups=4)
    assert part(torch.zeros(1, 4, 5, 8)).shape == (1, 4, 3, 4)


# Neck


def test_values_of_a_constant_pyramid_with_identity_weights():
    """Levels are added on the way down and on the way up again."""
    neck = make_identity(PAFPN((2, 3, 5), (8, 16, 32), 2, num_extra=1))
    features = [
        torch.full((1, c, s, s), v) for c, s, v in ((2, 8, 1.0), (3, 4, 10.0), (5, 2, 100.0))
    ]
    with torch.no_grad():
        levels = neck(features)
    # Top-down: 100, 110, 111. Bottom-up: 111, 110 + 111 = 221, 100 + 221 = 321, and its copy.
    assert neck.strides == (8, 16, 32, 64)
    assert [tuple(level.shape) for level in levels] == [(1, 2, s, s) for s in (8, 4, 2, 1)]
    for level, value in zip(levels, (111, 221, 321, 321), strict=True):
        assert_close(level, torch.full_like(level, value), rtol=0, atol=0)


def test_a_fine_pixel_reaches_the_coarse_levels_that_an_fpn_does_not_tell():
    features = [torch.zeros(1, 2, s, s) for s in (8, 4, 2)]
    features[0][0, 0, 4, 4] = 1.0
    with torch.no_grad():
        aggregated = make_identity(PAFPN((2, 2, 2), (8, 16, 32), 2))(features)
        plain = make_identity(FPN((2, 2, 2), (8, 16, 32), 2))(features)
    # Strided convolutions look at pixels 0, 2, 4, ..: (4, 4), (2, 2), (1, 1), then 0 alone.
    assert [level.sum().item() for level in aggregated] == [1, 1, 1, 0]
    assert aggregated[2][0, 0, 1, 1] == 1
    assert [level.sum().item() for level in plain] == [1, 0, 0, 0, 0]


def test_sides_that_do_not_halve():
    neck = PAFPN((2, 2, 2), (8, 16, 32), 4, num_extra=2).eval()
    levels = neck([torch.zeros(1, 2, *size) for size in ((9, 13), (5, 7), (3, 4))])
    sizes = [tuple(level.shape[2:]) for level in levels]
    assert sizes == [(9, 13), (5, 7), (3, 4), (2, 2), (1, 1)]


@pytest.mark.parametrize("name", NECKS)
@pytest.mark.parametrize(
    ("finest", "levels", "strides"),
    [
        ("P3", 3, (8, 16, 32)),
        ("P3", 4, (8, 16, 32, 64)),
        ("P2", 4, (4, 8, 16, 32)),
        ("P2", 6, (4, 8, 16, 32, 64, 128)),
    ],
)
def test_finest_level_and_number_of_levels(name, finest, levels, strides):
    neck = {"name": name, "channels": 16, "finest": finest, "levels": levels}
    model = build_model(small(neck=neck), 2)
    assert model.neck.strides == strides
    predictions = model(torch.zeros(2, 3, 128, 192))
    count = sum(-(-128 // s) * -(-192 // s) for s in strides)
    assert predictions.cls_logits.shape == (2, count, 2)
    assert predictions.grid.strides.unique().tolist() == list(strides)


def test_a_backbone_without_stride_4_has_no_p2(monkeypatch):
    class Short(nn.Module):
        channels, strides = (8, 8, 8), (8, 16, 32)

    monkeypatch.setattr("gfl.build.model.build_backbone", lambda *_: Short())
    config = small(neck={"channels": 16, "finest": "P2"})
    with pytest.raises(UserError, match=r"finest is P2.* resnet18 has \[8, 16, 32\].*finest=P3"):
        build_model(config, 2)


class Fork(nn.Module):
    """Four outputs, of which the first has a layer that no other looks at."""

    def __init__(self):
        super().__init__()
        self.stem, self.alone = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 4, 1)

    def forward(self, images):
        x = self.stem(images)
        return [self.alone(x), *(x[..., ::s, ::s] for s in (2, 4, 8))]


@pytest.mark.parametrize(("num_features", "trains"), [(3, False), (4, True)])
def test_parameters_that_only_p2_needs_train_with_p2(monkeypatch, num_features, trains):
    body = Fork()
    outputs = body(torch.zeros(1, 3, 96, 160))
    monkeypatch.setattr("gfl.models.feature_backbone._cut", lambda _: (body, outputs))
    backbone = FeatureBackbone("timm/fork", "batch", 0, num_features)
    assert backbone.strides == (4, 8, 16, 32)
    assert body.alone.weight.requires_grad == trains and body.stem.weight.requires_grad


# Head


def test_each_level_has_its_own_statistics_behind_one_convolution():
    tower = Tower([3, 4], BlockOptions("plain", 3, "batch", norm_levels=2)).train()
    part = tower[0]
    assert len(part.norm) == 2 and isinstance(part.conv, nn.Conv2d)
    nn.init.constant_(part.conv.weight, 1 / 27)
    tower([torch.full((2, 3, 5, 5), 1.0), torch.full((2, 3, 5, 5), 7.0)])
    # Of 25 pixels 9 see nine ones, 12 see six, 4 see four: mean (9 + 8 + 16 / 9) / 25; 0.1 of it.
    mean = 0.1 * (9 + 8 + 16 / 9) / 25
    for norm, factor in zip(part.norm, (1, 7), strict=True):
        assert_close(norm.running_mean, torch.full((4,), factor * mean))


def test_shared_statistics_are_one_norm():
    assert isinstance(Tower([3, 4], BATCH)[0].norm, nn.BatchNorm2d)


def test_a_level_alone_gives_what_it_gives_among_others_with_its_own_norm():
    head = give_statistics(
        GFLHead(4, 3, 8, 2, channels=16, stacked_convs=2, blocks=PER_LEVEL)
    ).eval()
    levels = [torch.randn(1, 4, 4, 4), torch.randn(1, 4, 2, 2)]
    with torch.no_grad():
        both = head(levels).cls_logits
        first = head.cls_out(head.cls_tower(levels[:1])[0]).flatten(2).transpose(1, 2)
        wrong = head.cls_out(head.cls_tower(levels[1:])[0]).flatten(2).transpose(1, 2)
    assert_close(both[:, :16], first)
    assert (both[:, 16:] - wrong).abs().max() > 1e-3  # the first level's norm on the second


def test_one_tower_for_class_and_box():
    head = GFLHead(4, 3, 8, 2, channels=8, stacked_convs=1, blocks=BATCH, shared_tower=True)
    assert head.box_tower is None and head.box_out.kernel_size == (1, 1)
    head = make_identity(head)
    outputs = head([torch.full((1, 4, 2, 2), 3.0), torch.full((1, 4, 1, 1), 5.0)])
    for logits in (outputs.cls_logits, outputs.box_logits):
        assert logits[0, :, 0].tolist() == [3, 3, 3, 3, 5]


@torch.no_grad()
def test_parity_default_tower_is_3x3_group_norm_relu_and_a_seed_gives_the_same():
    torch.manual_seed(0)
    tower = Tower([4, 64, 64], BlockOptions())
    torch.manual_seed(0)
    x = expected = torch.randn(1, 4, 5, 6, generator=torch.Generator().manual_seed(1))
    for in_channels in (4, 64):
        conv = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
        nn.init.normal_(conv.weight, std=0.01)
        expected = nn.GroupNorm(32, 64)(conv(expected)).relu()
    [found] = tower([x])
    assert torch.equal(found, expected)


def test_parity_default_head_and_neck_have_the_names_and_sizes_of_the_reference():
    model = parse_config({"model": {"backbone": {"pretrained": False}}})
    with torch.device("meta"):
        state = build_model(model, 80, load_pretrained=False).state_dict()
    head = {k: tuple(v.shape) for k, v in state.items() if k.startswith("head.cls_tower.0")}
    assert head == {
        "head.cls_tower.0.conv.weight": (256, 256, 3, 3),
        "head.cls_tower.0.norm.weight": (256,),
        "head.cls_tower.0.norm.bias": (256,),
    }
    assert state["head.cls_out.weight"].shape == (80, 256, 3, 3)
    assert sum(name.startswith("neck.") for name in state) == 2 * (3 + 3 + 2)


# What is refused


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"neck": {"levels": 3, "finest": "P2"}}, "levels is 3, but finest: P2"),
        ({"neck": {"norm": "group"}}, "norm: group has no meaning with name: fpn"),
        ({"neck": {"kernel": 3}}, "kernel: 3 has no meaning with name: fpn"),
        ({"neck": {"name": "pafpn", "norm": "group", "channels": 48}}, "channels is 48, but norm"),
        ({"neck": {"levels": 2}}, "model.neck.levels is 2"),
        ({"neck": {"finest": "P4"}}, "model.neck.finest is 'P4'"),
        ({"head": {"channels": 32}}, "channels is 32, but norm: group has 32 groups"),
        ({"head": {"statistics": "per_level"}}, "a group norm keeps no statistics"),
        ({"head": {"channels": 12, "norm": "batch"}}, "model.head.channels is 12"),
    ],
)
def test_impossible_combination(model, words):
    assert words in message_of(model)


# Folding


@torch.no_grad()
@pytest.mark.parametrize("statistics", ["shared", "per_level"])
@pytest.mark.parametrize("conv", ["plain", "depthwise"])
def test_folding_neck_and_head_changes_roundings_only(conv, statistics):
    neck = {"name": "pafpn", "channels": 16, "conv": conv, "activation": "silu"}
    model = build_model(small(neck=neck, head={**SMALL_HEAD, "conv": conv,
                                               "statistics": statistics}), 2)  # fmt: skip
    give_statistics(model).eval()
    # Outputs of some size: a tolerance says nothing about zeros.
    for name, parameter in model.head.named_parameters():
        if name.endswith("conv.weight") or name.endswith("_out.weight"):
            nn.init.normal_(parameter, std=0.3)
    folded = copy.copy(model)
    folded._modules = dict(model._modules)
    folded.neck, folded.head = folded_blocks(model.neck), folded_blocks(model.head)
    assert norms(model.neck) and norms(model.head)
    assert not norms(folded.neck) and not norms(folded.head)
    images = torch.randn(1, 3, 128, 160)
    one, other = model(images), folded(images)
    assert one.cls_logits.std() > 0.1
    assert_close(other.cls_logits, one.cls_logits, rtol=1e-4, atol=1e-4)
    assert_close(other.box_logits, one.box_logits, rtol=1e-4, atol=1e-4)


def test_parts_without_batch_norm_are_given_back_as_they_are():
    head = GFLHead(4, 3, 8, 2, channels=64, stacked_convs=1)
    assert folded_blocks(head) is head


# The shipped configs


@pytest.mark.parametrize("name", LIGHT)
def test_sizes_and_strides(name):
    with torch.device("meta"):
        config = without_auto(load_config(name))
    model = build_model(config, 3, load_pretrained=False)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(LIGHT[name], rel=0.15)
    assert model.neck.strides == (8, 16, 32, 64, 128)[: config.model.neck.levels]
    assert load_config(name).auto_keys == AUTO_KEYS
    train = config.train
    assert (train.optimizer, train.schedule, train.ema_decay) == ("adamw", "flat_cosine", None)
    text = (REPOSITORY / "docs" / "light.md").read_text(encoding="utf-8")
    assert f"| `{name}` | {config.model.backbone.name} |" in text


@pytest.mark.parametrize("name", LIGHT)
def test_every_parameter_gets_a_gradient(name):
    """(That a whole step runs is in test_shipped_configs.py.)"""
    torch.manual_seed(0)
    config = without_auto(load_config(name))
    model = build_model(config, 3, load_pretrained=False).train()
    targets = make_targets([[[10.0, 12.0, 70.0, 90.0]], [[0.0, 0.0, 160.0, 128.0]]], [[0], [1]],
                           size=(128, 160))  # fmt: skip
    losses = build_criterion(config)(model(torch.randn(2, 3, 128, 160)), targets)
    sum(losses.values()).backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    # A scale, or norms, of a level on which no object of these two lies, move by scores alone.
    assert [n for n in still if "scales" not in n and not ("box_tower" in n and ".norm" in n)] == []


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    path = tmp_path_factory.mktemp("light") / "n.pt"
    config = load_config("gfl_n", ["model.neck.name=pafpn"])  # whose neck has norms, too
    content = torch.load(write_checkpoint(path, without_auto(config)), weights_only=True)
    for name, value in content["model"].items():
        if "_tower" in name and name.endswith("conv.weight"):
            value *= 8  # or all scores would be the same
    save_checkpoint(path, content)
    return path


@pytest.mark.slow  # test_exporting.py exports other networks
def test_a_light_network_exports_and_is_folded(light, tmp_path):
    out = tmp_path / "n.onnx"
    picture = drawn_picture(200, 320)
    gfl.export(light, out, "decoded")
    exported, detector = gfl.load(out), gfl.load(light, device="cpu")
    assert norms(detector.model.neck) == norms(detector.model.head) == []
    plain = gfl.load(light, device="cpu", fuse=False)
    assert norms(plain.model.neck) and norms(plain.model.head)
    [a], [b], [c] = (d.predict([picture]) for d in (exported, detector, plain))
    assert len(a) == len(b) == len(c) > 10
    for other in (a, c):
        assert_close(torch.as_tensor(other.scores), torch.as_tensor(b.scores), atol=1e-4, rtol=1e-4)


def test_a_light_network_compiles(light):
    """Captured whole, with no break; kernels are the compiler's own business."""
    model = gfl.load(light, device="cpu").model
    images = torch.randn(1, 3, 128, 160)
    with torch.no_grad():
        captured = torch.compile(model.tensors, backend="eager", fullgraph=True)
        one, other = captured(images)[0], model.tensors(images)[0]
    assert_close(one.cls_logits, other.cls_logits)
    assert_close(one.box_logits, other.box_logits)


def test_rates_decay_and_averages_of_the_recipe():
    """AdamW without decay of norms and biases, rates by layer, averages: of a light network too."""
    more = ["train.layer_decay=0.8", "train.lr_factors={neck: 0.5}", "train.ema_decay=0.998"]
    config = without_auto(load_config("gfl_n", more))
    state = build_state(config, 3, 100, torch.device("cpu"))
    one_dimensional = {id(p) for p in state.model.parameters() if p.dim() <= 1}
    groups = state.optimizer.param_groups
    for group in groups:
        assert {id(p) in one_dimensional for p in group["params"]} == {group["weight_decay"] == 0}
        assert group["weight_decay"] in (0, 0.05)
    stages = {0.8**k for k in range(4)}
    assert {round(group["lr_factor"], 6) for group in groups} == {
        round(f, 6) for f in stages | {0.5}
    }
    assert (state.ema.decay, state.ema.warmup_steps) == (0.998, 400)
    assert state.ema.model.state_dict().keys() == state.model.state_dict().keys()
