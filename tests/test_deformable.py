"""Deformable convolutions and the backbones made of them."""

import pytest
import torch
from torch import nn

from gfl.models.backbone import ResNet, load_imagenet_weights
from gfl.models.deformable import DeformableConv2d
from gfl.models.res2net import Bottle2neck


def convolution(stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(4, 6, 3, stride, padding=1, groups=groups, bias=False)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("version", "factor"), [(1, 1.0), (2, 0.5)])
def test_without_offsets_it_is_the_plain_convolution(version, factor, groups, stride):
    """Version 2's factors start at sigmoid(0) = 0.5."""
    plain = convolution(stride, groups)
    x = torch.randn(2, 4, 9, 8)
    got = DeformableConv2d(plain, version)(x)
    torch.testing.assert_close(got, factor * plain(x), rtol=1e-5, atol=1e-6)


def test_offset_channels_tell_the_version():
    assert DeformableConv2d(convolution(), 1).conv_offset.out_channels == 18
    assert DeformableConv2d(convolution(), 2).conv_offset.out_channels == 27


def test_offsets_are_y_then_x_of_each_point():
    """A shift of one row for all nine points, hand-worked on the centre weight alone."""
    plain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    with torch.no_grad():
        plain.weight.zero_()
        plain.weight[0, 0, 1, 1] = 1.0
    x = torch.arange(12.0).view(1, 1, 3, 4)
    for axis, want in ((0, x[0, 0, 2]), (1, x[0, 0, 1].roll(-1))):
        deformable = DeformableConv2d(plain, 1)
        with torch.no_grad():
            deformable.conv_offset.bias[axis::2] = 1.0
        row = deformable(x)[0, 0, 1]
        valid = slice(0, 4 if axis == 0 else 3)
        torch.testing.assert_close(row[valid], want[valid])


def test_factors_scale_each_point():
    plain = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    nn.init.ones_(plain.weight)
    deformable = DeformableConv2d(plain, 2)
    with torch.no_grad():
        deformable.conv_offset.bias[18:] = -50.0
        deformable.conv_offset.bias[18 + 4] = 50.0  # only the centre counts
    x = torch.randn(1, 1, 5, 5)
    torch.testing.assert_close(deformable(x), x)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "res2net101_v1d"])
def test_only_the_stages_asked_for_are_deformable(name):
    with torch.device("meta"):
        net = ResNet(name, deformable_stages=(4, 5), deformable_version=1)
    with_offsets = {
        part.split(".")[0] for part, m in net.named_modules() if isinstance(m, DeformableConv2d)
    }
    assert with_offsets == {"layer3", "layer4"}
    threes = [
        part for part, m in net.layer3.named_modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3) and not part.endswith("offset")
    ]  # fmt: skip
    deformable = [p for p, m in net.layer3.named_modules() if isinstance(m, DeformableConv2d)]
    if name != "resnet18":  # whose blocks have two, of which the second is replaced
        assert threes == deformable


def test_imagenet_weights_fit_a_deformable_backbone(tmp_path):
    """Its offsets, which no classifier has, stay 0, so that it starts as the plain network."""
    plain = ResNet("resnet18").eval()
    torch.save(plain.state_dict(), tmp_path / "r18.pth")
    net = ResNet("resnet18", deformable_stages=(3, 4, 5), deformable_version=1).eval()
    load_imagenet_weights(net, "resnet18", str(tmp_path / "r18.pth"))
    images = torch.randn(1, 3, 64, 64)
    for got, want in zip(net(images), plain(images), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_res2net_is_timms_but_for_the_first_stages_pool():
    """mmdet pools the fourth group only where the block has a stride."""
    timm = pytest.importorskip("timm")
    theirs = timm.create_model("res2net101d").eval()
    net = ResNet("res2net101_v1d").eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")}
    net.load_state_dict(state)
    theirs.layer1[0].pool = nn.Identity()
    images = torch.randn(1, 3, 64, 64)
    x = theirs.maxpool(theirs.act1(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        for got, stage in zip(net(images), ("layer1", "layer2", "layer3", "layer4"), strict=True):
            x = getattr(theirs, stage)(x)
            torch.testing.assert_close(got, x)


def test_res2net_groups_are_connected_after_the_first_block():
    """With identity 3x3 convolutions, hand-worked: group i is the sum of groups 0 ... i."""
    block = Bottle2neck(64, 16, 1, first=False).eval()
    for conv in block.convs:
        nn.init.dirac_(conv.weight)
    nn.init.dirac_(block.conv1.weight)
    seen = []
    block.conv3.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.rand(1, 64, 2, 2)
    block(x)
    width = block.width
    g = x[:, : 4 * width].split(width, 1)
    want = torch.cat((g[0], g[0] + g[1], g[0] + g[1] + g[2], g[3]), 1)
    torch.testing.assert_close(seen[0], want, rtol=1e-3, atol=1e-4)  # batch-norm's epsilon
