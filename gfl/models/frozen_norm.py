"""Batch norms whose statistics are frozen, done by the convolutions before them.

With fixed statistics a batch norm is a factor and a summand of each channel, which the convolution
takes into its weights: norm(conv(x, W)) = conv(x, W * scale) + shift. Weights, gradients and names
of parameters stay those of the two layers, but no picture-sized tensor is kept for the norm's
backward, and none is read and written by it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Products of weights and gradients that are held at one time.
MOST_AT_ONCE = 2**19


class NormedConv2d(nn.Conv2d):
    """A convolution that does the `AppliedNorm` behind it too; that keeps its parameters."""

    norm: tuple["AppliedNorm"]  # in a tuple, so that it is not a part of this module too

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(channels,) factor and summand of each output channel."""
        norm = self.norm[0]
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - norm.running_mean * scale
        return scale, shift if self.bias is None else shift + self.bias * scale

    def forward(self, x: Tensor) -> Tensor:
        scale, shift = self.scale_and_shift()
        if torch.is_grad_enabled() and (self.weight.requires_grad or x.requires_grad):
            settings = self.stride, self.padding, self.dilation, self.groups
            return _ScaledConvolution.apply(x, self.weight, scale, shift, settings)
        return self._conv_forward(x, _scaled(self.weight, scale), shift)


class _ScaledConvolution(torch.autograd.Function):
    """conv(x, weight * scale) + shift that keeps `weight`, not the product, for the backward."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, settings: tuple):
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        ctx.save_for_backward(x, weight, scale)
        ctx.settings = settings
        stride, padding, dilation, groups = settings
        product = _scaled(weight, scale).to(dtype)
        return torch.conv2d(x, product, shift.to(dtype), stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, scale = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        needs_x, needs_weight, needs_scale, needs_shift, _ = ctx.needs_input_grad
        product = _scaled(weight, scale) if needs_x else weight  # whose values are not used then
        of_x, of_product, of_shift = torch.ops.aten.convolution_backward(
            gradient,
            x,
            product.to(x.dtype),
            [len(scale)],
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            [needs_x, needs_weight or needs_scale, needs_shift],
        )
        del product
        of_weight = of_scale = None
        if of_product is not None:
            of_product = of_product.to(weight.dtype)
            of_scale = _dot(of_product, weight) if needs_scale else None
            of_weight = of_product.mul_(scale[:, None, None, None]) if needs_weight else None
        of_shift = None if of_shift is None else of_shift.to(scale.dtype)
        return of_x, of_weight, of_scale, of_shift, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(channels,) sums of a * b over all but the first dimension, in parts of at most a few MiB."""
    rows = max(1, MOST_AT_ONCE // a[0].numel())
    parts = zip(a.split(rows), b.split(rows), strict=True)
    return torch.cat([(x * y).sum((1, 2, 3)) for x, y in parts])


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale[:, None, None, None]


class AppliedNorm(nn.BatchNorm2d):
    """Holds the parameters of a frozen batch norm that a `NormedConv2d` has done already."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def fold_frozen_norms(network: nn.Module) -> None:
    """Let the plain convolutions of a residual network do the batch norms behind them, for good.

    Deformable convolutions and their norms stay two.
    """
    for conv, norm in list(_pairs(network)):
        if type(conv) is nn.Conv2d and type(norm) is nn.BatchNorm2d:
            norm.__class__, conv.__class__ = AppliedNorm, NormedConv2d
            conv.norm = (norm,)


@torch.no_grad()
def bake(network: nn.Module) -> None:
    """Make each `NormedConv2d` a plain convolution with folded weights, for inference."""
    for module in network.modules():
        if isinstance(module, NormedConv2d):
            scale, shift = module.scale_and_shift()
            module.__class__ = nn.Conv2d
            del module.norm
            module.weight = nn.Parameter(_scaled(module.weight, scale), requires_grad=False)
            module.bias = nn.Parameter(shift, requires_grad=False)
    for module in list(network.modules()):
        for name, child in module.named_children():
            if isinstance(child, AppliedNorm):
                setattr(module, name, nn.Identity())


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """(convolution, norm of its output), as `ResNet` and `Res2Net` name or order them."""
    for module in network.modules():
        children = dict(module.named_children())
        for name, child in children.items():
            if name.startswith("conv") and f"bn{name[4:]}" in children:
                last = child[-1] if isinstance(child, nn.Sequential) else child
                yield last, children[f"bn{name[4:]}"]
        if isinstance(module, nn.Sequential):
            yield from zip(module[:-1], module[1:], strict=True)
        if "convs" in children and "bns" in children:
            yield from zip(children["convs"], children["bns"], strict=True)
