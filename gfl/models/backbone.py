"""ResNet backbones, with the recipe's frozen and deformable parts, and their ImageNet weights."""

from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.resnet import Bottleneck

from gfl.errors import UserError
from gfl.models.deformable import make_deformable
from gfl.models.frozen_norm import fold_frozen_norms
from gfl.models.narrow_resnet import NarrowResNet
from gfl.models.published_weights import read_state_dict, timm_weights, torchvision_weights
from gfl.models.res2net import Res2Net
from gfl.models.trainable import keep_statistics

# Constructors without weights, and the published ImageNet weights of each: a torchvision name, or
# "timm/MODEL" where torchvision has none; None where there are none at all.
RESNETS: dict[str, tuple[Callable[[], nn.Module], str | None]] = {
    "resnet18_w16": (lambda: NarrowResNet(16), None),
    "resnet18_w28": (lambda: NarrowResNet(28), None),
    "resnet18_w32": (lambda: NarrowResNet(32), None),
    "resnet18_w48": (lambda: NarrowResNet(48), None),
    "resnet18": (torchvision.models.resnet18, "ResNet18_Weights.IMAGENET1K_V1"),
    "resnet34": (torchvision.models.resnet34, "ResNet34_Weights.IMAGENET1K_V1"),
    "resnet50": (torchvision.models.resnet50, "ResNet50_Weights.IMAGENET1K_V1"),
    "resnet101": (torchvision.models.resnet101, "ResNet101_Weights.IMAGENET1K_V1"),
    "resnext101_32x4d": (
        lambda: torchvision.models.ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4),
        "timm/resnext101_32x4d.gluon_in1k",
    ),
    "res2net101_v1d": (Res2Net, "timm/res2net101d.in1k"),
}


class ResNet(nn.Module):
    """A ResNet without its classifier; parameter names are torchvision's (or timm's).

    Args:
        name: a name of `RESNETS`.
        norm: "frozen" keeps the statistics of batch-norm while its weight and bias train (the
            reference's `norm_eval`; torchvision's `FrozenBatchNorm2d` would freeze both);
            "batch" learns statistics; "sync" learns them over all processes.
        frozen_stages: 0 trains everything, 1 freezes the stem and layer1, n freezes up to layer n.
        deformable_stages: which of C2 ... C5 (layer1 ... layer4) have deformable convolutions.
        deformable_version: 1 or 2, see `DeformableConv2d`.

    Attributes:
        channels: output channels of layer1 ... layer4.
        strides: their strides, pixels.

    Source: mmdet `ResNet` (frozen_stages=1, norm_eval=True).
    """

    strides = (4, 8, 16, 32)

    def __init__(
        self,
        name: str,
        norm: str = "frozen",
        frozen_stages: int = 1,
        deformable_stages: tuple[int, ...] = (),
        deformable_version: int = 2,
    ):
        super().__init__()
        net = RESNETS[name][0]()
        self.conv1, self.bn1, self.relu, self.maxpool = net.conv1, net.bn1, net.relu, net.maxpool
        self.layer1, self.layer2 = net.layer1, net.layer2
        self.layer3, self.layer4 = net.layer3, net.layer4
        self.channels = tuple(_output_channels(stage) for stage in self.stages)
        for c in deformable_stages:
            make_deformable(self.stages[c - 2], deformable_version)
        self.frozen_statistics = norm == "frozen"
        self.frozen_stages = frozen_stages
        for part in self.frozen_parts:
            part.requires_grad_(False)
        if self.frozen_statistics:
            fold_frozen_norms(self)

    @property
    def stages(self) -> tuple[nn.Module, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    @property
    def frozen_parts(self) -> tuple[nn.Module, ...]:
        if self.frozen_stages == 0:
            return ()
        return self.conv1, self.bn1, *self.stages[: self.frozen_stages]

    def train(self, mode: bool = True) -> "ResNet":
        super().train(mode)
        for part in (self,) if self.frozen_statistics else self.frozen_parts:
            keep_statistics(part)
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images to the outputs C2 ... C5 of the four stages."""
        # A CPU goes forward faster in channels last, and backward faster in the other layout.
        forward_only = self.frozen_stages if self.training and images.device.type == "cpu" else 0
        x = images.contiguous(memory_format=torch.channels_last) if forward_only else images
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        features = [x := stage(x) for stage in self.stages[:forward_only]]
        if features and images.is_contiguous():
            features = [feature.contiguous() for feature in features]
            x = features[-1]
        return features + [x := stage(x) for stage in self.stages[forward_only:]]


def _output_channels(stage: nn.Sequential) -> int:
    last = stage[-1]
    return (last.bn3 if hasattr(last, "bn3") else last.bn2).num_features


def load_imagenet_weights(backbone: ResNet, name: str, source: bool | str) -> None:
    """Fill a backbone with classification weights.

    Args:
        backbone: what to fill.
        name: its name in `RESNETS`.
        source: True for the published weights (from the cache, else downloaded), or a file with
            a torchvision or timm state dict.

    Raises:
        UserError: no network and no cached file (the message names file and folder), an
            unreadable file, or names or shapes that do not match.
    """
    if source is True:
        state = _published_weights(name)
        source = RESNETS[name][1]
    else:
        state = read_state_dict(Path(source))
    state = {key: value for key, value in state.items() if not key.startswith("fc.")}
    # Classifiers have no offsets: those start at 0, where a deformable convolution is a plain one.
    own = backbone.state_dict().items()
    state.update((key, value) for key, value in own if ".conv_offset." in key)
    try:
        backbone.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"{source} does not hold weights of {name}: {error}") from error


def _published_weights(name: str) -> dict[str, Tensor]:
    label = RESNETS[name][1]
    if label is None:
        raise UserError(
            f"there are no published weights of {name}: set model.backbone.pretrained=false to "
            "train from scratch, or =FILE."
        )
    if label.startswith("timm/"):
        return timm_weights(label.removeprefix("timm/"), f"model.backbone.pretrained of {name}")
    return torchvision_weights(name, torchvision.models.get_weight(label))
