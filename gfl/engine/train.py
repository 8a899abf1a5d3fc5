"""The training loop: from a batch to the next weights."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from gfl.data.batch import Normalize
from gfl.data.static_shapes import static_batch
from gfl.engine.bad_batch import BadBatches
from gfl.engine.checkpoint import TrainState
from gfl.engine.memory import explained, lost_worker_explained
from gfl.engine.monitor import StepMonitor
from gfl.engine.options import LoopOptions
from gfl.engine.precision import PRECISIONS
from gfl.engine.run_log import RunLog
from gfl.errors import UserError
from gfl.structures import Batch, Predictions

# What to change when a step does not fit into memory.
ADVICE = "train.batch_size, raise train.accumulate, or set train.checkpoint_activations"


def train_one_epoch(
    state: TrainState,
    network: nn.Module,
    loader: Iterable[Batch],
    criterion: Callable,
    normalize: Normalize,
    options: LoopOptions,
    log: RunLog,
    bad_batches: BadBatches,
    save: Callable[[], None],
    stop_due: Callable[[int], bool],
    teacher: Callable[[Tensor], Predictions] | None = None,
) -> None:
    """Train on what is left of an epoch, or until a signal.

    Args:
        state: advanced by one step for each `options.accumulate` batches.
        network: `state.model`, or what computes the same: DDP around it, compiled.
        loader: this process's batches.
        criterion: `criterion(predictions, targets)` gives named losses.
        normalize: batch to network input.
        options: see `LoopOptions`.
        log: takes a line every `log_steps`.
        bad_batches: keeps those of steps that were not finite.
        save: writes a checkpoint; called every `checkpoint_steps`.
        stop_due: whether to return after that many finished steps; asked after each.
        teacher: what the student is to learn from, if anything.

    Raises:
        TrainingFailed: `max_bad_steps` steps in a row had a gradient that was not finite, or
            memory ran out.
    """
    network.train()
    monitor = StepMonitor(state, options, log, bad_batches)
    started = time.perf_counter()
    with lost_worker_explained():
        for batches in _groups(loader, options.accumulate):
            waited = time.perf_counter() - started
            with explained(batches, ADVICE):
                losses, norm = train_step(
                    state, network, batches, criterion, normalize, options, teacher
                )
            state.step += 1
            if state.ema:
                state.ema.update(state.model, state.step)
            monitor.push(losses, norm, batches)
            monitor.timed(waited, time.perf_counter() - started)
            if stop_due(state.step):
                break
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
    teacher: Callable[[Tensor], Predictions] | None = None,
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
    before = torch.cat(statistics) if statistics else None
    for group in state.optimizer.param_groups:
        group["lr"] = state.schedule(state.step) * group.get("lr_factor", 1.0)
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(batches):
        batch = batch.to(device, non_blocking=True)
        if options.pad_to:
            batch = static_batch(batch, options.pad_to)
        images = normalize(batch.images, batch.input_sizes)
        if options.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        is_last = number == len(batches) - 1
        with _gradient_exchange(network, is_last):
            with torch.autocast(
                device.type, PRECISIONS[options.precision], enabled=options.precision != "fp32"
            ):
                with norms_explained():
                    predictions = network(images)
                taught = () if teacher is None else (teacher(images),)
            losses = criterion(predictions, batch.targets, *taught)
            del images, predictions, taught  # so that the backward frees them when it is past them
            losses = {name: loss / len(batches) for name, loss in losses.items()}
            state.scaler.scale(sum(losses.values())).backward()
        for name, loss in losses.items():
            sums[name] = sums.get(name, 0) + loss.detach()
    state.scaler.unscale_(state.optimizer)
    trained = [p for p in state.model.parameters() if p.grad is not None]
    grad_norm = torch.nn.utils.get_total_norm([p.grad for p in trained], foreach=True)
    if options.grad_clip:
        torch.nn.utils.clip_grads_with_norm_(trained, options.grad_clip, grad_norm, foreach=True)
    finite = grad_norm.isfinite()
    if not state.scaler.is_enabled():
        state.optimizer.found_inf = (~finite).float()
    state.scaler.step(state.optimizer)
    state.scaler.update()
    if statistics:
        kept = torch.where(finite, torch.cat(statistics), before)
        torch._foreach_copy_(statistics, kept.split([len(value) for value in statistics]))
    return sums, grad_norm


@contextmanager
def norms_explained() -> Iterator[None]:
    """Say what to change where a batch norm is to learn from one value a channel."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UserError(
            "batch norms can not learn from one image whose coarsest map is 1 x 1: each needs two "
            "values a channel. Raise train.batch_size (that of each process and accumulated part) "
            "or data.train_size, or set model.head.norm=group model.head.statistics=shared."
        ) from error


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
