"""Gradient checkpointing: a backbone's activations are computed again in the backward."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gfl.errors import UserError


def recompute_activations(backbone: nn.Module) -> int:
    """Keep, of a backbone's activations in training, the inputs of its parts alone.

    Parts are the blocks of its stages; of torchvision's classification networks, whose blocks are
    dissolved in a graph, what lies between two outputs. Weights, their names and gradients stay as
    they are. Batch norms learn from the first computation alone. A forward without gradients, or
    in testing, is the plain one.

    Args:
        backbone: changed.

    Returns:
        The number of parts.

    Raises:
        UserError: it has no stages that could be told apart, or nothing in it trains.

    Source: arXiv 1604.06174.
    """
    if not any(parameter.requires_grad for parameter in backbone.parameters()):
        raise UserError(
            "train.checkpoint_activations saves nothing, since the whole backbone is frozen and "
            "none of its activations are kept: set it to false."
        )
    body = getattr(backbone, "body", None)
    if hasattr(body, "graph"):  # one of torch.fx
        return _cut(body)
    blocks = _blocks(backbone)
    if not blocks:
        raise UserError(
            "train.checkpoint_activations finds no stages of blocks in "
            f"{getattr(backbone, 'name', type(backbone).__name__)}: set it to false, or choose "
            "another model.backbone.name."
        )
    for block in blocks:
        block.forward = partial(_recomputed, block, block, block.forward)
    return len(blocks)


def _blocks(module: nn.Module) -> list[nn.Module]:
    """Items of the outermost sequences that consist of composed modules."""
    found = []
    for child in module.children():
        items = list(child) if isinstance(child, nn.Sequential) else []
        composed = items and all(next(item.children(), None) is not None for item in items)
        found += items if composed else _blocks(child)
    return found


def _cut(body: nn.Module) -> int:
    """Run a graph in parts, each up to one of its outputs.

    The parts share the graph's layers and lie beside it, so that nobody's names change.
    """
    from torch.fx.passes.split_module import split_module  # slow to import

    nodes = list(body.graph.nodes)
    outputs = set(nodes[-1].args[0])
    number, part_of = 0, {}
    for node in nodes:
        part_of[node] = number
        number += node in outputs
    whole = split_module(body, body, part_of.__getitem__)
    parts = list(whole.children())
    for part in parts:
        part.forward = partial(_recomputed, body, part, part.forward)
    body.forward = whole.forward
    return len(parts)


def _recomputed(owner: nn.Module, part: nn.Module, forward: Callable, *inputs):
    """`forward(*inputs)`; its activations are computed again when the backward needs them.

    Args:
        owner: knows whether it trains.
        part: holds the batch norms of `forward`.
        forward: what is computed.
        inputs: kept until the backward.
    """
    if not (torch.is_grad_enabled() and owner.training):
        return forward(*inputs)
    if torch.compiler.is_compiling():  # a compiled graph changes statistics once, at its end
        return checkpoint(forward, *inputs, use_reentrant=False)
    contexts = partial(_contexts, part)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)


def _contexts(part: nn.Module):
    """Of the first computation, and of the second."""
    return nullcontext(), _no_statistics(part)


@contextmanager
def _no_statistics(part: nn.Module) -> Iterator[None]:
    """Batch norms learn into copies of their statistics, which are thrown away.

    (Without any they would compute the same, but keep fewer tensors than `checkpoint` expects.)
    """
    norms = [m for m in part.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    learned = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, learned, strict=True):
        norm._buffers.update({name: value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, learned, strict=True):
            norm._buffers.update(buffers)
