"""Whether a checkpoint can be gone on from with this config and data, and doing so."""

from gfl.engine.checkpoint import TrainState
from gfl.errors import UserError
from gfl.schema import Config


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
    if tuple(checkpoint["class_map"]["names"]) != class_names:
        raise UserError(
            f"the checkpoint's classes {checkpoint['class_map']['names']} are not those of the "
            f"data {list(class_names)}: resume with the data it was trained on."
        )
    if checkpoint["steps_per_epoch"] != steps_per_epoch:
        raise UserError(
            f"the checkpoint has {checkpoint['steps_per_epoch']} steps an epoch, this config "
            f"and data give {steps_per_epoch}: resume with the same data and train.batch_size."
        )
    before, now = checkpoint["config"]["train"]["optimizer"], config.train.optimizer
    if before != now:
        raise UserError(f"the checkpoint was trained with {before}, the config says {now}.")
    try:
        state.load_state_dict(checkpoint)
    except (RuntimeError, ValueError, KeyError) as error:
        raise UserError(
            f"last.pt does not fit this config's model or optimizer: {str(error)[:500]}"
        ) from None
