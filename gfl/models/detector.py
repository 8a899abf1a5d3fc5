"""The detector: backbone, neck and head in a row."""

import torch
from torch import Tensor, nn

from gfl.grid import make_grid
from gfl.models.head import HeadOutputs
from gfl.models.trainable import freeze, keep_statistics
from gfl.structures import Predictions


class GFLDetector(nn.Module):
    """`model(images)` gives `Predictions`, in training and in testing alike.

    Args:
        backbone: images to stage outputs; has `channels` and `strides` of its outputs.
        neck: the last stage outputs to pyramid levels; has `strides`.
        head: levels to flat logits.
        grid_origin: a name of `gfl.grid.ORIGINS`.
        num_features: how many of the stage outputs the neck takes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: nn.Module,
        grid_origin: str = "corner",
        num_features: int = 3,
    ):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head
        self.grid_origin = grid_origin
        self.num_features = num_features
        self.frozen: tuple[str, ...] = ()

    def freeze(self, prefixes: tuple[str, ...]) -> None:
        """Stop modules from training, their batch-norm statistics included; see `freeze`."""
        freeze(self, prefixes)
        self.frozen = tuple(prefixes)

    def train(self, mode: bool = True) -> "GFLDetector":
        super().train(mode)
        for name in self.frozen:
            keep_statistics(self.get_submodule(name))
        return self

    def tensors(self, images: Tensor) -> tuple[HeadOutputs, list[tuple[int, int]]]:
        """Plain tensors for compilers and exporters.

        Args:
            images: (B, 3, H, W) normalised, sides multiples of 32.

        Returns:
            The head's logits, and (h, w) of each level.
        """
        levels = self.neck(self.backbone(images)[-self.num_features :])
        sizes = [tuple(level.shape[-2:]) for level in levels]
        return self.head(levels), sizes

    def forward(self, images: Tensor) -> Predictions:
        """(B, 3, H, W) normalised images to what is predicted at each of the N locations."""
        return self.predictions(*self.tensors(images), images.device)

    def predictions(
        self, logits: HeadOutputs, sizes: list[tuple[int, int]], device: torch.device
    ) -> Predictions:
        """What `tensors` gave, with the grid of its locations."""
        grid = make_grid(
            tuple(sizes),
            self.neck.strides,
            self.grid_origin,
            device,
            self.head.anchors_per_cell,
        )
        return Predictions(logits.cls_logits, logits.box_logits, grid, logits.quality_logits)
