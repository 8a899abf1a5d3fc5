"""Averaged weights: what is evaluated and kept when averaging is on."""

import copy
import math

import torch
from torch import nn


class EMA:
    """Exponential moving average of a model's parameters and statistics.

    Args:
        model: what is averaged; a copy is kept.
        decay: weight of the old average, after warm-up.
        warmup_steps: the decay rises as decay * (1 - exp(-step / warmup_steps)).

    Attributes:
        model: the copy that holds the averages.
    """

    def __init__(self, model: nn.Module, decay: float, warmup_steps: int):
        self.decay = decay
        self.warmup_steps = warmup_steps
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    def decay_at(self, step: int) -> float:
        """Decay used after `step` finished steps."""
        return self.decay * (1 - math.exp(-step / self.warmup_steps))

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the model, `step` steps into the training."""
        averages = list(self.model.state_dict().values())
        values = list(model.state_dict().values())
        floats = [i for i, average in enumerate(averages) if average.is_floating_point()]
        counts = [i for i, average in enumerate(averages) if not average.is_floating_point()]
        torch._foreach_lerp_(
            [averages[i] for i in floats], [values[i] for i in floats], 1 - self.decay_at(step)
        )
        if counts:
            torch._foreach_copy_([averages[i] for i in counts], [values[i] for i in counts])
