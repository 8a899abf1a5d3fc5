"""Frozen batch norms that the convolutions before them do."""

import copy

import pytest
import torch
from torch import nn

import gfl.models.frozen_norm
from gfl.models.backbone import ResNet
from gfl.models.folding import folded
from gfl.models.frozen_norm import AppliedNorm, NormedConv2d, bake, fold_frozen_norms


def two_layers(bias: bool = False) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 1, 1, bias=bias), nn.BatchNorm2d(1, eps=0.0)).eval()


def disturb_norms(network: nn.Module) -> nn.Module:
    """Statistics and weights as a trained network has them, none 0 or 1."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return network


def unfolded(network: nn.Module) -> nn.Module:
    """A copy that computes convolution and norm one after the other."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, NormedConv2d):
            module.__class__ = nn.Conv2d
        elif isinstance(module, AppliedNorm):
            module.__class__ = nn.BatchNorm2d
    return network


def gradients(network: nn.Module, images: torch.Tensor) -> tuple[list, dict]:
    network.zero_grad(set_to_none=True)
    outputs = network(images)
    torch.manual_seed(1)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    return outputs, {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


def test_a_hand_worked_pixel():
    network = two_layers()
    conv, norm = network
    conv.weight.data.fill_(2)
    norm.running_mean.fill_(1)
    norm.running_var.fill_(4)
    norm.weight.data.fill_(3)
    norm.bias.data.fill_(5)
    fold_frozen_norms(network)
    x = torch.tensor([[[[11.0]]]], requires_grad=True)
    y = network(x)
    assert y.item() == (2 * 11 - 1) / 2 * 3 + 5
    y.backward()
    assert x.grad.item() == 2 / 2 * 3
    assert conv.weight.grad.item() == 11 / 2 * 3
    assert norm.weight.grad.item() == (2 * 11 - 1) / 2
    assert norm.bias.grad.item() == 1


def test_a_convolution_with_a_bias_and_its_norm_stay_two():
    network = two_layers(bias=True)
    fold_frozen_norms(network)
    assert [type(module) for module in network] == [nn.Conv2d, nn.BatchNorm2d]


@pytest.mark.parametrize("trained", ["weight", "bias", "neither"])
def test_norms_of_which_a_part_trains(trained):
    """Each gradient is that of two layers, whichever of the others is wanted."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3)).double().eval()
    disturb_norms(network)
    network[1].requires_grad_(False)
    if trained != "neither":
        getattr(network[1], trained).requires_grad_(True)
    plain = copy.deepcopy(network)
    fold_frozen_norms(network)
    x = torch.randn(2, 2, 5, 5).double()
    _, found = gradients(network, x)
    _, expected = gradients(plain, x)
    assert set(found) == {"0.weight", f"1.{trained}"} - {"1.neither"}
    torch.testing.assert_close(found, expected)


def test_scale_gradients_of_large_weights_are_summed_in_parts(monkeypatch):
    torch.manual_seed(0)
    a, b = torch.randn(7, 2, 3, 3).double(), torch.randn(7, 2, 3, 3).double()
    whole = gfl.models.frozen_norm._dot(a, b)
    torch.testing.assert_close(whole, (a * b).flatten(1).sum(1))
    for most in (1, 18, 40):
        monkeypatch.setattr(gfl.models.frozen_norm, "MOST_AT_ONCE", most)
        torch.testing.assert_close(gfl.models.frozen_norm._dot(a, b), whole)


def test_frozen_stages_go_forward_channels_last_and_the_others_stay_as_images_are():
    network = disturb_norms(ResNet("resnet18", frozen_stages=1)).train()
    images = torch.randn(2, 3, 64, 64)
    seen = {}
    for name in ("layer1", "layer2"):
        module = network.get_submodule(f"{name}.0.conv1")
        module.register_forward_hook(
            lambda _module, inputs, _output, name=name: seen.update({name: inputs[0]})
        )
    outputs = network(images)
    assert seen["layer1"].is_contiguous(memory_format=torch.channels_last)
    assert not seen["layer1"].is_contiguous() and seen["layer2"].is_contiguous()
    network(images.contiguous(memory_format=torch.channels_last))
    assert not seen["layer2"].is_contiguous()
    all_frozen = ResNet("resnet18", frozen_stages=3).train()
    assert all(feature.is_contiguous() for feature in all_frozen(images))
    network.eval()
    torch.testing.assert_close(network(images), outputs, rtol=1e-4, atol=1e-4)
    assert seen["layer1"].is_contiguous()


@pytest.mark.parametrize(
    ("deformable", "much_smaller"),
    [((), 0), ((), 4), ((4,), 10**9)],
    ids=["all norms left alone", "some", "none, deformable"],
)
def test_outputs_and_gradients_are_those_of_the_two_layers(deformable, much_smaller, monkeypatch):
    monkeypatch.setattr(gfl.models.frozen_norm, "MUCH_SMALLER", much_smaller)
    torch.manual_seed(0)
    network = disturb_norms(ResNet("resnet18", deformable_stages=deformable)).double().train()
    plain = unfolded(network)
    assert sum(isinstance(m, NormedConv2d) for m in network.modules()) == 20 - 2 * len(deformable)
    images = torch.randn(1, 3, 64, 64).double()
    outputs, found = gradients(network, images)
    expected_outputs, expected = gradients(plain, images)
    torch.testing.assert_close(outputs, expected_outputs)
    assert found.keys() == expected.keys() and len(found) > 30
    torch.testing.assert_close(found, expected)
    assert network.state_dict().keys() == plain.state_dict().keys()


def test_res2net_is_folded_for_inference():
    torch.manual_seed(0)
    network = disturb_norms(ResNet("res2net101_v1d")).eval()
    fast = folded(network)
    assert fast is not network
    kinds = {type(module) for module in fast.modules()}
    assert nn.Conv2d in kinds and not kinds & {NormedConv2d, AppliedNorm, nn.BatchNorm2d}
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(fast(images), network(images), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-4 * float(other.abs().max()))


def test_res2net_folds_all_but_the_deformable():
    network = ResNet("res2net101_v1d", frozen_stages=0)
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and all(isinstance(norm, AppliedNorm) for norm in norms)


def test_a_single_pixel_with_a_stride_gives_no_gradient_to_what_it_skips():
    torch.manual_seed(0)
    layers = nn.Conv2d(2, 3, 1, stride=(2, 3), bias=False), nn.BatchNorm2d(3)
    network = disturb_norms(nn.Sequential(*layers)).double().eval()
    fold_frozen_norms(network)
    results = []
    for either in (network, unfolded(network)):
        torch.manual_seed(1)
        x = torch.randn(2, 2, 5, 7, dtype=torch.float64, requires_grad=True)
        output = either(x)
        weights = torch.randn_like(output)
        of_x, of_weight = torch.autograd.grad((output * weights).sum(), (x, either[0].weight))
        results.append((output, of_x, of_weight))
    for own, expected in zip(*results, strict=True):
        torch.testing.assert_close(own, expected)
    assert results[0][0].shape == (2, 3, 3, 3)
    reached = torch.zeros(5, 7, dtype=torch.bool)
    reached[::2, ::3] = True
    assert torch.equal((results[0][1] != 0).any(0).any(0), reached)


def test_only_inputs_are_kept_for_the_backward():
    """Neither the convolution's output nor the product of weight and scale."""
    network = two_layers()
    network[0] = nn.Conv2d(1, 8, 3, padding=1, bias=False)
    network[1] = nn.BatchNorm2d(8).eval()
    fold_frozen_norms(network)
    kept = []

    def keep(tensor):
        kept.append(tuple(tensor.shape))
        return tensor

    x = torch.randn(1, 1, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(x)
    assert (1, 1, 16, 16) in kept
    assert all(shape not in kept for shape in [(1, 8, 16, 16), (1, 8, 14, 14)])
    assert kept.count((8, 1, 3, 3)) == 1  # the weight itself


@pytest.mark.parametrize("much_smaller", [0, 10**9])
def test_half_precision_computes_in_half(much_smaller, monkeypatch):
    monkeypatch.setattr(gfl.models.frozen_norm, "MUCH_SMALLER", much_smaller)
    network = disturb_norms(ResNet("resnet18")).train()
    plain = unfolded(network)
    images = torch.randn(1, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, found = gradients(network, images)
        expected_outputs, expected = gradients(plain, images)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    exact, _ = gradients(plain, images)
    for output, other, truth in zip(outputs, expected_outputs, exact, strict=True):
        error = (output - truth).abs().mean()
        assert error <= 1.5 * (other - truth).abs().mean()
    assert all(gradient.dtype == torch.float32 for gradient in found.values())
    weights = [found[name].flatten() for name in found]
    others = [expected[name].flatten() for name in found]
    assert torch.cosine_similarity(torch.cat(weights), torch.cat(others), dim=0) > 0.98


def test_norms_behind_outputs_much_smaller_than_weights_are_left_alone():
    """3 x 4 places of 2 images beside 16 x 9 and 10 x 9 weights a channel."""
    for channels, left in ((16, True), (10, False)):
        network = nn.Sequential(
            nn.Conv2d(channels, 5, 3, stride=(2, 1), padding=1, bias=False), nn.BatchNorm2d(5)
        ).eval()
        fold_frozen_norms(network)
        y = network(torch.randn(2, channels, 6, 4))
        assert y.shape == (2, 5, 3, 4)
        assert ("BatchNorm" in y.grad_fn.name()) == left


def test_learned_statistics_are_not_folded():
    assert not any(isinstance(m, NormedConv2d) for m in ResNet("resnet18", norm="batch").modules())


def test_a_copy_has_its_own_norms():
    network = two_layers()
    fold_frozen_norms(network)
    copied = copy.deepcopy(network)
    copied[1].weight.data.fill_(0)
    copied[1].bias.data.fill_(9)
    x = torch.ones(1, 1, 1, 1)
    assert copied(x).item() == 9 and network(x).item() != 9


def test_baked_for_inference():
    network = disturb_norms(ResNet("resnet18")).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        found = folded(network)(images)
        baked = copy.deepcopy(network)
        bake(baked)
        torch.testing.assert_close(baked(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in baked.modules())
    assert any(isinstance(m, AppliedNorm) for m in network.modules()), "the original is changed"
