"""Which parameters of a model train, and at which part of the learning rate."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gfl.errors import UserError, did_you_mean

# Height and width of the picture that backbones are measured on: odd multiples of 32, and two
# different ones, so that a feature map's stride can be read from its shape.
PICTURE = (96, 160)


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Stop the parameters of some modules from training.

    Args:
        model: changed: `requires_grad` of those parameters becomes False.
        prefixes: names of its modules, "backbone.layer1"; all below them is frozen too.

    Raises:
        UserError: a name that no module with parameters has, or nothing is left to train.
    """
    for prefix in prefixes:
        _check("train.freeze", prefix, model)
        model.get_submodule(prefix).requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(
            f"train.freeze is {list(prefixes)}: no parameter is left that trains. Name fewer "
            "modules."
        )


def keep_statistics(module: nn.Module) -> None:
    """Put every batch norm of `module` into eval mode, so that a forward leaves it as it is."""
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            norm.eval()


def rate_factors(
    model: nn.Module, lr_factors: dict[str, float], layer_decay: float | None = None
) -> dict[str, float]:
    """What the schedule's learning rate is multiplied by, for each parameter.

    The product of two factors:

    - that of the longest name in `lr_factors` that is a module around the parameter; 1 without;
    - for a parameter of `model.backbone`, layer_decay ** (n - k): n is the number of the
      backbone's outputs and k, from 1, the first of them that depends on the parameter. So the
      stem and the first stage have the smallest factor, and the last stage has 1.

    Args:
        model: its modules are named in `lr_factors`.
        lr_factors: module names, "backbone.layer1", to factors.
        layer_decay: above 0, at most 1; None is 1.

    Returns:
        Names of all parameters to factors.

    Raises:
        UserError: a name that no module with parameters has.

    Source: BEiT (arXiv 2106.08254) decays rates by layer; here by the backbone's stage.
    """
    for prefix in lr_factors:
        _check("train.lr_factors", prefix, model)
    factors = {}
    for name, _ in model.named_parameters():
        around = [prefix for prefix in lr_factors if name.startswith(prefix + ".")]
        factors[name] = lr_factors[max(around, key=len)] if around else 1.0
    if layer_decay is not None:
        outputs, count = dependent_outputs(model.backbone)
        for name, numbers in outputs.items():
            factors[f"backbone.{name}"] *= layer_decay ** (count - numbers[0])
    return factors


def dependent_outputs(backbone: nn.Module) -> tuple[dict[str, list[int]], int]:
    """Which outputs of a backbone depend on each parameter, as autograd sees it.

    Args:
        backbone: images to a list of stage outputs, first stage first.

    Returns:
        For each parameter that trains and that any output depends on, its name to the numbers of
        those outputs, from 1 and rising: the first is the stage that the parameter belongs to.
        And the number of outputs.
    """
    was_training = backbone.training
    backbone.eval()
    device = next(backbone.parameters()).device
    with torch.enable_grad():
        outputs = backbone(torch.zeros(1, 3, *PICTURE, device=device))
    backbone.train(was_training)
    names = {id(parameter): name for name, parameter in backbone.named_parameters()}
    found: dict[str, list[int]] = {}
    for number, output in enumerate(outputs, 1):
        for leaf in _leaves(output):
            found.setdefault(names[id(leaf)], []).append(number)
    return found, len(outputs)


def _leaves(output: Tensor) -> list[Tensor]:
    """The leaf tensors that `output` was computed from and that require a gradient."""
    waiting, seen, leaves = [output.grad_fn], {None}, []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [before for before, _ in node.next_functions]
    return leaves


def _check(key: str, prefix: str, model: nn.Module) -> None:
    names = [name for name, module in model.named_modules() if name and _has_parameters(module)]
    if prefix not in names:
        raise UserError(
            f"{key} names {prefix!r}, but no module with parameters has that name"
            f"{did_you_mean(prefix, names)} Expected a name such as "
            f"{', '.join(repr(name) for name, _ in model.named_children())}, or of a module inside."
        )


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None
