"""Network, loss and decoding from a config, and the tables of their parts."""

from inspect import signature

from torch import nn

from gfl.assigner import (
    ATSSAssigner,
    FCOSAssigner,
    RetinaNetAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
    WithoutIgnored,
)
from gfl.errors import UserError, choose
from gfl.losses.criterion import GFLCriterion
from gfl.losses.distillation import LocalizationDistillation
from gfl.models.backbone import RESNETS, ResNet, load_imagenet_weights
from gfl.models.box_representation import (
    BoxRepresentation,
    DiracBox,
    GaussianBox,
    GeneralBox,
)
from gfl.models.conv_blocks import BlockOptions
from gfl.models.detector import GFLDetector
from gfl.models.feature_backbone import LIBRARIES, FeatureBackbone
from gfl.models.head import GFLHead
from gfl.models.neck import FPN
from gfl.models.pafpn import PAFPN
from gfl.models.quality import DistributionQuality
from gfl.postprocess import Postprocess
from gfl.quality import QUALITY_MODES
from gfl.schema import Config
from gfl.schema.model import Backbone, Head, Model, Neck

BACKBONES = dict.fromkeys(RESNETS, ResNet)
NECKS = {"fpn": FPN, "pafpn": PAFPN}
HEADS = {"gfl": GFLHead}
BOX_REPRESENTATIONS = {"general": GeneralBox, "gaussian": GaussianBox, "dirac": DiracBox}
ASSIGNERS = {
    "atss": ATSSAssigner,
    "fcos": FCOSAssigner,
    "retinanet": RetinaNetAssigner,
    "tal": TaskAlignedAssigner,
    "simota": SimOTAAssigner,
}

# How many of the backbone's last outputs the pyramid is made of: C2 to C5, or C3 to C5.
NUM_FEATURES = {"P2": 4, "P3": 3}


def build_box_representation(config: Config) -> BoxRepresentation:
    """The meaning of the box channels, shared by network, criterion and postprocess."""
    config.require_chosen("model.reg_max")
    part = choose("model.box", config.model.box, BOX_REPRESENTATIONS)
    return part(config.model.reg_max, config.model.bin_width)


def build_assigner(config: Config):
    """Which locations answer for which object: each assigner takes the options that it names."""
    part = choose("assigner.name", config.assigner.name, ASSIGNERS)
    assigner = part(**_taken(part, config.assigner.model_dump()))
    # Parts of objects that tiles cut are regions to ignore.
    return assigner if config.data.tiles is None else WithoutIgnored(assigner)


def _taken(part, options: dict) -> dict:
    """Those options that a part has an argument for."""
    return {name: options[name] for name in signature(part).parameters if name in options}


def build_backbone(
    options: Backbone, load_pretrained: bool = True, num_features: int = NUM_FEATURES["P3"]
) -> nn.Module:
    """The network that gives features: a name of `BACKBONES`, timm/NAME or torchvision/NAME.

    Of its outputs, the last `num_features` will be used.
    """
    settings = options.name, options.resolved_norm, options.resolved_frozen_stages
    load = load_pretrained and options.pretrained is not False
    if options.name.partition("/")[0] in LIBRARIES:
        if options.deformable_stages:
            raise UserError(
                f"model.backbone.deformable_stages needs a name of {', '.join(BACKBONES)}, not "
                f"{options.name!r}."
            )
        backbone = FeatureBackbone(*settings, num_features)
        if load:
            backbone.load_weights(options.pretrained)
        return backbone
    others = {f"{library}/NAME": FeatureBackbone for library in LIBRARIES}
    backbone = choose("model.backbone.name", options.name, {**BACKBONES, **others})(
        *settings, options.deformable_stages, options.deformable_version
    )
    if load:
        load_imagenet_weights(backbone, options.name, options.pretrained)
    if options.resolved_norm == "sync":
        backbone = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)
    return backbone


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
        UserError: an unknown component, no number of classes or two that differ, strides that
            are not those declared, or weights that can not be had.
    """
    model = config.model
    num_classes = agreed_num_classes(config, num_classes)
    num_features = NUM_FEATURES[model.neck.finest]
    backbone = build_backbone(model.backbone, load_pretrained, num_features)
    neck = _build_neck(model, backbone, num_features)
    if model.strides not in (None, neck.strides):
        raise UserError(
            f"model.strides is {list(model.strides)}, but {model.backbone.name} and "
            f"{model.neck.name} have {list(neck.strides)}. Leave model.strides out to take those."
        )
    mode = choose("model.quality", model.quality, QUALITY_MODES)
    quality = None
    if mode.predictor:
        quality = DistributionQuality(model.head.quality_top_k, model.head.quality_channels)
    part = choose("model.head.name", model.head.name, HEADS)
    norm_levels = len(neck.strides) if model.head.statistics == "per_level" else 0
    more = {
        "blocks": _blocks(model.head, norm_levels),
        "shared_tower": model.head.towers == "shared",
    }
    head = part(
        neck.channels,
        num_classes,
        build_box_representation(config).channels,
        len(neck.strides),
        model.head.channels,
        model.head.stacked_convs,
        quality,
        model.head.background_channel,
        mode.branch,
        getattr(choose("assigner.name", config.assigner.name, ASSIGNERS), "anchors_per_cell", 1),
        model.head.score_bins if model.head.score == "distribution" else 1,
        **_taken(part, more),
    )
    if model.backbone.resolved_norm == "sync":
        neck, head = map(nn.SyncBatchNorm.convert_sync_batchnorm, (neck, head))
    return GFLDetector(backbone, neck, head, model.grid_origin, num_features)


def _build_neck(model: Model, backbone: nn.Module, num_features: int) -> nn.Module:
    options, strides = model.neck, backbone.strides[-num_features:]
    if options.finest == "P2" and (len(strides) < num_features or strides[0] != 4):
        raise UserError(
            f"model.neck.finest is P2, made of features of strides 4 to 32, but "
            f"{model.backbone.name} has {list(backbone.strides)}. Set model.neck.finest=P3, or "
            "choose a backbone that has them."
        )
    part = choose("model.neck.name", options.name, NECKS)
    more = {"num_extra": options.levels - num_features, "blocks": _blocks(options)}
    channels = backbone.channels[-num_features:]
    return part(channels, strides, options.channels, **_taken(part, more))


def _blocks(options: Neck | Head, norm_levels: int = 0) -> BlockOptions:
    return BlockOptions(options.conv, options.kernel, options.norm, options.activation, norm_levels)


def agreed_num_classes(config: Config, from_data: int | None) -> int:
    """The number of classes that config and data agree on."""
    stated = config.model.num_classes
    if from_data is None and stated is None:
        raise UserError(
            "the number of classes is unknown, which a training takes from its data: set "
            "model.num_classes=80, or call build_model(config, num_classes=80)."
        )
    if None not in (from_data, stated) and from_data != stated:
        raise UserError(
            f"model.num_classes is {stated}, but the data has {from_data} classes. Leave "
            "model.num_classes out to take the data's."
        )
    return from_data if stated is None else stated


def build_criterion(config: Config) -> GFLCriterion:
    """Make the loss."""
    loss, distillation = config.loss, None
    if config.distill.teacher:
        distillation = LocalizationDistillation(
            config.model.reg_max + 1,
            config.distill.weight,
            config.distill.temperature,
            config.distill.region,
            config.assigner.anchor_scale,
        )
    return GFLCriterion(
        build_assigner(config),
        build_box_representation(config),
        beta=loss.beta,
        cls_weight=loss.cls_weight,
        giou_weight=loss.giou_weight,
        dfl_weight=loss.dfl_weight,
        quality=choose("model.quality", config.model.quality, QUALITY_MODES),
        focal_alpha=loss.focal_alpha,
        focal_gamma=loss.focal_gamma,
        distillation=distillation,
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
        background_channel=config.model.head.background_channel,
    )
