"""The numbers of each step, once the device has finished it, and what to do about them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gfl.distributed import gather_objects, rank, sum_over_ranks, world_size
from gfl.engine.bad_batch import BadBatches
from gfl.engine.checkpoint import TrainState
from gfl.engine.options import LoopOptions
from gfl.engine.run_log import RunLog
from gfl.errors import TrainingFailed
from gfl.structures import Batch


@dataclass
class _StepRecord:
    """What is known of a step, until its numbers have arrived from the device."""

    step: int
    names: list[str]
    values: Tensor  # this process's losses, those that are logged, the gradient's norm
    batches: Sequence[Batch]
    is_logged: bool
    copied: torch.cuda.Event | None
    data_seconds: float = 0.0
    step_seconds: float = 0.0


class StepMonitor:
    """Reads each step's numbers one step later, when the device has long finished it."""

    def __init__(
        self, state: TrainState, options: LoopOptions, log: RunLog, bad_batches: BadBatches
    ):
        self.state = state
        self.options = options
        self.log = log
        self.bad_batches = bad_batches
        self._pending: _StepRecord | None = None

    def push(self, losses: dict[str, Tensor], grad_norm: Tensor, batches: Sequence[Batch]) -> None:
        """Take the numbers of the step just done, report those of the one before."""
        self.flush()
        own = torch.stack(tuple(losses.values()))
        is_logged = self.state.step % self.options.log_steps == 0
        mean = sum_over_ranks(own) / world_size() if is_logged else own
        values = torch.cat((own, mean, grad_norm[None]))
        copied = torch.cuda.Event() if values.is_cuda else None
        values = values.to("cpu", non_blocking=True)
        if copied:
            copied.record()
        self._pending = _StepRecord(
            self.state.step, list(losses), values, batches, is_logged, copied
        )

    def timed(self, data_seconds: float, step_seconds: float) -> None:
        """How long the step just pushed waited for data, and how long it took in all."""
        self._pending.data_seconds, self._pending.step_seconds = data_seconds, step_seconds
        watch = self.log.loader_watch
        message = watch and watch.step(data_seconds, step_seconds)
        if message:
            self.log.say(message)

    def flush(self) -> None:
        """Report what is still pending."""
        record, self._pending = self._pending, None
        if record is None:
            return
        if record.copied:
            record.copied.synchronize()
        own, values = record.values[:-1].view(2, -1).tolist()
        grad_norm = record.values[-1].item()
        losses = dict(zip(record.names, values, strict=True))
        self._check(record, dict(zip(record.names, own, strict=True)), grad_norm)
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
        by_rank = gather_objects(bad)
        scaler = self.state.scaler
        # Overflow is how fp16 finds its loss scale; below 1 there is nothing left to find.
        if scaler.is_enabled() and not any(by_rank) and scaler.get_scale() >= 1:
            self.log.say(
                f"step {record.step} skipped: its gradients overflowed in fp16, the loss "
                f"scale was lowered to {scaler.get_scale():g}"
            )
            return
        message = f"step {record.step} skipped: {self._explain(record, losses, by_rank)}"
        self.log.say(message)
        self.state.bad_steps += 1
        if self.state.bad_steps >= self.options.max_bad_steps:
            raise TrainingFailed(
                f"{self.state.bad_steps} steps in a row were not finite, the last: {message}. "
                "Lower train.lr, lengthen train.warmup_steps, set train.grad_clip, or use "
                "train.precision=fp32."
            )

    def _explain(
        self, record: _StepRecord, losses: dict[str, float], by_rank: list[list[str]]
    ) -> str:
        """Which term, which images, and where the batch is kept: of the process it happened on."""
        # What one process has that is not finite comes to all by the normalisers of the losses.
        culprits = self.bad_batches.culprits(record.batches)
        found = gather_objects(len(culprits) > 0)
        worst = max(range(len(by_rank)), key=lambda n: (found[n], len(by_rank[n])))
        bad = by_rank[worst]
        what = f"{', '.join(bad)} not finite" if bad else "the gradient is not finite"
        if not self.bad_batches.weights_are_finite():
            what += " because weights are not finite"
        where = None
        if rank() == worst:
            ids = [meta.image_id for batch in record.batches for meta in batch.metas]
            alone = " (each alone gives it)" if culprits and len(culprits) < len(ids) else ""
            names = self.bad_batches.names(culprits or ids)
            kept = self.bad_batches.save(record.step, record.batches, culprits, losses)
            where = f"images {names}{alone}; batch {kept}"
        return f"{what}; {gather_objects(where)[worst]}"
