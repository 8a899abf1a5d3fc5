"""The schema's `train` section: batches, optimiser, schedule, saving."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from gfl.schema.automatic import AUTO, OR_AUTO
from gfl.schema.section import Count, Float, Int, Positive, Section


class Train(Section):
    """The schedule."""

    epochs: Annotated[Count, OR_AUTO] = 12
    """auto chooses by the number of images (docs/auto.md)."""
    batch_size: Annotated[Count, OR_AUTO] = 16
    """Images of one optimiser step, over all processes and accumulated parts together. auto chooses
    by the free memory and the number of images (docs/auto.md)."""
    accumulate: Int = Field(default=1, ge=1)
    """Parts in which each process computes its share of a batch, to save memory."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Float = Field(default=0.01, gt=0)
    """Learning rate for a batch of `lr_batch_size` images."""
    lr_batch_size: Int | None = Field(default=16, ge=1)
    """The learning rate is multiplied by batch_size / lr_batch_size; null uses `lr` as it is."""
    momentum: Float = Field(default=0.9, ge=0, lt=1)
    """Of SGD; AdamW uses its usual betas."""
    weight_decay: Float = Field(default=0.0001, ge=0)
    decay_norm_and_bias: bool = True
    """Whether weight decay acts on norm layers and biases too, as in the reference."""
    freeze: tuple[str, ...] = ()
    """Modules of the detector that do not train, such as [backbone, neck.lateral]."""
    lr_factors: Annotated[
        dict[str, Positive], BeforeValidator(lambda given: {} if given is None else given)
    ] = {}
    """Modules of the detector to factors of their learning rate; the longest name decides. null
    drops those of an extended config."""
    layer_decay: Float | None = Field(default=None, gt=0, le=1)
    """Stage k of the backbone's n learns at layer_decay ** (n - k) times the rate; null is 1."""
    warmup_steps: Int = Field(default=500, ge=0)
    warmup_factor: Float = Field(default=0.001, gt=0, le=1)
    """The learning rate starts at this fraction and rises linearly."""
    schedule: Literal["multistep", "cosine", "flat_cosine"] = "multistep"
    """Steps down at `milestones`; a cosine; or the full rate first, then a cosine."""
    milestones: tuple[Int, ...] = (8, 11)
    """Epochs after which a multistep schedule divides the learning rate by 10."""
    final_factor: Float = Field(default=0.01, ge=0, le=1)
    """Fraction of the learning rate at which a cosine schedule ends."""
    flat_fraction: Float | None = Field(default=None, ge=0, lt=1)
    """With schedule: flat_cosine, how much of the training has the full rate; null is 0.5."""
    grad_clip: Float | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient; null leaves it alone."""
    precision: Annotated[Literal["fp32", "bf16", "fp16"], OR_AUTO] = "fp32"
    """Of the network's forward and backward; losses and boxes are always fp32. auto is bf16 where
    the device has instructions for it (docs/auto.md)."""
    channels_last: bool = False
    """Memory layout of images and weights; for GPUs in half precision, slower on many CPUs."""
    checkpoint_activations: bool = False
    """Compute the backbone's activations again in the backward, to save memory (docs/speed.md)."""
    compile: bool = False
    """Let torch.compile make programs of network and criterion, for few shapes (docs/speed.md)."""
    ema_decay: Float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, which are then evaluated and kept; null turns them off."""
    ema_warmup_steps: Int = Field(default=2000, ge=1)
    """The decay rises as decay * (1 - exp(-step / ema_warmup_steps))."""
    eval_epochs: Int = Field(default=1, ge=1)
    """Evaluate every that many epochs, and after the last."""
    early_stop_epochs: Int | None = Field(default=None, ge=1)
    """Stop when the best AP on val is that many epochs old at an evaluation; null never does."""
    eval_batch_size: Int = Field(default=4, ge=1)
    """Of one process; AP does not depend on it."""
    checkpoint_steps: Int = Field(default=1000, ge=1)
    """Write last.pt every that many steps, and after each epoch."""
    log_steps: Int = Field(default=20, ge=1)
    """Write a line of metrics every that many steps."""
    max_bad_steps: Int = Field(default=10, ge=1)
    """Stop after that many steps in a row whose loss is not finite."""
    seed: Int = Field(default=0, ge=0)
    deterministic: bool = False
    """Prefer algorithms that repeat bit for bit on a GPU (torch warns of others); slower."""

    @model_validator(mode="after")
    def _flat_part_is_used(self):
        if self.flat_fraction is not None and self.schedule != "flat_cosine":
            raise ValueError(
                f"flat_fraction is {self.flat_fraction:g}, but schedule is {self.schedule}, which "
                "has no flat part: leave it out, or set schedule: flat_cosine"
            )
        return self

    @model_validator(mode="after")
    def _milestones_are_known(self):
        if self.epochs == AUTO and self.schedule == "multistep" and self.milestones:
            raise ValueError(
                f"epochs: auto with schedule: multistep, whose milestones {list(self.milestones)} "
                "are epochs: set epochs, or schedule: cosine"
            )
        return self

    @model_validator(mode="after")
    def _milestones_rise(self):
        if list(self.milestones) != sorted({max(epoch, 1) for epoch in self.milestones}):
            raise ValueError(f"milestones are {list(self.milestones)}, expected rising epochs")
        return self
