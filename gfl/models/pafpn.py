"""Path aggregation: a pyramid that also passes fine features on to coarse levels."""

import torch.nn.functional as F
from torch import Tensor, nn

from gfl.models.conv_blocks import BlockOptions, ConvNormAct, block


class PAFPN(nn.Module):
    """Top-down, then bottom-up; levels meet by addition, and a block follows each meeting.

    Departures: PicoDet and RTMDet concatenate where levels meet and have several blocks there
    (CSP), which takes more parameters; levels behind the last are strided blocks on its output, as
    in `gfl.models.neck.FPN`.

    Args:
        in_channels: channels of the backbone's outputs, finest first.
        in_strides: their strides, pixels.
        channels: channels of every output.
        num_extra: strided levels after the last.
        blocks: how the blocks are made; the 1x1 laterals take norm and activation from it.

    Attributes:
        strides: stride of each output level, pixels.

    Source: PANet (arXiv 1803.01534, section 3.1: addition); depthwise blocks as in NanoDet-Plus,
    PicoDet (arXiv 2111.00902) and RTMDet (arXiv 2212.07784).
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        channels: int = 96,
        num_extra: int = 1,
        blocks: BlockOptions = BlockOptions("depthwise", 5, "batch"),
    ):
        super().__init__()

        def stack(count: int, stride: int = 1) -> nn.ModuleList:
            made = [block(channels, channels, blocks, stride) for _ in range(count)]
            return nn.ModuleList(nn.Sequential(*parts) for parts in made)

        meetings = len(in_channels) - 1
        self.lateral = nn.ModuleList(
            ConvNormAct(width, channels, blocks, kernel=1) for width in in_channels
        )
        self.top_down, self.bottom_up = stack(meetings), stack(meetings)
        self.downsample = stack(meetings + num_extra, stride=2)
        self.channels = channels
        extra = tuple(in_strides[-1] * 2 ** (i + 1) for i in range(num_extra))
        self.strides = tuple(in_strides) + extra

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Backbone outputs to levels, finest first, each (B, channels, h, w)."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
            merged[fine] = self.top_down[fine](merged[fine] + coarse)
        levels = merged[:1]
        for number, downsample in enumerate(self.downsample):
            level = downsample(levels[-1])
            if number < len(self.bottom_up):
                level = self.bottom_up[number](merged[number + 1] + level)
            levels.append(level)
        return levels
