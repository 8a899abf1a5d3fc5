"""The schema's `data` section: images, annotations, sizes, augmentation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from gfl.errors import UserError
from gfl.schema.section import Float, Int, Positive, Probability, Section


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
    """Subtracted from the channels in 0..255, in `color_order`."""
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    """Divides the channels after the mean is subtracted."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the network's input channels; bgr for weights of Caffe's tradition."""
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
