"""What a training loop is made of, from a config."""

import torch

from gfl.build.model import build_model
from gfl.engine.checkpoint import TrainState
from gfl.engine.ema import EMA
from gfl.engine.optim import Schedule, make_optimizer
from gfl.engine.options import LoopOptions
from gfl.errors import UserError
from gfl.models.recompute import recompute_activations
from gfl.models.trainable import rate_factors
from gfl.schema import Config


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """The learning rate as a function of the step, for the real total batch."""
    config.require_chosen("train.batch_size", "train.epochs")
    train = config.train
    scale = 1.0 if train.lr_batch_size is None else train.batch_size / train.lr_batch_size
    return Schedule(
        lr=train.lr * scale,
        total_steps=train.epochs * steps_per_epoch,
        kind=train.schedule,
        warmup_steps=train.warmup_steps,
        warmup_factor=train.warmup_factor,
        milestones=tuple(epoch * steps_per_epoch for epoch in train.milestones),
        final_factor=train.final_factor,
        flat_fraction=0.5 if train.flat_fraction is None else train.flat_fraction,
    )


def build_loop_options(
    config: Config, steps_per_epoch: int, pad_to: tuple[tuple[int, int], ...] = ()
) -> LoopOptions:
    """What the training loop is told; `pad_to` is `build_pad_to`'s."""
    config.require_chosen("train.precision")
    train = config.train
    return LoopOptions(
        epochs=train.epochs,
        steps_per_epoch=steps_per_epoch,
        accumulate=train.accumulate,
        precision=train.precision,
        channels_last=train.channels_last,
        grad_clip=train.grad_clip,
        log_steps=train.log_steps,
        checkpoint_steps=train.checkpoint_steps,
        max_bad_steps=train.max_bad_steps,
        pad_to=pad_to,
    )


def build_state(
    config: Config,
    num_classes: int,
    steps_per_epoch: int,
    device: torch.device,
    load_pretrained: bool = True,
) -> TrainState:
    """Make what a training changes: network, optimiser and schedule, averages."""
    config.require_chosen("train.precision")
    train = config.train
    if config.model.backbone.resolved_norm == "sync" and device.type == "cpu":
        raise UserError("model.backbone.norm: sync needs GPUs; on the CPU use norm: batch.")
    model = build_model(config, num_classes, load_pretrained)
    model.freeze(train.freeze)
    factors = None
    if train.lr_factors or train.layer_decay is not None:
        factors = rate_factors(model, train.lr_factors, train.layer_decay)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    averages = train.ema_decay is not None
    state = TrainState(
        model=model,
        optimizer=make_optimizer(
            model,
            train.optimizer,
            train.momentum,
            train.weight_decay,
            train.decay_norm_and_bias,
            factors,
        ),
        schedule=build_schedule(config, steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=train.precision == "fp16"),
        ema=EMA(model, train.ema_decay, train.ema_warmup_steps) if averages else None,
    )
    if train.checkpoint_activations:
        recompute_activations(model.backbone)
    return state
