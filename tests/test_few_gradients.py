"""The convolution whose backward looks at the places with a gradient alone."""

import pytest
import torch
from builders import make_targets, random_boxes, tiny_config, tiny_values
from torch import nn

from gfl.build import build_criterion, build_model
from gfl.config import merge_values, parse_config
from gfl.models import few_gradients
from gfl.models.few_gradients import conv_of_few_gradients


def gradients(conv: nn.Module, x: torch.Tensor, output: torch.Tensor, of_output: torch.Tensor):
    return torch.autograd.grad(output, (x, conv.weight, conv.bias), of_output)


def test_one_place_by_hand():
    """Weight 1 to 9: the patch around the place gets them, the weight gets the patch."""
    conv = nn.Conv2d(1, 1, 3, padding=1)
    with torch.no_grad():
        conv.weight.copy_(torch.arange(1.0, 10.0).view(1, 1, 3, 3))
    x = torch.arange(12.0).view(1, 1, 3, 4).requires_grad_()
    of_output = torch.zeros(1, 1, 3, 4)
    of_output[0, 0, 0, 1] = 2.0
    of_x, of_weight, of_bias = gradients(conv, x, conv_of_few_gradients(conv, x, True), of_output)
    assert of_x[0, 0].tolist() == [[8, 10, 12, 0], [14, 16, 18, 0], [0, 0, 0, 0]]
    assert of_weight[0, 0].tolist() == [[0, 0, 0], [0, 2, 4], [8, 10, 12]]
    assert of_bias.tolist() == [2]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 9, 200])
def test_gradients_are_those_of_the_plain_convolution(count, kernel, layout):
    torch.manual_seed(0)
    conv = nn.Conv2d(5, 7, kernel, padding=kernel // 2).double()
    x = torch.randn(2, 5, 11, 9, dtype=torch.double).contiguous(memory_format=layout)
    x.requires_grad_()
    of_output = torch.zeros(2, 7, 11, 9, dtype=torch.double)
    places = torch.randperm(2 * 11 * 9)[:count]  # corners and borders among them
    of_output.permute(0, 2, 3, 1).flatten(0, 2)[places] = torch.randn(len(places), 7).double()
    output, plain = conv_of_few_gradients(conv, x, False), conv(x)
    assert torch.equal(output, plain)
    got, wanted = gradients(conv, x, output, of_output), gradients(conv, x, plain, of_output)
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
    assert got[0].is_contiguous(memory_format=layout)


def test_few_places_do_without_the_plain_backward(monkeypatch):
    """And many have it."""
    monkeypatch.setattr(few_gradients, "_everywhere", lambda *_: pytest.fail("all places"))
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 8, 8, requires_grad=True)
    of_output = torch.zeros(1, 3, 8, 8)
    of_output[0, :, 0] = 1.0  # an eighth of the places
    gradients(conv, x, conv_of_few_gradients(conv, x, False), of_output)
    of_output[0, :, 1, 0] = 1.0
    with pytest.raises(pytest.fail.Exception, match="all places"):
        gradients(conv, x, conv_of_few_gradients(conv, x, False), of_output)


def test_a_gradient_that_is_not_finite_is_passed_on():
    conv, x = nn.Conv2d(2, 3, 3, padding=1), torch.randn(1, 2, 8, 8, requires_grad=True)
    of_output = torch.zeros(1, 3, 8, 8)
    of_output[0, 1, 2, 2] = float("nan")
    found = gradients(conv, x, conv_of_few_gradients(conv, x, True), of_output)
    assert all(value.isnan().any() for value in found)


def test_what_comes_before_is_left_out_where_nothing_has_a_gradient():
    conv, before = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(2, 2, 1)
    for may_have_none in (True, False):
        output = conv_of_few_gradients(conv, before(torch.randn(1, 2, 4, 4)), may_have_none)
        (output * 0).sum().backward()
        for parameter in (*conv.parameters(), *before.parameters()):
            assert (parameter.grad is None) == may_have_none
            assert may_have_none or not parameter.grad.any()


def loss_and_gradients(config, boxes):
    torch.manual_seed(0)
    model = build_model(config, 3, load_pretrained=False).train()
    images = torch.randn(len(boxes), 3, 128, 160)
    targets = make_targets(boxes, size=(128, 160))
    losses = build_criterion(config)(model(images), targets)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


LIGHT_HEAD = {"conv": "depthwise", "norm": "batch", "statistics": "per_level"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"model": {"quality": "iou_branch"}},
        {"model": {"quality": "distribution_guided"}},
        {"model": {"box": "dirac"}, "loss": {"dfl_weight": 0}},
        {"model": {"head": LIGHT_HEAD}},
    ],
    ids=str,
)
@pytest.mark.parametrize("boxes", ["small", "none", "both"])
def test_a_network_has_the_gradients_of_plain_convolutions(changes, boxes, monkeypatch):
    """Small objects leave the upper levels without a positive."""
    config = parse_config(merge_values(tiny_values("unused"), changes))
    few = [[10.0, 10, 26, 30], [60, 60, 90, 80]]
    boxes = {"small": [few, few[:1]], "none": [[], []], "both": [few, random_boxes(5, 128, 160)]}[
        boxes
    ]
    losses, found = loss_and_gradients(config, boxes)
    monkeypatch.setattr("gfl.models.head.conv_of_few_gradients", lambda conv, x, _: conv(x))
    plain_losses, wanted = loss_and_gradients(config, boxes)
    assert losses == plain_losses
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] is not None, name
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_levels_without_a_positive_are_left_out():
    """Of the box tower: the class tower has a gradient everywhere."""
    torch.manual_seed(0)
    config = tiny_config("unused")
    model = build_model(config, 3, load_pretrained=False).train()
    seen = {"box": [], "cls": []}
    for name, tower in (("box", model.head.box_tower), ("cls", model.head.cls_tower)):
        tower[-1].activation.register_full_backward_hook(
            lambda _, __, out, name=name: seen[name].append(out[0])
        )
        tower[-1].activation.inplace = False
    targets = make_targets([[[10.0, 10, 26, 30]]], size=(128, 160))
    losses = build_criterion(config)(model(torch.randn(1, 3, 128, 160)), targets)
    sum(losses.values()).backward()
    assert len(seen["cls"]) == 5 and 1 <= len([g for g in seen["box"] if g is not None]) < 5
