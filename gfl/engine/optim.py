"""Optimiser and learning rate."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Schedule:
    """Learning rate of each step: linear warm-up times a course.

    Attributes:
        lr: rate after warm-up.
        total_steps: optimiser steps of the whole training.
        kind: "multistep" divides by 10 at each milestone, "cosine" falls to `final_factor`,
            "flat_cosine" does so after a first part at the full rate.
        warmup_steps, warmup_factor: the rate rises from `warmup_factor` of its value.
        milestones: steps.
        final_factor: fraction of `lr` at the end of a cosine.
        flat_fraction: of flat_cosine, how much of the steps has the full rate.

    Source: mmdet schedules 1x and 2x (LinearLR start_factor 0.001 over 500 iterations);
    flat_cosine is RTMDet's (arXiv 2212.07784), flat for the first half.
    """

    lr: float
    total_steps: int
    kind: str = "multistep"
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    milestones: tuple[int, ...] = ()
    final_factor: float = 0.01
    flat_fraction: float = 0.5

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
        flat = self.flat_fraction * self.total_steps if self.kind == "flat_cosine" else 0.0
        progress = min(max(step - flat, 0.0) / max(self.total_steps - flat, 1.0), 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * progress))
        return self.final_factor + (1 - self.final_factor) * cosine


def make_optimizer(
    model: nn.Module,
    name: str = "sgd",
    momentum: float = 0.9,
    weight_decay: float = 0.0001,
    decay_norm_and_bias: bool = True,
    factors: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """A fused SGD or AdamW over the parameters that train; the schedule sets its rate.

    Fused, because such an optimiser skips a step on the device when its `found_inf` is 1.

    Args:
        model: what is trained.
        name: "sgd" or "adamw".
        momentum: of SGD.
        weight_decay: L2 penalty (SGD), or decoupled decay (AdamW).
        decay_norm_and_bias: whether it acts on parameters of at most one dimension too.
        factors: for each parameter's name, what its rate is multiplied by. The groups then have
            an `lr_factor`, one or two groups (see above) for each factor that occurs.
    """
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    trained = [parameter for _, parameter in named]
    groups = []
    for factor in dict.fromkeys(factors[n] for n, _ in named) if factors else [None]:
        members = [p for n, p in named if not factors or factors[n] == factor]
        setting = {"lr_factor": factor} if factors else {}
        if decay_norm_and_bias:
            groups.append({"params": members, "weight_decay": weight_decay, **setting})
            continue
        weights, others = [p for p in members if p.dim() > 1], [p for p in members if p.dim() <= 1]
        groups.append({"params": weights, "weight_decay": weight_decay, **setting})
        groups.append({"params": others, "weight_decay": 0.0, **setting})
    if name == "sgd":
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
        # A first step that is skipped would leave the buffers that torch makes uninitialised.
        for parameter in trained if momentum else []:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return optimizer
    return torch.optim.AdamW(groups, lr=0.0, fused=True)


def describe_rates(optimizer: torch.optim.Optimizer) -> str:
    """How many parameters train at which factor, for the log; nothing when there is one rate."""
    counts: dict[float, int] = {}
    for group in optimizer.param_groups:
        factor = group.get("lr_factor", 1.0)
        counts[factor] = counts.get(factor, 0) + sum(p.numel() for p in group["params"])
    if set(counts) == {1.0}:
        return ""
    parts = [f"{counts[factor] / 1e6:.2f} million at lr x {factor:g}" for factor in sorted(counts)]
    return f": {', '.join(parts)}"
