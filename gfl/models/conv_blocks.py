"""Convolution, norm and activation in a row: what light necks and heads are made of."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Maps of fewer elements are kept for the backward: to compute one again takes the host longer than
# the memory is worth.
FEWEST_RECOMPUTED = 2**20

ACTIVATIONS = {"relu": nn.ReLU, "hardswish": nn.Hardswish, "silu": nn.SiLU}


@dataclass(frozen=True)
class BlockOptions:
    """How a block is made.

    Attributes:
        conv: "plain" is one convolution; "depthwise" is one channel by channel, then a 1x1, each
            with its norm and activation.
        kernel: side of the (plain or channel by channel) convolution.
        norm: "group" (32 groups) or "batch".
        activation: a name of `ACTIVATIONS`.
        norm_levels: above 0, that many norms beside each other behind one convolution, of which
            each pyramid level uses its own; 0 is one norm for all.

    Source: depthwise separable blocks as in PicoDet (arXiv 2111.00902) and RTMDet (arXiv
    2212.07784), 5x5 in both; norms of each level behind shared convolutions as in RTMDet's head.
    """

    conv: str = "plain"
    kernel: int = 3
    norm: str = "group"
    activation: str = "relu"
    norm_levels: int = 0


class ConvNormAct(nn.Module):
    """Convolution without bias, norm, activation.

    Args:
        in_channels, channels: of input and output.
        options: its `conv` is not looked at.
        kernel: side of the convolution; the default is that of `options`.
        stride: 1 or 2.
        groups: of the convolution.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        options: BlockOptions = BlockOptions(),
        kernel: int | None = None,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        kernel = kernel or options.kernel
        self.conv = nn.Conv2d(
            in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False
        )
        norms = [_norm(options.norm, channels) for _ in range(max(options.norm_levels, 1))]
        self.norm = nn.ModuleList(norms) if options.norm_levels else norms[0]
        self.activation = ACTIVATIONS[options.activation](inplace=True)

    def forward(self, x: Tensor, level: int = 0) -> Tensor:
        """(B, in_channels, h, w) to (B, channels, h / stride, w / stride); `level` from 0."""
        return self.finish(self.convolve(x, level), level)

    def convolve(self, x: Tensor, level: int) -> Tensor:
        """What `finish` makes the block's output of."""
        return _of(level, self.conv)(x)

    def finish(self, x: Tensor, level: int) -> Tensor:
        """Norm and activation."""
        return self.activation(_of(level, self.norm)(x))

    @torch.no_grad()
    def fold(self) -> None:
        """Move batch norms into the convolution, for good; with norms of levels, into one each."""
        norms = list(self.norm) if isinstance(self.norm, nn.ModuleList) else [self.norm]
        if not all(isinstance(norm, nn.modules.batchnorm._BatchNorm) for norm in norms):
            return
        convs = [
            nn.utils.fuse_conv_bn_eval(self.conv.eval(), norm.eval()).requires_grad_(False)
            for norm in norms
        ]
        self.conv = nn.ModuleList(convs) if isinstance(self.norm, nn.ModuleList) else convs[0]
        self.norm = nn.Identity()


def block(in_channels: int, channels: int, options: BlockOptions, stride: int = 1) -> list:
    """The one `ConvNormAct` of a plain block, or the two of a depthwise one."""
    if options.conv == "plain":
        return [ConvNormAct(in_channels, channels, options, stride=stride)]
    return [
        ConvNormAct(in_channels, in_channels, options, stride=stride, groups=in_channels),
        ConvNormAct(in_channels, channels, options, kernel=1),
    ]


class Tower(nn.Sequential):
    """Blocks one after the other, the same convolutions for every level.

    In training with group norms, a convolution's output is kept for the backward, but not what norm
    and activation make of it: that is computed again, which costs little and halves the memory of
    large maps.

    Args:
        widths: channels of the input and of each block's output.
        options: of the blocks.
    """

    def __init__(self, widths: list[int], options: BlockOptions):
        super().__init__()
        for pair in zip(widths, widths[1:], strict=False):
            for part in block(*pair, options):
                nn.init.normal_(part.conv.weight, std=0.01)
                self.append(part)

    def forward(self, levels: list[Tensor]) -> list[Tensor]:
        """Levels of (B, widths[0], h, w) to levels of (B, widths[-1], h, w)."""
        return [self._one(x, number) for number, x in enumerate(levels)]

    def _one(self, x: Tensor, level: int) -> Tensor:
        parts = list(self)
        x = parts[0].convolve(x, level)
        for before, after in pairwise(parts):
            x = self._between(before, after, x, level)
        return parts[-1].finish(x, level)

    def _between(self, before: ConvNormAct, after: ConvNormAct, x: Tensor, level: int) -> Tensor:
        """From one convolution's output to the next one's."""

        def work(x: Tensor) -> Tensor:
            return after.convolve(before.finish(x, level), level)

        large = x.numel() >= FEWEST_RECOMPUTED and isinstance(before.norm, nn.GroupNorm)
        learns = self.training and torch.is_grad_enabled()
        if large and learns and not torch.compiler.is_compiling():
            # The second time it stops before the convolution, whose inputs are all it is asked for.
            return checkpoint(work, x, use_reentrant=False, preserve_rng_state=False)
        return work(x)


def _norm(name: str, channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels) if name == "group" else nn.BatchNorm2d(channels)


def _of(level: int, part: nn.Module) -> nn.Module:
    return part[level] if isinstance(part, nn.ModuleList) else part
