"""The schema of the configuration: keys, units, defaults, legal values and combinations.

One file a section. `gfl.build` checks the names of components and makes objects of them;
`gfl.config` reads files.
"""

from pydantic import Field, model_validator

from gfl.errors import UserError
from gfl.schema.automatic import AUTO, AUTO_KEYS
from gfl.schema.data import Data
from gfl.schema.distill import Distill
from gfl.schema.model import Assigner, Loss, Model, Postprocess
from gfl.schema.section import Probability, Section
from gfl.schema.train import Train


class Config(Section):
    """Everything that defines a run."""

    data: Data = Data()
    model: Model = Model()
    assigner: Assigner = Assigner()
    loss: Loss = Loss()
    postprocess: Postprocess = Postprocess()
    train: Train = Train()
    init_from: str | None = None
    """A checkpoint (of gfl, or a public .pth) whose weights a training starts from."""
    init_min_matched: Probability = 0.9
    """Least share of the tensors of network and `init_from` that both have in one shape."""
    device: str | None = Field(default=None, pattern=r"^(cpu|cuda(:\d+)?)$")
    """cpu, cuda or cuda:N; null takes a GPU where there is one."""
    distill: Distill = Distill()

    @model_validator(mode="after")
    def _nothing_random_is_frozen(self):
        backbone = self.model.backbone
        frozen = backbone.norm == "frozen" or backbone.frozen_stages
        if backbone.pretrained is False and self.init_from is None and frozen:
            raise ValueError(
                "model.backbone: pretrained: false with norm: frozen or frozen_stages > 0 would "
                "freeze random weights. Leave both out, or set pretrained or init_from"
            )
        return self

    @model_validator(mode="after")
    def _representations_fit(self):
        box, weight = self.model.box, self.loss.dfl_weight
        if box == "dirac" and weight:
            raise ValueError(
                f"model.box: dirac has no distribution that loss.dfl_weight {weight:g} could "
                "shape. Set loss.dfl_weight: 0, or model.box: general"
            )
        if box == "gaussian" and not weight:
            raise ValueError(
                "model.box: gaussian learns its deviations from loss.dfl_weight alone, which is 0. "
                "Set a weight such as 0.25, or model.box: dirac"
            )
        if self.model.quality == "distribution_guided" and box in ("dirac", "gaussian"):
            raise ValueError(
                "model.quality: distribution_guided judges a box by the shape of its "
                f"distributions, which model.box: {box} does not predict. Set model.box: general"
            )
        if self.distill.teacher and box in ("dirac", "gaussian"):
            raise ValueError(
                "distill.teacher teaches side distributions, which model.box: "
                f"{box} does not predict. Set model.box: general, or leave distill out"
            )
        if self.model.head.score == "distribution" and self.model.quality != "joint":
            raise ValueError(
                "model.head.score: distribution learns a joint score, but model.quality is "
                f"{self.model.quality}. Set model.quality: joint, or model.head.score: scalar"
            )
        return self

    @model_validator(mode="after")
    def _soft_labels_are_learned(self):
        joint = ("joint", "distribution_guided")
        if self.assigner.soft_label == "aligned" and self.model.quality not in joint:
            raise ValueError(
                "assigner.soft_label: aligned is a label of the joint score, but model.quality is "
                f"{self.model.quality}. Set model.quality: joint, or assigner.soft_label: iou"
            )
        return self

    @model_validator(mode="after")
    def _mosaic_is_not_always_closed(self):
        closed, epochs = self.data.augment.close_mosaic, self.train.epochs
        if epochs != AUTO and closed >= max(epochs, 1):
            raise ValueError(
                f"data.augment.close_mosaic {closed} leaves no epoch of train.epochs {epochs} for "
                "mosaic, mixup and copy_paste. Set a smaller close_mosaic, or those to 0"
            )
        return self

    @property
    def auto_keys(self) -> tuple[str, ...]:
        """Dotted keys that are auto: still to be chosen."""
        return tuple(key for key in AUTO_KEYS if self._value(key) == AUTO)

    def require_chosen(self, *keys: str) -> None:
        """Raise `UserError` if one of these dotted keys is still auto."""
        for key in keys:
            if self._value(key) == AUTO:
                raise UserError(
                    f"{key} is auto, which a training chooses from its data: state a value here, "
                    "or use the config.yaml of a training, which holds what was chosen."
                )

    def with_values(self, values: dict[str, object]) -> "Config":
        """The same with other values of these dotted keys, checked as a whole."""
        content = self.to_dict()
        for key, value in values.items():
            *sections, name = key.split(".")
            inner = content
            for section in sections:
                inner = inner[section]
            inner[name] = value
        return type(self).model_validate(content)

    def _value(self, key: str) -> object:
        section, name = key.split(".")
        return getattr(getattr(self, section), name)

    def to_dict(self) -> dict:
        """Plain values, as they go to YAML and checkpoints."""
        return self.model_dump(mode="json")
