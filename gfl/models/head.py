"""The shared head: towers over every level, joint scores and side distributions."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from gfl.models.conv_blocks import BlockOptions, Tower
from gfl.models.few_gradients import conv_of_few_gradients

# Score of every location before training (focal loss paper, section 4.1).
PRIOR_SCORE = 0.01


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
        cls_logits: (B, N, C), or (B, N, C, S) where scores are distributions.
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
        quality_branch: one more output of the box tower, a quality logit.
        anchors_per_cell: locations at each place of a level, each with channels of its own.
        score_bins: S logits a class, whose distribution over scores has the class score as its
            expectation; 1 for a logit whose sigmoid it is.
        blocks: how the towers' blocks are made. Behind depthwise ones the output convolutions are
            1x1, as in PicoDet and RTMDet, else 3x3.
        shared_tower: one tower for class and box (`cls_tower`), as in PicoDet.

    Source: arXiv 2006.04388 figure 2; mmdet `GFLHead`, `ATSSHead`; GFocalV2 `GFocalHead`.
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
        quality_branch: bool = False,
        anchors_per_cell: int = 1,
        score_bins: int = 1,
        blocks: BlockOptions = BlockOptions(),
        shared_tower: bool = False,
    ):
        super().__init__()
        self.anchors_per_cell, self.score_bins = anchors_per_cell, score_bins
        widths = [in_channels] + [channels] * stacked_convs
        self.cls_tower = Tower(widths, blocks)
        self.box_tower = None if shared_tower else Tower(widths, blocks)
        self.output_kernel = 1 if blocks.conv == "depthwise" else 3
        self.cls_out = self._output(widths[-1], (num_classes + background_channel) * score_bins)
        self.box_out = self._output(widths[-1], box_channels)
        self.levels_share_parameters = blocks.norm_levels == 0
        self.scales = nn.ModuleList(Scale() for _ in range(num_levels))
        self.quality = quality
        self.quality_out = self._output(widths[-1], 1) if quality_branch else None
        for conv in filter(None, (self.cls_out, self.box_out, self.quality_out)):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)
        self._start_at_prior_score()

    @torch.no_grad()
    def _start_at_prior_score(self) -> None:
        bins = self.score_bins
        if bins == 1:
            self.cls_out.bias.fill_(-math.log((1 - PRIOR_SCORE) / PRIOR_SCORE))
            return
        # All scores but 0 are equally likely and have the mean bins / (bins - 1) / 2.
        likely = PRIOR_SCORE * 2 * (bins - 1) / bins
        self.cls_out.bias.zero_()
        self.cls_out.bias[::bins] = math.log((1 - likely) / (likely / (bins - 1)))

    def _output(self, in_channels: int, channels: int) -> nn.Conv2d:
        kernel, width = self.output_kernel, channels * self.anchors_per_cell
        return nn.Conv2d(in_channels, width, kernel, padding=kernel // 2)

    def forward(self, levels: list[Tensor]) -> HeadOutputs:
        """Levels of (B, in_channels, h, w) to float32 logits of all locations."""
        features = self.cls_tower(levels)
        cls_maps = [self.cls_out(feature) for feature in features]
        if self.box_tower is not None:
            features = self.box_tower(levels)
        box_maps = [
            scale(box_map)
            for box_map, scale in zip(
                self._of_positives(self.box_out, features), self.scales, strict=True
            )
        ]
        quality = None
        if self.quality_out is not None:
            quality = self._to_locations(self._of_positives(self.quality_out, features))
        elif self.quality is not None:
            quality = self._to_locations([self._judge(box_map) for box_map in box_maps])
        cls_logits = self._to_locations(cls_maps)
        if self.score_bins > 1:
            cls_logits = cls_logits.unflatten(2, (-1, self.score_bins))
        return HeadOutputs(cls_logits, self._to_locations(box_maps), quality)

    def _of_positives(self, conv: nn.Conv2d, features: list[Tensor]) -> list[Tensor]:
        """Outputs whose losses see positives alone.

        Each parameter is to have a gradient in each step: the first level always has one, and
        others too where levels have norms of their own.
        """
        return [
            conv_of_few_gradients(conv, x, self.levels_share_parameters and level > 0)
            for level, x in enumerate(features)
        ]

    def _judge(self, box_map: Tensor) -> Tensor:
        """(B, anchors * K, h, w) box logits to (B, anchors, h, w) quality logits."""
        if self.anchors_per_cell == 1:
            return self.quality(box_map)
        each = box_map.unflatten(1, (self.anchors_per_cell, -1)).flatten(0, 1)
        return self.quality(each).unflatten(0, (-1, self.anchors_per_cell)).squeeze(2)

    def _to_locations(self, maps: list[Tensor]) -> Tensor:
        """Levels of (B, anchors * K, h, w) to (B, N, K) float32: rows outer, anchors innermost."""
        rows = torch.cat([x.flatten(2).transpose(1, 2) for x in maps], 1).float()
        if self.anchors_per_cell > 1:
            rows = rows.unflatten(2, (self.anchors_per_cell, -1)).flatten(1, 2)
        return rows
