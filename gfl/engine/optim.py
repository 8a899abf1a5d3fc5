"""Optimiser and learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: linear warm-up times a multistep or cosine course.

    Attributes:
        lr: rate after warm-up.
        total_steps: optimiser steps of the whole training.
        kind: "multistep" divides by 10 at each milestone, "cosine" falls to `final_factor`.
        warmup_steps, warmup_factor: the rate rises from `warmup_factor` of its value.
        milestones: steps.
        final_factor: fraction of `lr` at the end of a cosine.

    Source: mmdet schedules 1x and 2x (LinearLR start_factor 0.001 over 500 iterations).
    """

    lr: float
    total_steps: int
    kind: str = "multistep"
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    milestones: tuple[int, ...] = ()
    final_factor: float = 0.01

    def __call__(self, step: int) -> float:
        """Learning rate of the step that follows `step` finished ones."""
        return self.lr * self._warmup(step) * self._course(step)

    def _warmup(self, step: int) -> float:
        if step >= self.warmup_steps:
            return 1.0
        return self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps

    def _course(self, step: int) -> float:
        if self.kind == "multistep":
            return 0.1 ** sum(step >= milestone for milestone in self.milestones)
        progress = min(step / max(self.total_steps, 1), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_factor + (1 - self.final_factor) * cosine


def make_optimizer(
    model: nn.Module,
    name: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0001,
    decay_norm_and_bias: bool = True,
) -> torch.optim.Optimizer:
    """A fused SGD or AdamW over the parameters that train; the schedule sets its rate.

    Fused, because such an optimiser skips a step on the device when its `found_inf` is 1.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [{"params": trained, "weight_decay": weight_decay}]
    if not decay_norm_and_bias:
        groups = [
            {"params": [p for p in trained if p.dim() > 1], "weight_decay": weight_decay},
            {"params": [p for p in trained if p.dim() <= 1], "weight_decay": 0.0},
        ]
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        # A first step that is skipped would leave the buffers that torch makes uninitialised.
        for parameter in trained if momentum else []:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, fused=True)
