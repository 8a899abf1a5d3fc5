"""ResNet-18 with fewer channels: for small data and small computers, trained from scratch."""

from torch import nn
from torchvision.models.resnet import BasicBlock

BLOCKS = 2


class NarrowResNet(nn.Module):
    """The parts of torchvision's ResNet-18 before its classifier, by the same names.

    Plain 3x3 convolutions learned from a few hundred images what depthwise ones did not
    (docs/recipes.md).

    Args:
        width: channels of the stem and of layer1; 64 in ResNet-18. They double from stage to stage.

    Source: arXiv 1512.03385 table 1.
    """

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.layer1 = _stage(width, width, stride=1)
        self.layer2 = _stage(width, width * 2, stride=2)
        self.layer3 = _stage(width * 2, width * 4, stride=2)
        self.layer4 = _stage(width * 4, width * 8, stride=2)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(in_channels: int, channels: int, stride: int) -> nn.Sequential:
    downsample = None
    if stride > 1:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
        )
    first = BasicBlock(in_channels, channels, stride, downsample)
    return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(BLOCKS - 1)))
