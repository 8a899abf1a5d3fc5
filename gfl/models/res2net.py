"""Res2Net-101 v1d: residual blocks whose 3x3 convolution works in four connected groups."""

import torch
from torch import Tensor, nn

# Of the four stages.
BLOCKS = (3, 4, 23, 3)
SCALES = 4
BASE_WIDTH = 26


class Bottle2neck(nn.Module):
    """1x1, then three 3x3 convolutions each fed by its group and the one before, then 1x1.

    In the first block of a stage the groups are not connected, and the fourth group is pooled
    where the block has a stride (mmdet's rule; the original and timm pool it in the first stage
    too).

    Source: arXiv 1904.01169; mmdet `Bottle2neck` (scales=4, base_width=26).
    """

    def __init__(self, in_channels: int, planes: int, stride: int, first: bool):
        super().__init__()
        width = planes * BASE_WIDTH // 64
        self.first, self.width = first, width
        self.conv1 = nn.Conv2d(in_channels, width * SCALES, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * SCALES)
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, padding=1, bias=False) for _ in range(SCALES - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(SCALES - 1))
        self.pool = nn.AvgPool2d(3, stride, padding=1) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(width * SCALES, planes * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(planes * 4)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if first:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(in_channels, planes * 4, 1, bias=False),
                nn.BatchNorm2d(planes * 4),
            )

    def forward(self, x: Tensor) -> Tensor:
        groups = self.relu(self.bn1(self.conv1(x))).split(self.width, 1)
        outputs: list[Tensor] = []
        for number, (conv, bn) in enumerate(zip(self.convs, self.bns, strict=True)):
            group = groups[number]  # by its number: folding traces this, and can not iterate
            connected = group if self.first or not outputs else outputs[-1] + group
            outputs.append(self.relu(bn(conv(connected.contiguous()))))
        outputs.append(self.pool(groups[-1]))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.bn3(self.conv3(torch.cat(outputs, 1))) + shortcut)


class Res2Net(nn.Module):
    """The parts of Res2Net-101 v1d (deep stem, average-pooled shortcuts) under torchvision's
    names."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = 64
        for stage, count in enumerate(BLOCKS):
            planes, stride = 64 * 2**stage, 1 if stage == 0 else 2
            layer = [Bottle2neck(channels, planes, stride, first=True)]
            channels = planes * 4
            layer += [Bottle2neck(channels, planes, 1, first=False) for _ in range(count - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layer))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
