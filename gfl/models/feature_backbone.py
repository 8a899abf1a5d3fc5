"""Any classification network of timm or torchvision as a backbone."""

import torch
from torch import Tensor, nn

from gfl.errors import UserError
from gfl.models.feature_networks import (
    STRIDES,
    load_classifier_weights,
    stride_of,
    timm_features,
    torchvision_features,
)
from gfl.models.trainable import PICTURE, dependent_outputs, keep_statistics

LIBRARIES = {"timm": timm_features, "torchvision": torchvision_features}

LONG_PICTURE = (64, 1344)

# Sides to try for networks that take pictures of one size only, to tell their strides.
FIXED_SIDES = (224, 256, 384)


class FeatureBackbone(nn.Module):
    """A timm or torchvision network without its classifier; `body` holds it.

    Parameters that none of the last `num_features` outputs depends on do not train: nothing would
    give them a gradient.

    Args:
        name: "timm/NAME" with a name that supports `features_only=True`, or "torchvision/NAME"
            with the name of a classification network.
        norm: "frozen" keeps the statistics of every batch norm, "batch" learns them, "sync" learns
            them over all processes. Other norms have no statistics and train as weights do.
        frozen_stages: the parameters that the first n outputs depend on do not train, and batch
            norms among them keep their statistics. 1 is the stem and the first stage. (A network
            that mixes its strides, such as HRNet, needs most of itself for the first output.)
        num_features: how many outputs, the last ones, the pyramid is made of.

    Attributes:
        channels, strides: of each output, as measured; strides in pixels: 4 (where the network
            has it), 8, 16 and 32.

    Raises:
        UserError: an unknown name, timm is missing, a network without one of the strides 8, 16
            and 32 or for pictures of one size only, or more frozen stages than there are.
    """

    def __init__(
        self, name: str, norm: str = "frozen", frozen_stages: int = 1, num_features: int = 3
    ):
        super().__init__()
        self.name = name
        self.body, outputs = _cut(name)
        found = [stride_of(output, PICTURE) for output in outputs]
        # Of several maps of a stride, the last.
        places = {pair[0]: place for place, pair in enumerate(found) if pair}
        missing = [stride for stride in (8, 16, 32) if stride not in places]
        if missing:
            raise UserError(
                f"model.backbone.name {name!r} gives features of strides {_listed(places)}; the "
                "pyramid needs 8, 16 and 32. Choose a network that has them."
            )
        self.strides = tuple(stride for stride in STRIDES if stride in places)
        self.places = tuple(places[stride] for stride in self.strides)
        self.channels_last = tuple(found[place][1] for place in self.places)
        channels = [outputs[p].shape[-1 if last else 1] for p, last in self._places_and_layouts()]
        self.channels = tuple(channels)
        self.frozen_statistics = norm == "frozen"
        self.frozen_norms: tuple[str, ...] = ()
        self._freeze(frozen_stages, num_features)
        if norm == "sync":
            self.body = _with_sync_norms(self.body)

    def _places_and_layouts(self) -> list[tuple[int, bool]]:
        return list(zip(self.places, self.channels_last, strict=True))

    def _freeze(self, frozen_stages: int, num_features: int) -> None:
        if frozen_stages > len(self.strides):
            raise UserError(
                f"model.backbone.frozen_stages is {frozen_stages}, but {self.name} has "
                f"{len(self.strides)} stages, of strides {_listed(self.strides)}."
            )
        outputs, count = dependent_outputs(self)
        stages = {name: numbers[0] for name, numbers in outputs.items()}
        for name, parameter in self.named_parameters():
            numbers = outputs.get(name)  # None where no output depends on it
            reaches_the_pyramid = numbers is not None and numbers[-1] > count - num_features
            parameter.requires_grad_(reaches_the_pyramid and numbers[0] > frozen_stages)
        self.frozen_norms = tuple(
            name
            for name, module in self.named_modules()
            if isinstance(module, nn.modules.batchnorm._BatchNorm)
            and stages.get(f"{name}.weight", count) <= frozen_stages
        )

    def train(self, mode: bool = True) -> "FeatureBackbone":
        super().train(mode)
        for part in [""] if self.frozen_statistics else self.frozen_norms:
            keep_statistics(self.get_submodule(part))
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) normalised images, sides multiples of 32, to a map for each stride."""
        outputs = self.body(images)
        return [
            outputs[place].permute(0, 3, 1, 2) if channels_last else outputs[place]
            for place, channels_last in self._places_and_layouts()
        ]

    def load_weights(self, source: bool | str) -> None:
        """Fill with published weights (True) or those of a file; see `load_classifier_weights`."""
        load_classifier_weights(self.body, self.name, source)


def _cut(name: str) -> tuple[nn.Module, list[Tensor]]:
    """The network without its classifier, and what it makes of a small picture.

    A long one is tried too: some networks have tables of positions that end.
    """
    library, _, short_name = name.partition("/")
    make, picture = LIBRARIES[library], PICTURE
    try:
        body = make(short_name, PICTURE).eval()
        outputs = _run(body, PICTURE)
        picture = LONG_PICTURE
        _run(body, LONG_PICTURE)
        return body, outputs
    except UserError:
        raise
    except Exception as error:  # whatever a network raises that a picture does not suit
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.backbone.name {name!r} can not read a picture of {picture[0]} x {picture[1]} "
            f"pixels ({reason}). {_fixed_strides(make, short_name)}"
            "A detector's pictures are of any size: choose a network that reads them."
        ) from error


def _fixed_strides(make, short_name: str) -> str:
    """A sentence with the strides of a network that takes one size of pictures, or nothing."""
    for side in FIXED_SIDES:
        try:
            outputs = _run(make(short_name, (side, side)), (side, side))
        except Exception:  # not its size either
            continue
        strides = {found[0] for found in (stride_of(o, (side, side)) for o in outputs) if found}
        return f"It reads {side} x {side} pixels, with features of strides {_listed(strides)}. "
    return ""


@torch.no_grad()
def _run(body: nn.Module, picture: tuple[int, int]) -> list[Tensor]:
    return list(body.eval()(torch.zeros(1, 3, *picture)))


def _listed(strides) -> str:
    return ", ".join(str(stride) for stride in sorted(strides)) or "none"


def _with_sync_norms(body: nn.Module) -> nn.Module:
    """`body` with batch norms that learn over all processes.

    timm has batch norms that contain an activation; torch's own converter would drop it.
    """
    if any(type(module).__module__.startswith("timm.") for module in body.modules()):
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(body)
    return nn.SyncBatchNorm.convert_sync_batchnorm(body)
