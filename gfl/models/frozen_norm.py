"""Batch norms whose statistics are frozen, done by the convolutions before them.

With fixed statistics a batch norm is a factor and a summand of each channel, which the convolution
takes into its weights: norm(conv(x, W)) = conv(x, W * scale) + shift. Weights, gradients and names
of parameters stay those of the two layers, but no picture-sized tensor is kept for the norm's
backward, and none is read and written by it. In training, where the output is much smaller than the
weights, the norm is cheaper behind the convolution, and done there.
"""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products of weights and gradients that are held at one time.
MOST_AT_ONCE = 2**20
# An output that has so many times fewer elements than the weights is kept for the norm's backward:
# multiplying the weights would take longer than the memory is worth.
MUCH_SMALLER = 4


class NormedConv2d(nn.Conv2d):
    """A convolution without bias that does the `AppliedNorm` behind it too; that keeps its own."""

    norm: tuple["AppliedNorm"]  # in a tuple, so that it is not a part of this module too

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(channels,) factor and summand of each output channel."""
        norm = self.norm[0]
        return _scale_and_shift(norm.weight, norm.bias, norm.running_mean, norm.rstd())

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm[0]
        if torch.is_grad_enabled() and (self.weight.requires_grad or x.requires_grad):
            x, stride = self._looked_at(x)
            settings = stride, self.padding, self.dilation, self.groups
            if self._has_small_output(x, stride):
                return norm.apply_to(F.conv2d(x, self.weight, None, *settings))
            return _NormedConvolution.apply(
                x, self.weight, norm.weight, norm.bias, norm.running_mean, norm.rstd(), settings
            )
        scale, shift = self.scale_and_shift()
        return self._conv_forward(x, _scaled(self.weight, scale), shift)

    def _looked_at(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """The part of x that is looked at, and the stride over it.

        On a CPU the backward of a single pixel with a stride, all of x before it, takes several
        times the memory of x, and longer.
        """
        is_sparse = self.kernel_size == (1, 1) and self.stride != (1, 1)
        if not is_sparse or x.device.type != "cpu":
            return x, self.stride
        return x[:, :, :: self.stride[0], :: self.stride[1]], (1, 1)

    def _has_small_output(self, x: Tensor, stride: tuple) -> bool:
        """Whether the output is much smaller than the weights, which then are left as they are."""
        places = len(x) * x.shape[2] * x.shape[3] // math.prod(stride)
        return places * MUCH_SMALLER <= self.weight.numel() // self.out_channels


def _scale_and_shift(
    gain: Tensor, bias: Tensor, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor]:
    scale = gain * rstd
    return scale, torch.addcmul(bias, mean, scale, value=-1)


class _NormedConvolution(torch.autograd.Function):
    """Convolution and norm, keeping `weight`, not its product with the scale, for the backward.

    One function for both, since each small operation that autograd knows of costs time twice.
    """

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight: Tensor,
        gain: Tensor,
        bias: Tensor,
        mean: Tensor,
        rstd: Tensor,
        settings: tuple,
    ):
        dtype = x.dtype
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        x = x.to(dtype)
        scale, shift = _scale_and_shift(gain, bias, mean, rstd)
        ctx.save_for_backward(x, weight, scale, mean, rstd)
        ctx.settings = settings
        stride, padding, dilation, groups = settings
        product = _scaled(weight, scale).to(dtype)
        return torch.conv2d(x, product, shift.to(dtype), stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        x, weight, scale, mean, rstd = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.settings
        needs_x, needs_weight, needs_gain, needs_bias = ctx.needs_input_grad[:4]
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
            [needs_x, needs_weight or needs_gain, needs_gain or needs_bias],
        )
        del product
        of_weight = of_gain = None
        if of_shift is not None:
            of_shift = of_shift.to(scale.dtype)
        if of_product is not None:
            of_product = of_product.to(weight.dtype)
            if needs_gain:
                of_scale = torch.addcmul(_dot(of_product, weight), mean, of_shift, value=-1)
                of_gain = of_scale.mul_(rstd)
            of_weight = of_product.mul_(scale.view(-1, 1, 1, 1)) if needs_weight else None
        return of_x, of_weight, of_gain, of_shift if needs_bias else None, None, None, None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """(channels,) sums of a * b over all but the first dimension, in parts of at most a few MiB."""
    rows = max(1, MOST_AT_ONCE * len(a) // a.numel())
    if rows >= len(a):
        return (a * b).sum((1, 2, 3))
    parts = zip(a.split(rows), b.split(rows), strict=True)
    return torch.cat([(x * y).sum((1, 2, 3)) for x, y in parts])


def _scaled(weight: Tensor, scale: Tensor) -> Tensor:
    return weight * scale.view(-1, 1, 1, 1)


class AppliedNorm(nn.BatchNorm2d):
    """Holds the parameters of a frozen batch norm that a `NormedConv2d` has done already."""

    def rstd(self) -> Tensor:
        """(channels,) one over the standard deviation."""
        return (self.running_var + self.eps).rsqrt()

    def apply_to(self, x: Tensor) -> Tensor:
        """The norm of a (B, C, h, w) output that a convolution has left to it."""
        parameters = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *parameters, training=False, eps=self.eps)

    def forward(self, x: Tensor) -> Tensor:
        return x


def fold_frozen_norms(network: nn.Module) -> None:
    """Let the plain convolutions of a residual network do the batch norms behind them, for good.

    Deformable convolutions and those with a bias, and their norms, stay two.
    """
    for conv, norm in list(_pairs(network)):
        if type(conv) is nn.Conv2d and conv.bias is None and type(norm) is nn.BatchNorm2d:
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
