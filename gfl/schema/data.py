"""The schema's `data` section: images, annotations, sizes, augmentation."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, create_model, model_validator

from gfl.data.coco_layout import EXPORTED, find_coco, picture_folders
from gfl.data.findings import KINDS
from gfl.errors import UserError
from gfl.schema.automatic import AUTO, OR_AUTO
from gfl.schema.section import Float, Int, Positive, Probability, Section

Place = Annotated[str, Field(pattern=r"^[^\x00]+$")]


class Source(Section):
    """One set of images with its annotations."""

    images: Place
    """Folder of the image files."""
    annotations: Place
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


Factor = Annotated[Float, Field(gt=0, le=10)]


def _multiple_of_32(size: tuple[int, int]) -> tuple[int, int]:
    if any(side < 32 or side % 32 for side in size):
        raise ValueError(f"pad_to has {list(size)}, expected multiples of 32")
    return size


PaddedSize = Annotated[tuple[Int, Int], AfterValidator(_multiple_of_32)]


class Augment(Section):
    """Random changes in training; each has a random stream of its own."""

    flip_horizontal: Probability = 0.5
    """Probability of a mirrored image."""
    flip_vertical: Probability = 0.0
    """Probability of an upside-down image."""
    color: Probability = 0.0
    """Probability of changed brightness, contrast, saturation and hue."""
    mosaic: Probability = 0.0
    """Probability of four images around a random centre."""
    mixup: Probability = 0.0
    """Probability of another image blended in, with its objects."""
    copy_paste: Probability = 0.0
    """Probability of objects of another image laid over it; COCO files with masks only."""
    scale_jitter: tuple[Factor, Factor] | None = None
    """Smallest and largest factor of the size; the image is then cut or padded to its usual one."""
    crop: Probability = 0.0
    """Probability of a random part of the image that holds all its boxes."""
    close_mosaic: Annotated[Int, Field(ge=0)] | Annotated[Float, Field(gt=0, lt=1)] = 0
    """Epochs at the end without mosaic, mixup and copy_paste; below 1, a share of all epochs, at
    least one."""

    @model_validator(mode="after")
    def _augmentations_agree(self):
        factors, closed = self.scale_jitter, self.close_mosaic
        if factors is not None and (factors[0] > factors[1] or factors == (1, 1)):
            raise ValueError(
                f"scale_jitter is {list(factors)}, expected two factors, smaller first, that are "
                "not both 1, such as [0.5, 1.5]"
            )
        if closed >= 1 and not self.mosaic + self.mixup + self.copy_paste:
            raise ValueError(
                f"close_mosaic is {closed}, but mosaic, mixup and copy_paste are all 0: there is "
                "nothing to close. Set close_mosaic: 0 too, or one of them"
            )
        return self

    def closed_epochs(self, epochs: int) -> int:
        """How many of the training's epochs `close_mosaic` means."""
        if 0 < self.close_mosaic < 1:
            return min(max(round(self.close_mosaic * epochs), 1), epochs - 1)
        return self.close_mosaic


class Tiles(Section):
    """Large pictures are trained on, evaluated and predicted in tiles that overlap."""

    size: Int = Field(default=640, ge=64, le=8192)
    """Side of a tile, pixels of the picture; train_size and test_size then resize the tile."""
    overlap: Float = Field(default=0.2, ge=0, lt=0.9)
    """Share of its side that neighbours have in common: objects up to that size are whole in one
    of them."""
    keep_empty: Probability = 0.1
    """Share of the tiles without objects that are trained on, always the same ones for a seed."""
    whole: bool = False
    """Show the whole picture too, resized, as one more tile: for objects larger than the overlap.
    """


Policy = create_model(
    "Policy",
    __base__=Section,
    __doc__="What is done about each kind of defect: repair, skip (leave out) or fail.",
    **{
        name: (Literal[kind.policies], kind.policies[0])
        for name, kind in KINDS.items()
        if not kind.is_note
    },
)


# Where the formats keep annotations and pictures, and lists of them, below `data.path`.
FOLDERS = {"annotations", "images", "Annotations", "JPEGImages", "ImageSets", "labels"}
LISTS = {".txt", ".yaml", ".yml"}


class Data(Section):
    """Where images come from and what is done to them."""

    format: Literal["coco", "voc", "yolo", "auto"] = "coco"
    """auto looks at what `path` holds."""
    path: Place | None = None
    """Folder in the format's usual layout (docs/data.md)."""
    draw_sample: bool = False
    """Draw the sample (`gfl sample`) into `path` before a training, if nothing is there."""
    train: Sources | None = None
    """Overrides `path`, for COCO json; a list is concatenated."""
    val: Sources | None = None
    test: Sources | None = None
    classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Use these classes only, in this order; null uses all."""
    val_fraction: Annotated[Annotated[Float, Field(gt=0, lt=1)] | None, OR_AUTO] = None
    """Where there is no val: this fraction of the training images, the same on every run. auto
    takes a fraction where there is no val, and none where there is one (docs/auto.md)."""
    split_seed: Int = 0
    """Another one divides otherwise."""
    overfit: Int | None = Field(default=None, ge=1)
    """Train on that many images of train, and evaluate on the same: can the labels be learned?"""
    policy: Policy = Policy()
    """By kind of defect (docs/data.md)."""
    max_skipped: Probability = 0.5
    """Stop if a larger fraction of the images is left out, or can not be read later."""
    check_cache: Place | None = None
    """Folder that remembers which image files were found good; null takes the user's cache."""
    train_size: Annotated[Resize, OR_AUTO] = Resize()
    """auto chooses by the sizes of pictures and objects (docs/auto.md)."""
    test_size: Annotated[Resize, OR_AUTO] = Resize()
    """auto takes that of training."""
    auto_largest: Annotated[Int, Field(ge=64, le=8192, multiple_of=32)] | None = None
    """With train_size: auto, the longest side that it may choose, pixels; null is 640."""
    tiles: Tiles | None = None
    """Cut large pictures into tiles (docs/tiles.md); null looks at whole pictures."""
    resize_on_device: bool | None = None
    """Let the GPU resize training pictures, to the same pixels, not the loading processes; null
    does so where it saves work (docs/data.md)."""
    pad_to: Annotated[tuple[PaddedSize, ...], Field(min_length=1)] | None = None
    """[[h, w], ...] that training batches are padded to, the smallest that holds each; null pads
    to the largest image of the batch, or with train.compile to a few sizes found in the data."""
    reduced_decoding: bool = False
    """In training, decode JPEG files at 1/2, 1/4 or 1/8 where that is still large enough; not with
    mosaic and the like, tiles or a cache, which need whole pictures."""
    cache: Place = "none"
    """Keep decoded training pictures: none, ram, or a folder (on a disk of this machine)."""
    augment: Augment = Augment()
    mean: tuple[Float, Float, Float] = (123.675, 116.28, 103.53)
    """Subtracted from the channels in 0..255, in `color_order`."""
    std: tuple[Positive, Positive, Positive] = (58.395, 57.12, 57.375)
    """Divides the channels after the mean is subtracted."""
    color_order: Literal["rgb", "bgr"] = "rgb"
    """Order of the network's input channels; bgr for weights of Caffe's tradition."""
    workers: Int = Field(default=2, ge=0, le=1024)
    """Loading processes of each training process."""
    repeat_factor: Annotated[Float, Field(gt=0, le=1)] | None = None
    """Images with a class that fewer than this share of the images have come more often; null: all
    come once an epoch (LVIS uses 0.001)."""
    group_by_aspect: bool = True
    """Keep wide and tall images apart, so that less is padded."""

    @model_validator(mode="after")
    def _sources_agree(self):
        splits = [split for split in ("train", "val", "test") if getattr(self, split) is not None]
        if self.format not in ("coco", AUTO) and splits:
            raise ValueError(f"format {self.format} takes path alone, but {splits[0]} is set too")
        if self.format not in ("coco", AUTO) and self.augment.copy_paste:
            raise ValueError(
                f"augment.copy_paste is {self.augment.copy_paste:g}, but format {self.format} has "
                "no masks to cut objects out by. Set copy_paste: 0, or use COCO files with "
                "segmentations"
            )
        if self.val_fraction not in (None, AUTO) and self.val is not None:
            raise ValueError("val and val_fraction are both set: leave one of them out")
        stated = self.val_fraction not in (None, AUTO)
        if self.overfit is not None and (stated or self.val):
            other = "val_fraction" if stated else "val"
            raise ValueError(f"overfit and {other} are both set, but overfit needs no val")
        if self.classes is not None and len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} names a class twice")
        return self

    @model_validator(mode="after")
    def _cached_whole(self):
        if self.cache != "none" and self.reduced_decoding:
            raise ValueError(
                f"cache {self.cache} keeps whole pictures, but reduced_decoding is set: leave one "
                "of them out"
            )
        return self

    @model_validator(mode="after")
    def _cache_is_no_misspelt_word(self):
        word = self.cache.lower()
        if word in ("ram", "none") and self.cache != word:
            raise ValueError(
                f"cache is {self.cache!r}, expected {word!r} (./{self.cache} for a folder of that "
                "name)"
            )
        return self

    @model_validator(mode="after")
    def _one_test_size(self):
        if self.test_size != AUTO and isinstance(self.test_size.short, tuple):
            raise ValueError(f"test_size.short is {self.test_size.short}, expected a number")
        return self

    @model_validator(mode="after")
    def _bound_is_used(self):
        if self.auto_largest is not None and self.train_size != AUTO:
            raise ValueError(
                f"auto_largest is {self.auto_largest}, but train_size is stated: leave one of "
                "them out"
            )
        return self

    @model_validator(mode="after")
    def _tiles_agree(self):
        if self.tiles is not None and self.reduced_decoding:
            raise ValueError(
                "tiles are cut out of whole pictures, but reduced_decoding decodes them smaller: "
                "leave one of them out"
            )
        if self.tiles is not None and self.auto_largest is not None:
            raise ValueError(
                f"auto_largest is {self.auto_largest}, but with tiles train_size: auto is "
                f"tiles.size, {self.tiles.size}: leave auto_largest out"
            )
        return self

    def spare(self, *outputs: str | Path | None) -> None:
        """Raise `UserError` if an output would replace a file of the data set."""
        own = {Path(s.annotations).resolve() for key in EXPORTED for s in getattr(self, key) or ()}
        root = Path(self.path).resolve() if self.path else None
        pictures = picture_folders(root) if root else set()
        for output in (Path(output) for output in outputs if output is not None):
            place = output.resolve()
            is_own = place in own or place == root
            if root is not None and root in place.parents and place.is_file():
                parts = {*place.relative_to(root).parts, place.suffix}
                is_own |= bool(parts & (FOLDERS | LISTS) or pictures & {*place.parents})
            if is_own:
                raise UserError(f"{output} is a file of the data set: choose another place.")

    def sources(self, split: str) -> list[Source]:
        """The sources of a split; raises UserError where there are none, or several."""
        if getattr(self, split) is not None:
            return getattr(self, split)
        if self.path is not None:
            images, annotations = find_coco(Path(self.path), split)
            return [Source(images=str(images), annotations=str(annotations))]
        raise UserError(
            f"the config names no data for split {split!r}. Set data.path=FOLDER, or "
            f"data.{split}.images=FOLDER and data.{split}.annotations=FILE.json"
            + (", or data.val_fraction=0.1." if split == "val" else ".")
        )
