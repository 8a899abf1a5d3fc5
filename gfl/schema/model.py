"""The schema's sections about the method: network, assigner, loss, decoding."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gfl.schema.automatic import AUTO, OR_AUTO
from gfl.schema.section import Count, Float, Int, Probability, Section


class Backbone(Section):
    """What turns images into features."""

    name: str = "resnet50"
    """A name of `gfl.build.BACKBONES`, timm/NAME, or torchvision/NAME."""
    pretrained: bool | str = True
    """Published weights: true (downloaded once), a file, or false for training from scratch."""
    norm: Literal["frozen", "batch", "sync"] | None = None
    """Batch-norm statistics; default: frozen (kept) if pretrained, else batch (learned)."""
    frozen_stages: Int | None = Field(default=None, ge=0, le=4)
    """Stages that do not train; 1 is the stem and the first. Default: 1 with pretrained weights."""
    deformable_stages: tuple[Literal[2, 3, 4, 5], ...] = ()
    """Which of the stages C2 ... C5 have deformable 3x3 convolutions."""
    deformable_version: Literal[1, 2] = 2
    """1 moves the sampling points, 2 weighs them too."""

    @model_validator(mode="after")
    def _each_stage_once(self):
        stages = self.deformable_stages
        if len(set(stages)) < len(stages):
            raise ValueError(f"deformable_stages is {list(stages)}, expected each stage once")
        return self

    @property
    def resolved_norm(self) -> str:
        return self.norm or ("batch" if self.pretrained is False else "frozen")

    @property
    def resolved_frozen_stages(self) -> int:
        if self.frozen_stages is None:
            return 0 if self.pretrained is False else 1
        return self.frozen_stages


class Neck(Section):
    """What turns features into a pyramid."""

    name: str = "fpn"
    """A name of `gfl.build.NECKS`: fpn, or pafpn (path aggregation, which light models have)."""
    channels: Int = Field(default=256, ge=1, le=8192)
    finest: Literal["P2", "P3"] = "P3"
    """The first level, of stride 4 or 8."""
    levels: Int = Field(default=5, ge=3, le=8)
    """How many, the stride doubling from one to the next."""
    conv: Literal["plain", "depthwise"] = "depthwise"
    """With name: pafpn, what its blocks are: a convolution, or one channel by channel and a 1x1."""
    kernel: Literal[3, 5] = 5
    """With name: pafpn, the side of its convolutions."""
    norm: Literal["group", "batch"] = "batch"
    """With name: pafpn. Batch norms learn over all processes if model.backbone.norm is sync."""
    activation: Literal["relu", "hardswish", "silu"] = "relu"
    """With name: pafpn."""

    @model_validator(mode="after")
    def _fits(self):
        if self.finest == "P2" and self.levels < 4:
            raise ValueError(
                f"levels is {self.levels}, but finest: P2 makes a level of each of C2 to C5: "
                "expected 4 or more"
            )
        own = {key: getattr(self, key) for key in ("conv", "kernel", "norm", "activation")}
        changed = [key for key in own if own[key] != type(self).model_fields[key].default]
        if self.name == "fpn" and changed:
            raise ValueError(
                f"{changed[0]}: {own[changed[0]]} has no meaning with name: fpn, whose "
                "convolutions are plain 3x3 ones without norm; choose name: pafpn"
            )
        if self.name == "pafpn" and self.norm == "group":
            _check_groups(self.channels)
        return self


class Head(Section):
    """The shared towers."""

    name: str = "gfl"
    """A name of `gfl.build.HEADS`."""
    channels: Int = Field(default=256, ge=8, le=8192, multiple_of=8)
    """Width of the towers; with norm: group, 64 or more and a multiple of 32."""
    stacked_convs: Int = Field(default=4, ge=1, le=64)
    """Depth of each tower."""
    conv: Literal["plain", "depthwise"] = "plain"
    """What the towers' blocks are: a convolution, or one channel by channel and a 1x1. With
    depthwise, the last convolutions are 1x1 instead of 3x3."""
    kernel: Literal[3, 5] = 3
    """Side of the towers' convolutions."""
    norm: Literal["group", "batch"] = "group"
    """Batch norms learn over all processes if model.backbone.norm is sync."""
    statistics: Literal["shared", "per_level"] = "shared"
    """With norm: batch, one norm for all levels, or one for each behind shared convolutions."""
    activation: Literal["relu", "hardswish", "silu"] = "relu"
    towers: Literal["separate", "shared"] = "separate"
    """One tower for class and one for box, or one for both."""
    quality_top_k: Int = Field(default=4, ge=1, le=4097)
    """With quality: distribution_guided, how many probabilities of a side it looks at."""
    quality_channels: Int = Field(default=64, ge=1, le=8192)
    """With quality: distribution_guided, the predictor's hidden channels."""
    score: Literal["scalar", "distribution"] = "scalar"
    """What a class score is: the sigmoid of a logit, or the expectation of a distribution over
    score_bins scores from 0 to 1."""
    score_bins: Int = Field(default=11, ge=2, le=1001)
    """With score: distribution, how many."""
    background_channel: bool = False
    """A last class channel that is trained to 0 and never detected, as public GFLv2 files have."""

    @model_validator(mode="after")
    def _norms_fit(self):
        if self.norm == "group":
            _check_groups(self.channels)
            if self.statistics == "per_level":
                raise ValueError(
                    "statistics: per_level with norm: group: a group norm keeps no statistics; "
                    "choose norm: batch, or statistics: shared"
                )
        return self


def _check_groups(channels: int) -> None:
    if channels < 64 or channels % 32:
        raise ValueError(
            f"channels is {channels}, but norm: group has 32 groups and needs two channels in "
            "each: expected a multiple of 32 from 64 on, or norm: batch"
        )


class Model(Section):
    """The network."""

    backbone: Backbone = Backbone()
    neck: Neck = Neck()
    head: Head = Head()
    quality: str = "joint"
    """A name of `gfl.quality.QUALITY_MODES`: joint (GFL), distribution_guided (GFLv2), none,
    centerness_branch, iou_branch (multiplied at test), centerness_guided, iou_guided (weights)."""
    box: str = "general"
    """A name of `gfl.build.BOX_REPRESENTATIONS`: general (any distribution), gaussian or dirac."""
    strides: tuple[Int, ...] | None = None
    """Of the pyramid's levels, pixels; null takes the network's, stated they must agree."""
    reg_max: Annotated[Count, Field(le=4096), OR_AUTO] = 16
    """Bins of a side's distribution above 0; times bin_width the largest distance, in strides.
    auto chooses by the sizes of the objects (docs/auto.md)."""
    bin_width: Float = Field(default=1.0, gt=0, le=64)
    """Distance between bins, in strides."""
    num_classes: Int | None = Field(default=None, ge=1, le=1_000_000)
    """Taken from the data; stated, it must agree with the data."""
    grid_origin: Literal["corner", "pixel_center", "cell_center"] = "corner"
    """Pixel of the first location: 0, (stride - 1) / 2, or stride / 2."""

    @model_validator(mode="after")
    def _quality_sees_enough(self):
        if self.reg_max == AUTO:
            return self
        bins = self.reg_max + 1
        if self.quality == "distribution_guided" and self.head.quality_top_k > bins:
            raise ValueError(
                f"head.quality_top_k is {self.head.quality_top_k}, but reg_max {self.reg_max} "
                f"gives a side {bins} probabilities only"
            )
        return self


class Assigner(Section):
    """Which locations answer for which object."""

    name: str = "atss"
    """A name of `gfl.build.ASSIGNERS`: atss, fcos, retinanet, tal or simota."""
    top_k: Int = Field(default=9, ge=1)
    """With name: atss, candidates of an object on each level."""
    anchor_scale: Float = Field(default=8.0, gt=0)
    """Side of a location's square anchor, in strides; with name: retinanet, of the smallest of
    nine (4 in its paper)."""
    reach: Float | None = Field(default=None, gt=0)
    """With name: atss, how far the sides of an object may lie from its candidates, in strides (but
    on the coarsest level, or where none would be left): model.reg_max times model.bin_width keeps
    to levels that can express the box; null is any."""
    center_radius: Float = Field(default=1.5, gt=0)
    """With name: fcos or simota, how far from an object's centre its positives may lie, in strides;
    with simota farther ones are taken where these are too few."""
    regression_range: Float = Field(default=8.0, gt=0)
    """With name: fcos, longest side distance of a level's objects, in strides."""
    positive_iou: Float = Field(default=0.5, gt=0, le=1)
    """With name: retinanet, from this IoU on an anchor is a positive."""
    negative_iou: Float = Field(default=0.4, gt=0, le=1)
    """With name: retinanet, below this IoU it is background."""
    alignment_top_k: Int = Field(default=13, ge=1, le=1000)
    """With name: tal, positives of an object at most."""
    score_power: Float = Field(default=1.0, ge=0, le=100)
    """With name: tal, power of the predicted score in the alignment (alpha)."""
    iou_power: Float = Field(default=6.0, gt=0, le=100)
    """With name: tal, power of the predicted box's IoU in the alignment (beta)."""
    soft_label: Literal["iou", "aligned"] = "iou"
    """What a positive's joint score learns: the IoU of its own box, or with name: tal its
    alignment, scaled so that an object's highest is its highest IoU."""
    dynamic_top_k: Int = Field(default=10, ge=1, le=1000)
    """With name: simota, the highest IoUs whose sum is an object's number of positives."""
    iou_cost: Float = Field(default=3.0, ge=0, le=1000)
    """With name: simota, weight of -log(IoU) beside the cross-entropy of the scores (lambda)."""
    ignore_crowd: bool = False
    """Leave locations mostly inside a crowd region out of the classification loss; false trains
    them as background, as in the reference. With data.tiles, locations with their centre in one
    are left out in any case."""

    @model_validator(mode="after")
    def _thresholds_in_order(self):
        if self.negative_iou > self.positive_iou:
            raise ValueError(
                f"negative_iou is {self.negative_iou}, expected at most positive_iou, "
                f"{self.positive_iou}"
            )
        return self

    @model_validator(mode="after")
    def _alignment_is_known(self):
        if self.soft_label == "aligned" and self.name in ("atss", "fcos", "retinanet", "simota"):
            raise ValueError(
                f"soft_label: aligned is the alignment of name: tal, but name is {self.name}. Set "
                "soft_label: iou, or name: tal"
            )
        return self


class Loss(Section):
    """Terms and their weights."""

    beta: Float = Field(default=2.0, ge=0)
    """Focusing power of the quality focal loss."""
    focal_alpha: Probability = 0.25
    """Weight of positives in the focal loss, that of the quality modes with hard labels."""
    focal_gamma: Float = Field(default=2.0, ge=0)
    """Focusing power of the focal loss."""
    cls_weight: Float = Field(default=1.0, gt=0)
    giou_weight: Float = Field(default=2.0, ge=0)
    """0 leaves the boxes to the density loss alone."""
    dfl_weight: Float = Field(default=0.25, ge=0)
    """Weight of the density loss: DFL with box: general (0 turns it off), the negative
    log-likelihood with box: gaussian. box: dirac has none, and needs 0."""

    @model_validator(mode="after")
    def _boxes_are_learned(self):
        if self.giou_weight == 0 and self.dfl_weight == 0:
            raise ValueError("giou_weight and dfl_weight are both 0: no term would train the boxes")
        return self


class Postprocess(Section):
    """From predictions to detections."""

    score_threshold: Float = Field(default=0.05, ge=0, lt=1)
    pre_nms_top_k: Int = Field(default=1000, ge=1)
    """Candidates of a level that enter NMS."""
    pre_nms_rule: Literal["pairs", "locations"] = "pairs"
    """Count (location, class) pairs as mmdet does, or locations as the authors' code does."""
    nms_iou: Float = Field(default=0.6, gt=0, le=1)
    max_per_image: Int = Field(default=100, ge=1)
