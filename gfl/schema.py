"""The schema of the configuration: keys, units, defaults, legal values and combinations.

`gfl.build` checks the names of components and makes objects of them; `gfl.config` reads files.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from gfl.errors import UserError


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


Int = Annotated[int, BeforeValidator(_no_bool)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Float, Field(gt=0)]
Probability = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Source(Section):
    """One set of images with its annotations."""

    images: str
    """Folder of the image files."""
    annotations: str
    """COCO json file."""


def _one_is_a_list(value: Any) -> Any:
    return [value] if isinstance(value, dict) else value


Sources = Annotated[list[Source], BeforeValidator(_one_is_a_list), Field(min_length=1)]


class Resize(Section):
    """Kept ratio: as large as possible with the short side <= `short`, the long side <= `long`."""

    short: Int | tuple[Int, Int] = 800
    """Pixels; in training a pair is a range, drawn anew for each image."""
    long: Int = 1333
    """Pixels."""

    @model_validator(mode="after")
    def _ordered(self):
        low, high = self.short_range
        if not 32 <= low <= high:
            raise ValueError(f"short is {self.short}, expected 32 or more, smaller value first")
        if self.long < high:
            raise ValueError(f"long is {self.long}, expected at least the short side {high}")
        return self

    @property
    def short_range(self) -> tuple[int, int]:
        return self.short if isinstance(self.short, tuple) else (self.short, self.short)


class Augment(Section):
    """Random changes in training; each has a random stream of its own."""

    flip_horizontal: Probability = 0.5
    """Probability of a mirrored image."""
    flip_vertical: Probability = 0.0
    """Probability of an upside-down image."""
    color: Probability = 0.0
    """Probability of changed brightness, contrast, saturation and hue."""


class Data(Section):
    """Where images come from and what is done to them."""

    format: Literal["coco"] = "coco"
    path: str | None = None
    """Folder in the usual layout: images/, annotations/{train,val,test}.json."""
    train: Sources | None = None
    """Overrides `path`; a list is concatenated."""
    val: Sources | None = None
    test: Sources | None = None
    train_size: Resize = Resize()
    test_size: Resize = Resize()
    augment: Augment = Augment()
    mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    """Subtracted from RGB in 0..255."""
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    """Divides RGB after the mean is subtracted."""
    workers: Int = Field(default=2, ge=0)
    """Loading processes of each training process."""
    group_by_aspect: bool = True
    """Keep wide and tall images apart, so that less is padded."""

    @model_validator(mode="after")
    def _one_test_size(self):
        if isinstance(self.test_size.short, tuple):
            raise ValueError(f"test_size.short is {self.test_size.short}, expected a number")
        return self

    def sources(self, split: str) -> list[Source]:
        """The sources of a split; raises UserError where the config names none."""
        if getattr(self, split) is not None:
            return getattr(self, split)
        if self.path is not None:
            folder = Path(self.path)
            annotations = folder / "annotations" / f"{split}.json"
            return [Source(images=str(folder / "images"), annotations=str(annotations))]
        raise UserError(
            f"the config names no data for split {split!r}. Set data.path=FOLDER, or "
            f"data.{split}.images=FOLDER and data.{split}.annotations=FILE.json."
        )


class Backbone(Section):
    """What turns images into features."""

    name: str = "resnet50"
    """A name of `gfl.build.BACKBONES`."""
    pretrained: bool | str = True
    """ImageNet weights: true (downloaded once), a file, or false for training from scratch."""
    norm: Literal["frozen", "batch", "sync"] | None = None
    """Batch-norm statistics; default: frozen (kept) if pretrained, else batch (learned)."""
    frozen_stages: Int | None = Field(default=None, ge=0, le=4)
    """Stages that do not train; 1 is the stem and the first. Default: 1 with pretrained weights."""

    @model_validator(mode="after")
    def _nothing_random_is_frozen(self):
        if self.pretrained is False and (self.norm == "frozen" or self.frozen_stages):
            raise ValueError(
                "pretrained: false with norm: frozen or frozen_stages > 0 would freeze random "
                "weights. Leave both out, or set pretrained"
            )
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
    """A name of `gfl.build.NECKS`."""
    channels: Int = Field(default=256, ge=1)


class Head(Section):
    """The shared towers."""

    name: str = "gfl"
    """A name of `gfl.build.HEADS`."""
    channels: Int = Field(default=256, ge=64, multiple_of=32)
    """Width of the towers; a group norm of 32 groups needs two channels in each."""
    stacked_convs: Int = Field(default=4, ge=1)
    """Depth of each tower."""


class Model(Section):
    """The network."""

    backbone: Backbone = Backbone()
    neck: Neck = Neck()
    head: Head = Head()
    box: str = "general"
    """A name of `gfl.build.BOX_REPRESENTATIONS`."""
    reg_max: Int = Field(default=16, ge=1)
    """Largest side distance, in strides."""
    num_classes: Int | None = Field(default=None, ge=1)
    """Taken from the data; stated, it must agree with the data."""
    grid_origin: Literal["corner", "pixel_center", "cell_center"] = "corner"
    """Pixel of the first location: 0, (stride - 1) / 2, or stride / 2."""


class Assigner(Section):
    """Which locations answer for which object."""

    name: str = "atss"
    """A name of `gfl.build.ASSIGNERS`."""
    top_k: Int = Field(default=9, ge=1)
    """Candidates of an object on each level."""
    anchor_scale: Float = Field(default=8.0, gt=0)
    """Side of a location's square anchor, in strides."""


class Loss(Section):
    """Terms and their weights."""

    beta: Float = Field(default=2.0, ge=0)
    """Focusing power of the quality focal loss."""
    cls_weight: Float = Field(default=1.0, gt=0)
    giou_weight: Float = Field(default=2.0, ge=0)
    dfl_weight: Float = Field(default=0.25, ge=0)

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


class Train(Section):
    """The schedule."""

    epochs: Int = Field(default=12, ge=1)
    batch_size: Int = Field(default=16, ge=1)
    """Images of one optimiser step, over all processes and accumulated parts together."""
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
    warmup_steps: Int = Field(default=500, ge=0)
    warmup_factor: Float = Field(default=0.001, gt=0, le=1)
    """The learning rate starts at this fraction and rises linearly."""
    schedule: Literal["multistep", "cosine"] = "multistep"
    milestones: tuple[Int, ...] = (8, 11)
    """Epochs after which a multistep schedule divides the learning rate by 10."""
    final_factor: Float = Field(default=0.01, ge=0, le=1)
    """Fraction of the learning rate at which a cosine schedule ends."""
    grad_clip: Float | None = Field(default=None, gt=0)
    """Largest L2 norm of the gradient; null leaves it alone."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the network's forward and backward; losses and boxes are always fp32."""
    channels_last: bool = False
    """Memory layout of the images and weights; faster for most devices."""
    ema_decay: Float | None = Field(default=None, gt=0, lt=1)
    """Decay of the averaged weights, which are then evaluated and kept; null turns them off."""
    ema_warmup_steps: Int = Field(default=2000, ge=1)
    """The decay rises as decay * (1 - exp(-step / ema_warmup_steps))."""
    eval_epochs: Int = Field(default=1, ge=1)
    """Evaluate every that many epochs, and after the last."""
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
    def _milestones_rise(self):
        if list(self.milestones) != sorted({max(epoch, 1) for epoch in self.milestones}):
            raise ValueError(f"milestones are {list(self.milestones)}, expected rising epochs")
        return self


class Config(Section):
    """Everything that defines a run."""

    data: Data = Data()
    model: Model = Model()
    assigner: Assigner = Assigner()
    loss: Loss = Loss()
    postprocess: Postprocess = Postprocess()
    train: Train = Train()
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """cpu, cuda or cuda:N; null takes a GPU where there is one."""

    def to_dict(self) -> dict:
        """Plain values, as they go to YAML and checkpoints."""
        return self.model_dump(mode="json")
