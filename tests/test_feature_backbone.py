"""Networks of timm and torchvision as backbones: what is cut, measured, frozen, loaded, refused."""

import copy
import sys

import pytest
import timm
import torch
import torchvision
from builders import make_targets
from torch import nn

from gfl.build import build_criterion, build_model
from gfl.build.model import build_backbone
from gfl.config import parse_config
from gfl.errors import UserError
from gfl.models import feature_backbone
from gfl.models.backbone import ResNet
from gfl.models.feature_backbone import FeatureBackbone
from gfl.models.feature_networks import stride_of, torchvision_features, torchvision_network
from gfl.models.narrow_resnet import NarrowResNet
from gfl.models.trainable import dependent_outputs
from gfl.schema.model import Backbone

NAMES = [
    "timm/resnet18",
    "timm/convnext_atto",
    "timm/mambaout_femto",  # gives its channels last
    "torchvision/resnet18",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/swin_t",  # gives its channels last, too
]


def config_of(name: str, **backbone):
    model = {"backbone": {"name": name, **backbone}, "neck": {"channels": 32}}
    return parse_config({"model": {**model, "head": {"channels": 64, "stacked_convs": 1}}})


def statistics(module: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in module.state_dict().items() if "running_" in k}


def changed(before: dict, module: nn.Module) -> set[str]:
    after = statistics(module)
    return {name for name in before if not torch.equal(before[name], after[name])}


# Strides


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 7, 12, 20), (8, False)),
        ((1, 12, 20, 7), (8, True)),
        ((1, 7, 3, 5), (32, False)),
        ((1, 7, 1, 1), None),  # pooled
        ((1, 7, 12, 10), None),  # strides 8 and 16
        ((1, 7, 11, 19), None),  # 8.7 and 8.4
        ((1, 60, 7), None),
        ((1, 0, 0, 0), None),
    ],
)
def test_stride_is_read_from_the_shape(shape, expected):
    assert stride_of(torch.zeros(shape), (96, 160)) == expected


@pytest.mark.parametrize("name", ["resnet18", "resnet18_w16", *NAMES])
def test_reported_strides_and_channels_are_those_of_the_maps(name):
    model = build_model(config_of(name), num_classes=2, load_pretrained=False).eval()
    with torch.no_grad():
        features = model.backbone(torch.zeros(1, 3, 128, 256))
        levels = model.neck(features[-3:])
    assert model.backbone.strides == (4, 8, 16, 32)
    assert model.neck.strides == (8, 16, 32, 64, 128)
    for part, maps in ((model.backbone, features), (model.neck, levels)):
        sizes = [(128 // stride, 256 // stride) for stride in part.strides]
        assert [tuple(x.shape[2:]) for x in maps] == sizes
    assert tuple(x.shape[1] for x in features) == model.backbone.channels


def test_a_network_whose_positions_end_is_refused_before_it_meets_a_large_picture():
    message = (
        "'timm/mvitv2_tiny' can not read a picture of 64 x 1344 pixels .* reads 224 x 224 pixels"
    )
    with pytest.raises(UserError, match=message):
        build_model(config_of("timm/mvitv2_tiny"), 2, load_pretrained=False)


def test_declared_strides_must_be_the_networks():
    values = config_of("resnet18").to_dict()
    values["model"]["strides"] = [8, 16, 32, 64, 128]
    build_model(parse_config(values), 2, load_pretrained=False)
    values["model"]["strides"] = [4, 8, 16, 32, 64]
    message = r"model.strides is \[4, 8, 16, 32, 64\], but resnet18 and fpn have \[8, 16, 32, 64, "
    with pytest.raises(UserError, match=message):
        build_model(parse_config(values), 2, load_pretrained=False)


# Cutting


@pytest.mark.parametrize(("name", "own"), [("resnet18", True), ("resnet50", False)])
def test_parity_torchvision_resnet(name, own):
    """The same weights give the same four stage outputs as our own backbone, bit for bit."""
    network = torchvision_network(name).eval()
    ours = ResNet(name, norm="batch").eval()
    ours.load_state_dict({k: v for k, v in network.state_dict().items() if k[:3] != "fc."})
    cut = FeatureBackbone(f"torchvision/{name}").eval()
    cut.body.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 96)
    assert cut.channels == ours.channels
    with torch.no_grad():
        for a, b in zip(cut(images), ours(images), strict=True):
            assert torch.equal(a, b)
    if own:
        names = [k.removeprefix("body.") for k, _ in cut.named_parameters()]
        assert names == [k for k, _ in ours.named_parameters()]
        trained = {k.removeprefix("body.") for k, p in cut.named_parameters() if p.requires_grad}
        assert trained == {k for k, p in ours.named_parameters() if p.requires_grad}


def test_parity_timm_resnet():
    ours = ResNet("resnet18", norm="batch").eval()
    theirs = FeatureBackbone("timm/resnet18").eval()
    theirs.body.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        for a, b in zip(theirs(images), ours(images), strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_parity_narrow_resnet_of_full_width_is_torchvisions():
    torch.manual_seed(0)
    ours = NarrowResNet(64).eval()
    theirs = torchvision_network("resnet18").eval()
    theirs.load_state_dict(ours.state_dict() | {"fc.weight": torch.zeros(1000, 512)}, strict=False)
    images, x = torch.randn(1, 3, 96, 96), {}
    theirs.layer4.register_forward_hook(lambda _module, _inputs, output: x.update(theirs=output))
    with torch.no_grad():
        theirs(images)
        ours_out = ours.maxpool(ours.relu(ours.bn1(ours.conv1(images))))
        for stage in (ours.layer1, ours.layer2, ours.layer3, ours.layer4):
            ours_out = stage(ours_out)
    assert torch.equal(ours_out, x["theirs"])


def test_a_narrow_resnet_has_no_published_weights():
    options = Backbone(name="resnet18_w32", pretrained=True)
    with pytest.raises(UserError, match="no published weights of resnet18_w32: set .*=false"):
        build_backbone(options)


def test_the_last_map_before_pooling_is_the_classifiers_input():
    network = torchvision_network("mobilenet_v3_small").eval()
    cut = torchvision_features("mobilenet_v3_small", (96, 160)).eval()
    cut.load_state_dict({k: v for k, v in network.state_dict().items() if k in cut.state_dict()})
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        pooled = cut(images)[-1].mean((2, 3))
        assert torch.allclose(network.classifier(pooled), network(images), atol=1e-5)


def test_stochastic_depth_obeys_the_mode():
    """A cut network drops whole branches in training, and none in evaluation."""
    backbone = FeatureBackbone("torchvision/efficientnet_b0", norm="frozen", frozen_stages=0)
    images = torch.randn(4, 3, 64, 64)
    for mode, repeats in ((True, False), (False, True)):
        backbone.train(mode)
        torch.manual_seed(0)
        first, second = backbone(images)[-1], backbone(images)[-1]
        assert torch.equal(first, second) == repeats


# Freezing


@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
@pytest.mark.parametrize("stages", [0, 1, 2, 4])
def test_frozen_stages_are_the_stem_and_the_first(name, stages):
    backbone = FeatureBackbone(name, norm="batch", frozen_stages=stages).train()
    trained = {k.split(".")[1] for k, p in backbone.named_parameters() if p.requires_grad}
    all_parts = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    frozen = all_parts[: stages + 2] if stages else []
    assert trained == set(all_parts) - set(frozen)
    before = statistics(backbone)
    backbone(torch.randn(2, 3, 64, 64))
    assert {k.split(".")[1] for k in changed(before, backbone)} == trained - {"conv1"}


def test_frozen_statistics_train_their_weights():
    backbone = FeatureBackbone("torchvision/mobilenet_v3_small", norm="frozen").train()
    before = statistics(backbone)
    backbone(torch.randn(2, 3, 64, 64))
    assert before and not changed(before, backbone)
    norms = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms[-1].weight.requires_grad and not norms[0].weight.requires_grad


def test_parameters_that_no_used_map_needs_do_not_train():
    backbone = FeatureBackbone("timm/hrnet_w18_small", norm="batch", frozen_stages=0)
    outputs, count = dependent_outputs(backbone)
    idle = {k for k, p in backbone.named_parameters() if not p.requires_grad}
    # What makes the map of stride 4, which the pyramid does not use, from all branches.
    parts = {".".join(name.split(".")[1:4]) for name in idle}
    assert parts == {"incre_modules.0.0", "stage4.0.fuse_layers"}
    assert count == 4 and not idle & set(outputs)


def test_a_parameter_that_no_map_needs_does_not_train_whatever_the_pyramid_asks(monkeypatch):
    def but_one(backbone):
        outputs, count = dependent_outputs(backbone)
        del outputs["body.conv1.weight"]
        return outputs, count

    monkeypatch.setattr(feature_backbone, "dependent_outputs", but_one)
    backbone = FeatureBackbone("torchvision/resnet18", norm="batch", num_features=5)
    idle = [name for name, p in backbone.named_parameters() if not p.requires_grad]
    assert "body.conv1.weight" in idle and "body.layer4.0.conv1.weight" not in idle


def test_more_frozen_stages_than_there_are():
    with pytest.raises(UserError, match="frozen_stages is 5, but timm/resnet18 has 4 stages"):
        FeatureBackbone("timm/resnet18", frozen_stages=5)


@pytest.mark.parametrize("name", ["timm/efficientnet_b0", "torchvision/mobilenet_v3_small"])
def test_sync_changes_the_norms_and_nothing_else(name):
    """timm's norms contain their activation, which must survive."""
    torch.manual_seed(0)
    plain = FeatureBackbone(name, norm="batch", frozen_stages=1).eval()
    torch.manual_seed(0)
    sync = FeatureBackbone(name, norm="sync", frozen_stages=1).eval()
    norms = [m for m in sync.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) for m in norms)
    assert list(sync.state_dict()) == list(plain.state_dict())
    for (_, a), (_, b) in zip(plain.named_parameters(), sync.named_parameters(), strict=True):
        assert a.requires_grad == b.requires_grad
    images = torch.randn(1, 3, 64, 64)
    for a, b in zip(plain(images), sync(images), strict=True):
        assert torch.allclose(a, b, atol=1e-6)
    modes = [m.training for m in sync.train().modules() if isinstance(m, nn.SyncBatchNorm)]
    assert not modes[0] and modes[-1]


# In the detector


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step(name):
    torch.manual_seed(0)
    config = config_of(name)
    model = build_model(config, 2, load_pretrained=False).train()
    for module in model.backbone.modules():
        if isinstance(module, nn.BatchNorm2d):  # timm starts the last one of a block at zero
            nn.init.ones_(module.weight)
        if isinstance(module, torchvision.ops.StochasticDepth):  # it may drop both images
            module.p = 0.0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.001)
    targets = make_targets([[[8, 8, 72, 80]], [[20, 4, 60, 90]]], [[0], [1]], size=(96, 96))
    losses = build_criterion(config)(model(torch.randn(2, 3, 96, 96)), targets)
    sum(losses.values()).backward()
    # A picture of 96 pixels has no object for the coarsest levels: zeros in the head are right.
    trained = [(k, p) for k, p in model.named_parameters() if p.requires_grad]
    without = [k for k, p in trained if p.grad is None]
    zero = [k for k, p in trained if k.startswith("backbone") and not p.grad.any()]
    assert without == [] and zero == []
    before = {k: v.clone() for k, v in model.named_parameters()}
    optimizer.step()
    moved = {k for k, p in model.named_parameters() if not torch.equal(before[k], p)}
    trains = {k for k, p in model.named_parameters() if p.requires_grad}
    assert moved <= trains and any(k.startswith("backbone.") for k in moved)


@pytest.mark.parametrize("name", ["timm/convnext_atto", "torchvision/mobilenet_v3_small"])
def test_copies_layouts_and_exports_are_the_model(name):
    model = build_model(config_of(name), 2, load_pretrained=False).eval()
    images = torch.randn(1, 3, 96, 96)

    class Plain(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model.tensors(images)[0][:2]

    with torch.no_grad():
        expected = Plain(model)(images)
        last = copy.deepcopy(model).to(memory_format=torch.channels_last)
        others = {
            "copied": Plain(copy.deepcopy(model)),
            "exported": torch.export.export(Plain(model), (images,)).module(),
            "channels last": Plain(last),
        }
        for how, other in others.items():
            layout = torch.channels_last if how == "channels last" else torch.contiguous_format
            for a, b in zip(other(images.to(memory_format=layout)), expected, strict=True):
                assert torch.allclose(a, b, atol=1e-4), how
    fresh = build_model(config_of(name), 2, load_pretrained=False).eval()
    fresh.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(Plain(fresh)(images)[0], expected[0])


# Refusals


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm/vit_tiny_patch16_224", ["Input height (96)", "224 x 224", "strides 16."]),
        ("timm/xcit_nano_12_p8_224", ["gives features of strides 8;", "needs 8, 16 and 32"]),
        ("torchvision/maxvit_t", ["can not read", "224 x 224", "strides 4, 8, 16, 32."]),
        ("torchvision/squeezenet1_1", ["strides none", "needs 8, 16 and 32"]),
        ("timm/resnet19", ["unknown", "did you mean 'timm/resnet18'?"]),
        ("timm/resnet18.a9_in1k", ["tag", "did you mean 'timm/resnet18.a"]),
        ("torchvision/resnet19", ["unknown", "did you mean 'torchvision/resnet18'?"]),
        ("torchvision/fcn_resnet50", ["unknown"]),  # a segmentation network
        ("tim/resnet18", ["did you mean 'resnet18'?", "timm/NAME, torchvision/NAME"]),
    ],
)
def test_refused_names_say_why(name, words):
    with pytest.raises(UserError) as caught:
        build_model(config_of(name), 2, load_pretrained=False)
    assert all(word in str(caught.value) for word in [name, *words]), caught.value


def test_without_timm_the_message_is_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError) as caught:
        build_model(config_of("timm/resnet18"), 2)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("pip install 'gfl-detection[timm]'")
    build_model(config_of("torchvision/mobilenet_v3_small"), 2, load_pretrained=False)


# Weights


def whole(name: str, **options) -> nn.Module:
    library, _, short = name.partition("/")
    if library == "timm":
        return timm.create_model(short, **options)
    return torchvision.models.get_model(short, weights=None, **options)


def assert_filled(model, state: dict) -> None:
    """Every value of the backbone is that of the file; timm joins some names with underscores."""
    flat = {key.replace(".", "_"): value for key, value in state.items()}
    ours = model.backbone.body.state_dict()
    assert len(ours) > 20
    assert all(torch.equal(value, flat[key.replace(".", "_")]) for key, value in ours.items())


@pytest.mark.parametrize("name", ["timm/convnext_atto", "torchvision/mobilenet_v3_small"])
def test_a_file_of_the_whole_network_fills_the_backbone(name, tmp_path):
    network = whole(name, num_classes=7)  # not the classifier's shape, which does not matter
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = config_of(name, pretrained=str(tmp_path / "w.pth"))
    assert_filled(build_model(config, 2), network.state_dict())


def test_a_safetensors_file_fills_the_backbone(tmp_path):
    from safetensors.torch import save_file

    network = whole("timm/convnext_atto")
    save_file(network.state_dict(), tmp_path / "model.safetensors")
    config = config_of("timm/convnext_atto", pretrained=str(tmp_path / "model.safetensors"))
    assert_filled(build_model(config, 2), network.state_dict())
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(UserError, match="can not be read as safetensors"):
        build_model(config, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("layer3.0.conv1.weight"), "Missing.*layer3.0.conv1.weight"),
        (lambda state: state.update(other=torch.zeros(1)), "unexpected other"),
        (lambda state: state.update({"conv1.weight": torch.zeros(2)}), "size mismatch.*conv1"),
        (lambda state: state.pop("fc.weight"), None),
    ],
)
@pytest.mark.parametrize("name", ["timm/resnet18", "torchvision/resnet18"])
def test_all_but_the_classifier_is_strict(name, change, message, tmp_path):
    state = dict(whole(name).state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    config = config_of(name, pretrained=str(tmp_path / "w.pth"))
    if message is None:
        build_model(config, 2)
        return
    with pytest.raises(UserError, match=f"(?s)w.pth does not hold weights of {name}.*{message}"):
        build_model(config, 2)


def test_published_torchvision_weights_come_from_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    network = whole("torchvision/mobilenet_v3_small")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(network.state_dict(), folder / "mobilenet_v3_small-047dcff4.pth")
    model = build_model(config_of("torchvision/mobilenet_v3_small"), 2)
    assert_filled(model, network.state_dict())


def test_offline_torchvision_names_the_file_to_place(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError) as caught:
        build_model(config_of("torchvision/mobilenet_v3_small"), 2)
    words = ["Network is unreachable", "mobilenet_v3_small-047dcff4.pth", str(tmp_path)]
    words += ["pretrained=FILE", "pretrained=false"]
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("resnet18", "resnet18-f37072fd.pth"),
        ("torchvision/mobilenet_v3_small", "mobilenet_v3_small-047dcff4.pth"),
    ],
)
def test_published_weights_that_are_cut_off_in_the_cache_are_named(
    name, file, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save({"conv1.weight": torch.zeros(4)}, folder / file)
    (folder / file).write_bytes((folder / file).read_bytes()[:200])
    with pytest.raises(UserError, match=f"could not be downloaded or read .*Put {file} .*in place"):
        build_model(config_of(name), 2)


def test_published_timm_weights_or_the_way_to_them(monkeypatch):
    network = whole("timm/convnext_atto")
    source = timm.models._builder
    state = network.state_dict()
    monkeypatch.setattr(source, "load_state_dict_from_hf", lambda *a, **k: dict(state))
    assert_filled(build_model(config_of("timm/convnext_atto"), 2), state)

    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(source, "load_state_dict_from_hf", offline)
    with pytest.raises(UserError) as caught:
        build_model(config_of("timm/convnext_atto"), 2)
    words = ["Network is unreachable", "https://huggingface.co/timm/convnext_atto.d2_in1k"]
    words += ["timm.create_model('convnext_atto', pretrained=True)", "pretrained=FILE"]
    assert all(word in str(caught.value) for word in [*words, "pretrained=false"]), caught.value
