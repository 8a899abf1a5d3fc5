"""A row's network with all that one training step and one detection of it need."""

import time
from pathlib import Path

import torch

from gfl import build
from gfl.config import Config
from gfl.engine.checkpoint import load_checkpoint
from gfl.engine.evaluate import detect
from gfl.engine.memory import explained
from gfl.engine.train import ADVICE, train_step
from gfl.structures import Batch
from gfl.teacher import load_teacher


class Contestant:
    """One of several networks that take turns on the same batches.

    Args:
        config: of its run.
        num_classes: C.
        device: where it computes.
        checkpoint: a last.pt that gives its weights, and the precision that its training used;
            None takes random ones.
    """

    def __init__(
        self,
        config: Config,
        num_classes: int,
        device: torch.device,
        checkpoint: str | Path | None = None,
    ):
        self.device = device
        content = {} if checkpoint is None else load_checkpoint(checkpoint)
        used = content.get("precision", {}).get("used")
        if used is not None:
            train = config.train.model_copy(update={"precision": used})
            config = config.model_copy(update={"train": train})
        self.state = build.build_state(config, num_classes, 1, device, load_pretrained=False)
        if content:
            self.state.model.load_state_dict(content["ema"] or content["model"])
        self.teacher = load_teacher(config, self.state.model, device)
        self.criterion = build.build_criterion(config)
        self.normalize = build.build_normalize(config, device)
        self.postprocess = build.build_postprocess(config)
        self.options = build.build_loop_options(config, 1)

    def step(self, batches: list[Batch]) -> float:
        """Seconds of one training step, at the rate of the first step of the warm-up."""
        state = self.state
        state.model.train()
        started = self._now()
        with explained(batches, ADVICE):
            train_step(
                state,
                state.model,
                batches,
                self.criterion,
                self.normalize,
                self.options,
                self.teacher,
            )
            if state.ema:
                state.ema.update(state.model, 1)
        return self._now() - started

    def detect(self, batch: Batch) -> float:
        """Seconds of detecting in a batch, decoding and NMS included."""
        started = self._now()
        detect(self.state.model, [batch], self.postprocess, self.normalize)
        return self._now() - started

    def checkpoint_bytes(self) -> int:
        """Bytes of the tensors that its last.pt holds, once it has taken a step."""
        return _bytes(self.state.state_dict())

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _bytes(value: object) -> int:
    if isinstance(value, torch.Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    return 0
