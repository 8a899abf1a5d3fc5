"""Config to objects. The only file that turns names into classes.

The tables are public: add an entry to bring in a part of your own, then name it in the config.
"""

import torch
from torch import nn

from gfl.assigner import ATSSAssigner
from gfl.data.batch import padded_size
from gfl.data.dataset import CocoDataset
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.sampler import EvalSampler, TrainSampler
from gfl.data.transforms import Transform, resized_size
from gfl.distributed import rank, world_size
from gfl.engine.checkpoint import TrainState
from gfl.engine.ema import EMA
from gfl.engine.optim import Schedule, make_optimizer
from gfl.engine.train import LoopOptions
from gfl.errors import UserError, choose
from gfl.losses.criterion import GFLCriterion
from gfl.models.backbone import RESNETS, ResNet, load_imagenet_weights
from gfl.models.box_representation import GeneralBox
from gfl.models.detector import GFLDetector
from gfl.models.head import GFLHead
from gfl.models.neck import FPN
from gfl.postprocess import Postprocess
from gfl.schema import Config

BACKBONES = dict.fromkeys(RESNETS, ResNet)
NECKS = {"fpn": FPN}
HEADS = {"gfl": GFLHead}
BOX_REPRESENTATIONS = {"general": GeneralBox}
ASSIGNERS = {"atss": ATSSAssigner}

# Pyramid levels are made of the backbone's last three outputs, C3 to C5.
NUM_FEATURES = 3


def build_box_representation(config: Config) -> GeneralBox:
    """The meaning of the box channels, shared by network, criterion and postprocess."""
    part = choose("model.box", config.model.box, BOX_REPRESENTATIONS)
    return part(config.model.reg_max)


def build_model(
    config: Config, num_classes: int | None = None, load_pretrained: bool = True
) -> GFLDetector:
    """Make the network.

    Args:
        config: its `model` section is used.
        num_classes: C; default `config.model.num_classes`.
        load_pretrained: fill the backbone as `model.backbone.pretrained` says. False where other
            weights follow.

    Raises:
        UserError: an unknown component, no number of classes or two that differ, or weights that
            can not be had.
    """
    model = config.model
    num_classes = agreed_num_classes(config, num_classes)
    name = model.backbone.name
    backbone = choose("model.backbone.name", name, BACKBONES)(
        name, model.backbone.resolved_norm, model.backbone.resolved_frozen_stages
    )
    neck = choose("model.neck.name", model.neck.name, NECKS)(
        backbone.channels[-NUM_FEATURES:], backbone.strides[-NUM_FEATURES:], model.neck.channels
    )
    head = choose("model.head.name", model.head.name, HEADS)(
        neck.channels,
        num_classes,
        build_box_representation(config).channels,
        len(neck.strides),
        model.head.channels,
        model.head.stacked_convs,
    )
    if load_pretrained and model.backbone.pretrained is not False:
        load_imagenet_weights(backbone, name, model.backbone.pretrained)
    if model.backbone.resolved_norm == "sync":
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    return GFLDetector(backbone, neck, head, model.grid_origin)


def agreed_num_classes(config: Config, from_data: int | None) -> int:
    """The number of classes that config and data agree on."""
    stated = config.model.num_classes
    if from_data is None and stated is None:
        raise UserError("the number of classes is unknown: set model.num_classes, or give data.")
    if None not in (from_data, stated) and from_data != stated:
        raise UserError(
            f"model.num_classes is {stated}, but the data has {from_data} classes. Leave "
            "model.num_classes out to take the data's."
        )
    return from_data if stated is None else stated


def build_criterion(config: Config) -> GFLCriterion:
    """Make the loss."""
    assigner = choose("assigner.name", config.assigner.name, ASSIGNERS)(
        config.assigner.top_k, config.assigner.anchor_scale
    )
    loss = config.loss
    return GFLCriterion(
        assigner,
        build_box_representation(config),
        beta=loss.beta,
        cls_weight=loss.cls_weight,
        giou_weight=loss.giou_weight,
        dfl_weight=loss.dfl_weight,
    )


def build_postprocess(config: Config, distributions: bool = False) -> Postprocess:
    """Make the decoder; `distributions` as in `gfl.postprocess.Postprocess`."""
    options = config.postprocess
    return Postprocess(
        build_box_representation(config),
        score_threshold=options.score_threshold,
        pre_nms_top_k=options.pre_nms_top_k,
        pre_nms_rule=options.pre_nms_rule,
        nms_iou=options.nms_iou,
        max_per_image=options.max_per_image,
        distributions=distributions,
    )


def build_dataset(config: Config, split: str, class_names: tuple | None = None) -> CocoDataset:
    """Read the annotations of a split; `class_names` are those it must have."""
    sources = [(source.images, source.annotations) for source in config.data.sources(split)]
    dataset = CocoDataset(sources, class_names)
    if split != "train":
        dataset.require_distinct_image_ids()
    if dataset.report["objects"] == 0:
        names = ", ".join(annotations for _, annotations in sources)
        raise UserError(f"data.{split} has no object at all ({names}): nothing to learn or find.")
    return dataset


def build_train_loader(config: Config, dataset):
    """Shuffled, augmented batches; `loader.batch_sampler` is the `TrainSampler`.

    Raises:
        UserError: the batch does not divide among processes and accumulated parts.
    """
    data, train = config.data, config.train
    parts = world_size() * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f"train.batch_size {train.batch_size} is the total of {world_size()} processes and "
            f"train.accumulate {train.accumulate}: it must be a multiple of {parts}."
        )
    sampler = TrainSampler(
        dataset.sizes,
        train.batch_size,
        data.train_size.short_range,
        data.group_by_aspect,
        train.seed,
        train.accumulate,
        rank(),
        world_size(),
    )
    augment = data.augment
    transform = Transform(
        data.train_size.long,
        augment.flip_horizontal,
        augment.flip_vertical,
        augment.color,
        train.seed,
    )
    return BatchLoader(TransformedDataset(dataset, transform), sampler, data.workers)


def build_eval_loader(config: Config, dataset):
    """Each image once over all processes, in batches of one padded shape."""
    short, long = config.data.test_size.short_range[1], config.data.test_size.long
    sampler = EvalSampler(
        dataset.sizes,
        lambda size: padded_size(resized_size(size, short, long)),
        config.train.eval_batch_size,
        short,
        rank(),
        world_size(),
    )
    return BatchLoader(TransformedDataset(dataset, Transform(long)), sampler, config.data.workers)


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """The learning rate as a function of the step, for the real total batch."""
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
    )


def build_loop_options(config: Config, steps_per_epoch: int) -> LoopOptions:
    """What the training loop is told."""
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
    )


def build_state(
    config: Config,
    num_classes: int,
    steps_per_epoch: int,
    device: torch.device,
    load_pretrained: bool = True,
) -> TrainState:
    """Make what a training changes: network, optimiser and schedule, averages."""
    train = config.train
    if config.model.backbone.resolved_norm == "sync" and device.type == "cpu":
        raise UserError("model.backbone.norm: sync needs GPUs; on the CPU use norm: batch.")
    model = build_model(config, num_classes, load_pretrained)
    layout = torch.channels_last if train.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    averages = train.ema_decay is not None
    return TrainState(
        model=model,
        optimizer=make_optimizer(
            model,
            train.optimizer,
            train.momentum,
            train.weight_decay,
            train.decay_norm_and_bias,
        ),
        schedule=build_schedule(config, steps_per_epoch),
        scaler=torch.amp.GradScaler(device.type, enabled=train.precision == "fp16"),
        ema=EMA(model, train.ema_decay, train.ema_warmup_steps) if averages else None,
    )
