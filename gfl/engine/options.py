"""What the training loop is told."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LoopOptions:
    """What the loop is told by the config's `train` section (see `gfl/schema/train.py`).

    `pad_to` are the (h, w) that batches are padded to; () leaves each batch its own shape.
    """

    epochs: int
    steps_per_epoch: int
    accumulate: int = 1
    precision: str = "fp32"
    channels_last: bool = False
    grad_clip: float | None = None
    log_steps: int = 20
    checkpoint_steps: int = 1000
    max_bad_steps: int = 10
    pad_to: tuple[tuple[int, int], ...] = ()
