"""Whether values can be kept: one reduction on the device."""

from collections.abc import Iterator

import torch
from torch import Tensor


def not_finite(content: dict) -> list[str]:
    """Dotted names of the floating-point tensors of a nested dict that hold NaN or infinity.

    The host waits for the device once, for a single number, unless something is wrong.
    """
    named = [(name, value) for name, value in _tensors(content) if value.numel()]
    if not named:
        return []
    # A norm may overflow though its values are finite: names are then looked for, and not found.
    norms = torch._foreach_norm([value for _, value in named])
    by_device: dict[torch.device, list[Tensor]] = {}  # an optimiser's counters are on the CPU
    for norm in norms:
        by_device.setdefault(norm.device, []).append(norm.float())
    if all(torch.stack(values).isfinite().all().item() for values in by_device.values()):
        return []
    return [name for name, value in named if not value.isfinite().all()]


def _tensors(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Floating-point tensors of nested dicts and lists, with where they are."""
    if isinstance(content, Tensor):
        if content.is_floating_point():
            yield name, content.detach()
    elif isinstance(content, dict | list | tuple):
        pairs = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in pairs:
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
