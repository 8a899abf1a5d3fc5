"""The training loop: from a batch to the next weights."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfl.data.batch import Normalize
from gfl.distributed import sum_over_ranks, world_size
from gfl.engine.checkpoint import TrainState
from gfl.engine.run_log import RunLog
from gfl.errors import TrainingFailed
from gfl.structures import Batch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoopOptions:
    """What the loop is told by the config's `train` section (see `gfl.config.Train`)."""

    epochs: int
    steps_per_epoch: int
    accumulate: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    grad_clip: float | None = None
    log_steps: int = 20
    checkpoint_steps: int = 1000
    max_bad_steps: int = 10


def train_one_epoch(
    state: TrainState,
    network: nn.Module,
    loader: Iterable[Batch],
    criterion: Callable,
    normalize: Normalize,
    options: LoopOptions,
    log: RunLog,
    save: Callable[[], None],
) -> None:
    """Train on what is left of an epoch.

    Args:
        state: advanced by one step for each `options.accumulate` batches.
        network: `state.model`, or DDP around it.
        loader: this process's batches.
        criterion: `criterion(predictions, targets)` gives named losses.
        normalize: batch to network input.
        options: see `LoopOptions`.
        log: takes a line every `log_steps`.
        save: writes a checkpoint; called every `checkpoint_steps`.

    Raises:
        TrainingFailed: `max_bad_steps` steps in a row had a gradient that was not finite.
    """
    network.train()
    monitor = StepMonitor(state, options, log)
    started = time.perf_counter()
    for batches in _groups(loader, options.accumulate):
        waited = time.perf_counter() - started
        losses, grad_norm = train_step(state, network, batches, criterion, normalize, options)
        state.step += 1
        if state.ema:
            state.ema.update(state.model, state.step)
        image_ids = [meta.image_id for batch in batches for meta in batch.metas]
        monitor.push(losses, grad_norm, image_ids, waited, time.perf_counter() - started)
        if state.step % options.checkpoint_steps == 0:
            monitor.flush()
            save()
        started = time.perf_counter()
    monitor.flush()


def train_step(
    state: TrainState,
    network: nn.Module,
    batches: list[Batch],
    criterion: Callable,
    normalize: Normalize,
    options: LoopOptions,
) -> tuple[dict[str, Tensor], Tensor]:
    """One optimiser step. Between the forward and the step the host never waits for the device.

    A gradient that is not finite leaves the weights as they are: the optimiser is told so by a
    flag that stays on the device.

    Returns:
        Named losses, averaged over the parts of the batch, and the gradient's norm before
        clipping; () tensors on the device.
    """
    device = normalize.mean.device
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule(state.step)
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        batch = batch.to(device, non_blocking=True)
        images = normalize(batch.images, batch.input_sizes)
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        is_last = number == len(batches) - 1
        with _gradient_exchange(network, is_last):
            with torch.autocast(
                device.type, PRECISIONS[options.precision], enabled=options.precision != "fp32"
            ):
                predictions = network(images)
            losses = criterion(predictions, batch.targets)
            losses = {name: loss / len(batches) for name, loss in losses.items()}
            state.scaler.scale(sum(losses.values())).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach()
    state.scaler.unscale_(state.optimizer)
    grad_norm = torch.nn.utils.clip_grad_norm_(
        (p for p in state.model.parameters() if p.grad is not None),
        options.grad_clip or math.inf,
        foreach=True,
    )
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = (~grad_norm.isfinite()).float()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    return sums, grad_norm


class StepMonitor:
    """Reads each step's numbers one step later, when the device has long finished it."""

    def __init__(self, state: TrainState, options: LoopOptions, log: RunLog):
        self.state = state
        self.options = options
        self.log = log
        self._pending: tuple | None = None

    def push(
        self,
        losses: dict[str, Tensor],
        grad_norm: Tensor,
        image_ids: list[int],
        data_seconds: float,
        step_seconds: float,
    ) -> None:
        """Take the numbers of the step just done, report those of the one before."""
        self.flush()
        values = torch.stack((*losses.values(), grad_norm))
        is_logged = self.state.step % self.options.log_steps == 0
        if is_logged:
            values[:-1] = sum_over_ranks(values[:-1]) / world_size()
        values = values.to("cpu", non_blocking=True)
        copied = torch.cuda.Event() if torch.cuda.is_available() else None
        if copied:
            copied.record()
        times = {"data_seconds": data_seconds, "step_seconds": step_seconds}
        self._pending = (self.state.step, list(losses), values, image_ids, times, is_logged, copied)

    def flush(self) -> None:
        """Report what is still pending."""
        if self._pending is None:
            return
        step, names, values, image_ids, times, is_logged, copied = self._pending
        self._pending = None
        if copied:
            copied.synchronize()
        *losses, grad_norm = values.tolist()
        self._check(step, dict(zip(names, losses, strict=True)), grad_norm, image_ids)
        epoch = (step - 1) // self.options.steps_per_epoch + 1
        total = sum(losses)
        if is_logged:
            self.log.metrics(
                step,
                {
                    "epoch": epoch,
                    "lr": self.state.schedule(step - 1),
                    "loss": total,
                    **dict(zip(names, losses, strict=True)),
                    "grad_norm": grad_norm,
                    **times,
                },
            )
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.3f}"
            for name, value in zip(names, losses, strict=True)
        )
        self.log.advance(f"epoch {epoch}/{self.options.epochs}", f"loss {total:.3f} ({parts})")

    def _check(self, step: int, losses: dict, grad_norm: float, image_ids: list[int]) -> None:
        if math.isfinite(grad_norm):
            self.state.bad_steps = 0
            return
        self.state.bad_steps += 1
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        what = f"{', '.join(bad)} not finite" if bad else "the gradient is not finite"
        message = f"step {step} skipped: {what}; images {image_ids[:16]}"
        self.log.say(message)
        if self.state.bad_steps >= self.options.max_bad_steps:
            raise TrainingFailed(
                f"{self.state.bad_steps} steps in a row were not finite, the last: {message}. "
                "Lower train.lr, lengthen train.warmup_steps, set train.grad_clip, or use "
                "train.precision=fp32."
            )


def _groups(loader: Iterable[Batch], size: int) -> Iterator[list[Batch]]:
    """Lists of `size` batches."""
    group = []
    for batch in loader:
        group.append(batch)
        if len(group) == size:
            yield group
            group = []


def _gradient_exchange(network: nn.Module, is_last: bool):
    """DDP exchanges gradients with the last part of an accumulated batch only."""
    if is_last or not hasattr(network, "no_sync"):
        return torch.enable_grad()
    return network.no_sync()
