"""The training loop: from a batch to the next weights."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gfl.data.batch import Normalize
from gfl.distributed import gather_objects, sum_over_ranks, world_size
from gfl.engine.checkpoint import TrainState
from gfl.engine.run_log import RunLog
from gfl.errors import TrainingFailed
from gfl.structures import Batch

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class LoopOptions:
    """What the loop is told by the config's `train` section (see `gfl/schema/train.py`)."""

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
        monitor.push(losses, grad_norm, image_ids)
        monitor.timed(waited, time.perf_counter() - started)
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

    A gradient that is not finite leaves weights and batch-norm statistics as they are: a flag that
    stays on the device tells the optimiser.

    Returns:
        Named losses, averaged over the parts of the batch, and the gradient's norm before
        clipping; () tensors on the device.
    """
    device = normalize.mean.device
    statistics = _learned_statistics(state.model)
    before = [value.clone() for value in statistics]
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule(state.step) * group.get("lr_factor", 1.0)
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
    finite = grad_norm.isfinite()
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = (~finite).float()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    for value, old in zip(statistics, before, strict=True):
        value.copy_(torch.where(finite, value, old))
    return sums, grad_norm


@dataclass
class _StepRecord:
    """What is known of a step, until its numbers have arrived from the device."""

    step: int
    names: list[str]
    values: Tensor  # the losses, then the gradient's norm
    image_ids: list[int]
    is_logged: bool
    copied: torch.cuda.Event | None
    data_seconds: float = 0.0
    step_seconds: float = 0.0


class StepMonitor:
    """Reads each step's numbers one step later, when the device has long finished it."""

    def __init__(self, state: TrainState, options: LoopOptions, log: RunLog):
        self.state = state
        self.options = options
        self.log = log
        self._pending: _StepRecord | None = None

    def push(self, losses: dict[str, Tensor], grad_norm: Tensor, image_ids: list[int]) -> None:
        """Take the numbers of the step just done, report those of the one before."""
        self.flush()
        values = torch.stack((*losses.values(), grad_norm))
        is_logged = self.state.step % self.options.log_steps == 0
        if is_logged:
            values[:-1] = sum_over_ranks(values[:-1]) / world_size()
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if copied:
            copied.record()
        self._pending = _StepRecord(
            self.state.step, list(losses), values, image_ids, is_logged, copied
        )

    def timed(self, data_seconds: float, step_seconds: float) -> None:
        """How long the step just pushed waited for data, and how long it took in all."""
        self._pending.data_seconds, self._pending.step_seconds = data_seconds, step_seconds

    def flush(self) -> None:
        """Report what is still pending."""
        record, self._pending = self._pending, None
        if record is None:
            return
        if record.copied:
            record.copied.synchronize()
        *values, grad_norm = record.values.tolist()
        losses = dict(zip(record.names, values, strict=True))
        self._check(record, losses, grad_norm)
        epoch = (record.step - 1) // self.options.steps_per_epoch + 1
        if record.is_logged:
            memory = {"memory_gib": torch.cuda.max_memory_allocated() / 2**30}
            self.log.metrics(
                record.step,
                {
                    "epoch": epoch,
                    "lr": self.state.schedule(record.step - 1),
                    "loss": sum(values),
                    **losses,
                    "grad_norm": grad_norm,
                    "data_seconds": record.data_seconds,
                    "step_seconds": record.step_seconds,
                    **(memory if record.copied else {}),
                },
            )
        parts = " ".join(f"{k.removeprefix('loss_')} {v:.3f}" for k, v in losses.items())
        description = f"epoch {epoch}/{self.options.epochs}"
        self.log.advance(description, f"loss {sum(values):.3f} ({parts})")

    def _check(self, record: _StepRecord, losses: dict[str, float], grad_norm: float) -> None:
        """Say which steps were skipped and why, and stop when there are too many in a row."""
        if math.isfinite(grad_norm):
            self.state.bad_steps = 0
            return
        # The norm is the same on all ranks, so all of them get here.
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        by_rank = gather_objects((bad, record.image_ids))
        if self.state.scaler.is_enabled() and not any(bad for bad, _ in by_rank):
            self.log.say(
                f"step {record.step} skipped: its gradients overflowed in fp16, the loss "
                f"scale was lowered to {self.state.scaler.get_scale():g}"
            )
            return
        bad, image_ids = max(by_rank, key=lambda entry: len(entry[0]))
        what = f"{', '.join(bad)} not finite" if bad else "the gradient is not finite"
        message = f"step {record.step} skipped: {what}; images {image_ids[:16]}"
        self.log.say(message)
        self.state.bad_steps += 1
        if self.state.bad_steps >= self.options.max_bad_steps:
            raise TrainingFailed(
                f"{self.state.bad_steps} steps in a row were not finite, the last: {message}. "
                "Lower train.lr, lengthen train.warmup_steps, set train.grad_clip, or use "
                "train.precision=fp32."
            )


def _learned_statistics(model: nn.Module) -> list[Tensor]:
    """Means and variances that a forward changes; an infinite pixel would spoil them for good."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    return [value for m in norms if m.training for value in (m.running_mean, m.running_var)]


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
