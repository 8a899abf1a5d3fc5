"""Network, loss and decoding from a config, and the tables of their parts."""

from torch import nn

from gfl.assigner import ATSSAssigner
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
        config.assigner.top_k, config.assigner.anchor_scale, config.assigner.ignore_crowd
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
