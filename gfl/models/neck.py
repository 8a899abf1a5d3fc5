"""Feature pyramid network: outputs of a backbone to levels of equal width."""

import torch.nn.functional as F
from torch import Tensor, nn


class FPN(nn.Module):
    """P3 to P7 from C3 to C5; or other levels, from P2 or P3 on.

    P6 and P7 are strided convolutions on P5's output and on P6, with no ReLU between
    (torchvision's `LastLevelP6P7` has one).

    Args:
        in_channels: channels of the backbone's outputs, C3 to C5 or C2 to C5.
        in_strides: their strides, pixels.
        channels: channels of every output.
        num_extra: strided levels after the last.

    Attributes:
        strides: stride of each output level, pixels.

    Source: arXiv 1612.03144; mmdet `FPN` (start_level=1, add_extra_convs="on_output").
    """

    def __init__(
        self,
        in_channels: tuple[int, ...],
        in_strides: tuple[int, ...],
        channels: int = 256,
        num_extra: int = 2,
    ):
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, 1) for width in in_channels)
        self.output = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels
        )
        self.downsample = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1) for _ in range(num_extra)
        )
        self.channels = channels
        extra = tuple(in_strides[-1] * 2 ** (i + 1) for i in range(num_extra))
        self.strides = tuple(in_strides) + extra
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Such as [C3, C4, C5] to [P3, P4, P5, P6, P7], each (B, channels, h, w)."""
        merged = [lateral(x) for lateral, x in zip(self.lateral, features, strict=True)]
        for fine in range(len(merged) - 2, -1, -1):
            coarse = F.interpolate(merged[fine + 1], size=merged[fine].shape[-2:], mode="nearest")
            merged[fine] = merged[fine] + coarse
        levels = [output(x) for output, x in zip(self.output, merged, strict=True)]
        for downsample in self.downsample:
            levels.append(downsample(levels[-1]))
        return levels
