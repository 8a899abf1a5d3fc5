"""Batch-norm folded into the convolutions before it, for inference."""

import copy

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse

from gfl.models.conv_blocks import ConvNormAct
from gfl.models.deformable import DeformableConv2d
from gfl.models.frozen_norm import bake
from gfl.models.trainable import PICTURE

# Folding reorders roundings; more than this share of an output's largest value is no rounding.
TOLERANCE = 1e-3


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, DeformableConv2d) or super().is_leaf_module(module, name)


def cast_convolutions(network: nn.Module, dtype: torch.dtype) -> None:
    """Hold the weights of plain convolutions in the type that autocast would cast them to.

    It does so in each forward, for a shared head at each level; the outputs are the same bits.
    """
    for module in network.modules():
        if type(module) is nn.Conv2d:
            module.to(dtype)


@torch.no_grad()
def folded(backbone: nn.Module) -> nn.Module:
    """A copy in eval mode that has the batch norms inside its convolutions.

    A network that can not be traced, or whose traced copy gives something else for a test
    picture, is given back as it is: folding is for speed alone.
    """
    backbone = backbone.eval()
    images = torch.rand(1, 3, *PICTURE, generator=torch.Generator().manual_seed(0))
    images = images.to(next(backbone.parameters()).device)
    try:
        inner = copy.deepcopy(backbone)
        bake(inner)
        traced = fx.GraphModule(inner, _Tracer().trace(inner))
        network = fuse(traced, inplace=True, no_trace=True)
        pairs = list(zip(network(images), backbone(images), strict=True))
    except Exception:  # tracing meets any Python that a network is written in
        return backbone
    same = all((a - b).abs().max() <= TOLERANCE * b.abs().max() + 1e-6 for a, b in pairs)
    return network if same else backbone


def folded_blocks(part: nn.Module) -> nn.Module:
    """A copy of a neck or head in eval mode that has the batch norms of its blocks folded.

    Norms of each level make a convolution of each level. A part without batch norms, and norms
    outside of `ConvNormAct`, are left as they are.
    """
    norms = (nn.modules.batchnorm._BatchNorm,)
    if not any(isinstance(module, norms) for module in part.modules()):
        return part
    part = copy.deepcopy(part).eval()
    for module in list(part.modules()):
        if isinstance(module, ConvNormAct):
            module.fold()
    return part
