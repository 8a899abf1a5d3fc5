"""Deformable 3x3 convolutions, version 1 (offsets) and 2 (offsets and modulation)."""

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class DeformableConv2d(nn.Conv2d):
    """A convolution that looks where `conv_offset` tells it, starting as the plain one.

    Args:
        conv: the plain convolution that it takes the place of; settings and weights are kept.
        version: 1 moves the 9 sampling points; 2 also scales each by a factor in [0, 1].

    `conv_offset` has 18 channels, [y0, x0, y1, x1, ...] in pixels of the feature map, and in
    version 2 another 9, logits of the factors.

    Source: arXiv 1703.06211, 1811.11168; mmcv `DeformConv2dPack`, `ModulatedDeformConv2dPack`
    (same names of parameters).
    """

    def __init__(self, conv: nn.Conv2d, version: int = 2):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            bias=conv.bias is not None,
        )
        self.load_state_dict(conv.state_dict())
        self.points = conv.kernel_size[0] * conv.kernel_size[1]
        self.version = version
        self.conv_offset = nn.Conv2d(
            conv.in_channels,
            self.points * (version + 1),
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
        )
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        offset = self.conv_offset(x)
        mask = None
        if self.version == 2:
            offset, mask = offset.split((2 * self.points, self.points), 1)
            mask = mask.sigmoid()
        # In float32: the sampling has no half precision kernels on every device.
        with torch.autocast(x.device.type, enabled=False):
            return deform_conv2d(
                x.float(),
                offset.float(),
                self.weight.float(),
                None if self.bias is None else self.bias.float(),
                self.stride,
                self.padding,
                self.dilation,
                None if mask is None else mask.float(),
            ).to(x.dtype)


def make_deformable(stage: nn.Module, version: int) -> None:
    """Replace the 3x3 convolutions of a residual stage (`conv2`, or Res2Net's `convs.i`)."""
    places = [
        (parent, name)
        for parent_name, parent in stage.named_modules()
        for name, child in parent.named_children()
        if isinstance(child, nn.Conv2d)
        and (name == "conv2" or parent_name.rsplit(".", 1)[-1] == "convs")
    ]
    for parent, name in places:
        setattr(parent, name, DeformableConv2d(getattr(parent, name), version))
