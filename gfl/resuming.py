"""Whether a checkpoint can be gone on from with this config and data, doing so, and saying so."""

import math
import shlex
from pathlib import Path

from gfl.engine.checkpoint import TrainState
from gfl.engine.early_stop import stopped_early
from gfl.engine.keeper import BEST
from gfl.errors import UserError, some
from gfl.schema import Config
from gfl.work_dir import differences


def restore(
    state: TrainState,
    checkpoint: dict,
    config: Config,
    class_names: tuple[str, ...],
    steps_per_epoch: int,
) -> None:
    """Give a new state what the checkpoint holds.

    Raises:
        UserError: the checkpoint is of other classes, data, batch, model or optimizer, or holds
            weights only.
    """
    if "optimizer" not in checkpoint:
        raise UserError("last.pt holds weights only: nothing to resume.")
    known = tuple(checkpoint["class_map"]["names"])
    if known != class_names:
        gone, new = sorted({*known} - {*class_names}), sorted({*class_names} - {*known})
        how = f"gone {some(gone)}, new {some(new)}" if gone or new else "their order has changed"
        raise UserError(
            f"the checkpoint's {len(known)} classes are not the {len(class_names)} of the data: "
            f"{how}. Resume with the data it was trained on."
        )
    if checkpoint["steps_per_epoch"] != steps_per_epoch:
        raise UserError(
            f"the checkpoint has {checkpoint['steps_per_epoch']} steps an epoch, this config "
            f"and data give {steps_per_epoch}: resume with the same data and train.batch_size."
        )
    epochs_done = checkpoint["step"] / steps_per_epoch
    if epochs_done > config.train.epochs:
        raise UserError(
            f"train.epochs is {config.train.epochs}, but the checkpoint has {epochs_done:g} epochs "
            f"behind it: say at least {math.ceil(epochs_done)}, or begin in another --work-dir."
        )
    before, now = checkpoint["config"]["train"]["optimizer"], config.train.optimizer
    if before != now:
        raise UserError(f"the checkpoint was trained with {before}, the config says {now}.")
    try:
        state.load_state_dict(checkpoint)
    except (RuntimeError, ValueError, KeyError) as error:
        changes = differences(checkpoint["config"], config.to_dict())
        named = [line for line in changes if line.startswith(("model.", "train."))]
        # What torch says of names and shapes is long, and the keys say more.
        reasons = [" ".join(str(error).split())[:500]]
        if named and isinstance(error, RuntimeError):
            reasons = []
        if named:
            reasons.append(f"changed since the checkpoint: {'; '.join(named)}")
        raise UserError(
            f"last.pt does not fit this config's model or optimizer: {' '.join(reasons)}"
        ) from None


def resumed_lines(state: TrainState, config: Config, total_steps: int, work_dir: Path) -> list[str]:
    """Where a resumed training stands; of one that is finished, how to train longer."""
    lines = [f"resumed at step {state.step} of {total_steps}"]
    epochs = config.train.epochs
    if state.step < total_steps:
        patience, steps_per_epoch = config.train.early_stop_epochs, total_steps // epochs
        reason = stopped_early(state.best, state.evaluated_step, steps_per_epoch, patience)
        if reason:
            lines.append(
                f"nothing is left to do: {reason}; --resume train.early_stop_epochs=null trains "
                f"all {epochs} epochs"
            )
        return lines
    best = f"{work_dir / BEST} is not there, so these weights are evaluated now"
    if state.best:
        ap, epoch = state.best["AP"], state.best["epoch"]
        best = f"best AP {ap:.4f} on val, of epoch {epoch}: {work_dir / BEST}"
    lines.append(f"this training is finished, {epochs} of {epochs} epochs; {best}")
    lines.append(
        f"to train longer, say so with more epochs: --resume train.epochs={2 * epochs} (the "
        "learning rate is then the longer schedule's), or begin a new schedule from these weights: "
        f"{shlex.quote(f'init_from={work_dir / BEST}')} --work-dir runs/NEW"
    )
    return lines
