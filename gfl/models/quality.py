"""The quality predictor of GFLv2. The ways to judge quality are rows of `gfl.quality`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DistributionQuality(nn.Module):
    """Localisation quality from the shape of the four side distributions.

    Of each side the `top_k` largest probabilities and their mean: sharp distributions have a
    large first one. Two 1x1 convolutions make a logit of the 4 * (top_k + 1) numbers.

    Args:
        top_k: how many probabilities of each side.
        channels: hidden channels.
        add_mean: whether the mean of the top k is given too.

    Source: arXiv 2011.12885 section 3.2; GFocalV2 `GFocalHead` (reg_topk=4, reg_channels=64,
    add_mean=True).
    """

    def __init__(self, top_k: int = 4, channels: int = 64, add_mean: bool = True):
        super().__init__()
        self.top_k, self.add_mean = top_k, add_mean
        self.net = nn.Sequential(
            nn.Conv2d(4 * (top_k + add_mean), channels, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, 1, 1),
        )
        for conv in (self.net[0], self.net[2]):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)

    def statistics(self, box_logits: Tensor) -> Tensor:
        """(B, K, h, w) logits to (B, 4 * (top_k + 1), h, w): a side's top k, then their mean."""
        probabilities = F.softmax(box_logits.float().unflatten(1, (4, -1)), dim=2)
        top = probabilities.topk(self.top_k, dim=2).values
        if self.add_mean:
            top = torch.cat((top, top.mean(2, keepdim=True)), 2)
        return top.flatten(1, 2)

    def forward(self, box_logits: Tensor) -> Tensor:
        """(B, K, h, w) logits of the sides to (B, 1, h, w) quality logits."""
        return self.net(self.statistics(box_logits))
