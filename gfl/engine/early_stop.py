"""Whether a training has stopped getting better: `train.early_stop_epochs`."""


def epochs_without_gain(best: dict, evaluated_step: int, steps_per_epoch: int) -> int:
    """Epochs from the best evaluation to the last one; 0 where nothing was evaluated.

    Args:
        best: its AP and "epoch", or empty.
        evaluated_step: the step after which the last evaluation took place.
        steps_per_epoch: optimiser steps.
    """
    return evaluated_step // steps_per_epoch - best["epoch"] if best else 0


def stopped_early(
    best: dict, evaluated_step: int, steps_per_epoch: int, patience: int | None
) -> str | None:
    """Why a training stops although epochs are left; None where it goes on.

    It is a function of what a checkpoint holds, the same on every process and after a resume.

    Args:
        best, evaluated_step, steps_per_epoch: see `epochs_without_gain`.
        patience: `train.early_stop_epochs`, None for no early stop.
    """
    waited = epochs_without_gain(best, evaluated_step, steps_per_epoch)
    if patience is None or waited < patience:
        return None
    return (
        f"stopped early: the best AP on val, {best['AP']:.4f} of epoch {best['epoch']}, has not "
        f"risen for {waited} epochs (train.early_stop_epochs {patience})"
    )
