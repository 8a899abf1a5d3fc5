"""What the frozen dataclasses of tensors share: shape checks and moving between devices."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor


def check_shape(name: str, value: Tensor, *shape: int | None) -> None:
    """Compare a tensor's shape with the expected one; None accepts any size."""
    if torch.compiler.is_compiling():
        return
    matches = value.dim() == len(shape) and all(
        want is None or got == want for got, want in zip(value.shape, shape, strict=True)
    )
    if not matches:
        expected = tuple("any" if want is None else want for want in shape)
        raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {expected}")


class OnDevice:
    """`to` and `pin_memory` for dataclasses of tensors (and of such dataclasses)."""

    def _map(self, function):
        moved = {
            field.name: function(value)
            for field in fields(self)
            if isinstance(value := getattr(self, field.name), Tensor | OnDevice)
        }
        return replace(self, **moved)

    def to(self, device: torch.device | str, non_blocking: bool = False):
        return self._map(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self):
        return self._map(lambda value: value.pin_memory())
