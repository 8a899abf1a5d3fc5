"""The shared head: two towers over every level, joint scores and side distributions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Score of every location before training (focal loss paper, section 4.1).
PRIOR_SCORE = 0.01


class ConvNormReLU(nn.Module):
    """3x3 convolution, group norm, ReLU."""

    def __init__(self, in_channels: int, channels: int, groups: int = 32):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.normal_(self.conv.weight, std=0.01)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu_()


class Scale(nn.Module):
    """One learned factor, so that each level finds its own range."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class HeadOutputs(NamedTuple):
    """What the head says about all N locations; see `gfl.structures.Predictions`.

    Attributes:
        cls_logits: (B, N, C).
        box_logits: (B, N, K).
        quality_logits: (B, N, 1), or None.
    """

    cls_logits: Tensor
    box_logits: Tensor
    quality_logits: Tensor | None


class GFLHead(nn.Module):
    """Towers of convolutions shared by all levels; flattens the levels, once and here.

    Args:
        in_channels: channels of the pyramid's levels.
        num_classes: C.
        box_channels: K, as the box representation says.
        num_levels: levels of the pyramid, one `Scale` each.
        channels: width of the towers.
        stacked_convs: depth of each tower.
        quality: makes (B, 1, h, w) quality logits of a level's (B, K, h, w) box logits, or None.
        background_channel: one more class channel, the last, that is trained to 0 and that no
            detection is made of: the public GFLv2 weights have it.

    Source: arXiv 2006.04388 figure 2; mmdet `GFLHead`; GFocalV2 `GFocalHead`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        box_channels: int,
        num_levels: int,
        channels: int = 256,
        stacked_convs: int = 4,
        quality: nn.Module | None = None,
        background_channel: bool = False,
    ):
        super().__init__()
        widths = [in_channels] + [channels] * stacked_convs
        pairs = list(zip(widths, widths[1:], strict=False))
        self.cls_tower = nn.Sequential(*(ConvNormReLU(*pair) for pair in pairs))
        self.box_tower = nn.Sequential(*(ConvNormReLU(*pair) for pair in pairs))
        self.cls_out = nn.Conv2d(widths[-1], num_classes + background_channel, 3, padding=1)
        self.box_out = nn.Conv2d(widths[-1], box_channels, 3, padding=1)
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        self.quality = quality
        nn.init.normal_(self.cls_out.weight, std=0.01)
        nn.init.constant_(self.cls_out.bias, -math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))
        nn.init.normal_(self.box_out.weight, std=0.01)
        nn.init.zeros_(self.box_out.bias)

    def forward(self, levels: list[Tensor]) -> HeadOutputs:
        """Levels of (B, in_channels, h, w) to float32 logits of all locations."""
        cls_maps = [self.cls_out(self.cls_tower(level)) for level in levels]
        box_maps = [
            scale(self.box_out(self.box_tower(level)))
            for level, scale in zip(levels, self.scales, strict=True)
        ]
        quality = None
        if self.quality is not None:
            quality = _to_locations([self.quality(box_map) for box_map in box_maps])
        return HeadOutputs(_to_locations(cls_maps), _to_locations(box_maps), quality)


def _to_locations(maps: list[Tensor]) -> Tensor:
    """Levels of (B, K, h, w) to (B, N, K) float32, rows outer."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1).float()
