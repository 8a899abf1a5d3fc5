"""What changes training images at random, and how often they come, from a config."""

import numpy as np

from gfl.data.augment import Augment
from gfl.data.repeat_factor import epoch_length, repeat_factors
from gfl.errors import SHOWN, UserError
from gfl.schema import Config

# Keys of `data.augment` that `Transform` takes care of, and those of `Augment`.
SIMPLE = ("flip_horizontal", "flip_vertical", "color")
OTHERS = ("mosaic", "mixup", "copy_paste", "scale_jitter", "crop")
# What `close_mosaic` ends.
CLOSED = ("mosaic", "mixup", "copy_paste")


def build_augment(config: Config, dataset) -> Augment | None:
    """What gives the samples of a training; None where all of OTHERS are off.

    Raises:
        UserError: `copy_paste` is on and the data has no masks; or pictures are decoded smaller.
    """
    require_masks(config, dataset)
    augment = config.data.augment
    values = {name: getattr(augment, name) for name in OTHERS}
    if not any(values.values()):
        return None
    if config.data.reduced_decoding:
        _refuse_reduced_decoding(values)
    epochs = config.train.epochs
    strong_epochs = epochs - augment.closed_epochs(epochs)
    size = config.data.train_size
    return Augment(size.long, **values, strong_epochs=strong_epochs, seed=config.train.seed)


def require_masks(config: Config, dataset) -> None:
    """Raise `UserError` if `copy_paste` is on and no object of the training data has a mask."""
    chance = config.data.augment.copy_paste
    if chance and not getattr(dataset, "num_masks", 0):
        raise UserError(
            f"data.augment.copy_paste is {chance:g}, but no annotation of the training data has a "
            "segmentation that fits its box (polygons or run lengths): there is nothing to cut "
            "objects out by. Set data.augment.copy_paste=0, or add masks."
        )


def _refuse_reduced_decoding(values: dict) -> None:
    """Name those of OTHERS that are on: they need whole pictures."""
    on = {name: "null" if name == "scale_jitter" else 0 for name, value in values.items() if value}
    off = " ".join(f"data.augment.{name}={value}" for name, value in on.items())
    raise UserError(
        f"data.reduced_decoding does not go with {', '.join(on)}, which needs whole pictures: "
        f"leave it out, or set {off}."
    )


def build_factors(config: Config, dataset) -> np.ndarray | None:
    """(n,) how often each training image comes in an epoch; None for once.

    Raises:
        UserError: `data.repeat_factor` is set and the data set does not tell its objects.
    """
    threshold = config.data.repeat_factor
    if threshold is None:
        return None
    if not hasattr(dataset, "objects"):
        raise UserError(
            f"data.repeat_factor is {threshold:g}, but the training data set has no method "
            "objects() that tells the classes of its images. Add it (see gfl.data.dataset), or "
            "leave data.repeat_factor out."
        )
    _, labels, image_index = dataset.objects()
    return repeat_factors(labels, image_index, len(dataset), threshold)


def images_of_epoch(config: Config, dataset) -> int:
    """How many images an epoch shows, those that come again counted again."""
    factors = build_factors(config, dataset)
    return len(dataset) if factors is None else epoch_length(factors)


def repeat_line(config: Config, dataset) -> str:
    """What `data.repeat_factor` does to a data set, for people."""
    factors = build_factors(config, dataset)
    _, labels, image_index = dataset.objects()
    before = np.bincount(labels, minlength=len(dataset.class_names))
    after = np.bincount(labels, factors[image_index], minlength=len(dataset.class_names))
    rarest = np.argsort(before, kind="stable")
    counts = [f"{dataset.class_names[c]} {before[c]} -> {after[c]:.0f}" for c in rarest]
    more = f" and {len(counts) - SHOWN} classes more" if len(counts) > SHOWN else ""
    return (
        f"data.repeat_factor {config.data.repeat_factor:g}: {int((factors > 1).sum())} of "
        f"{len(factors)} images come more often, up to {factors.max():.2f} times; "
        f"{epoch_length(factors)} an epoch. Objects: {', '.join(counts[:SHOWN])}{more}"
    )


def augment_line(config: Config, dataset) -> str:
    """Which random changes are on, for people."""
    augment = config.data.augment
    parts = []
    for name in SIMPLE + OTHERS:
        value = getattr(augment, name)
        if name == "scale_jitter" and value:
            parts.append(f"{name} {value[0]:g} to {value[1]:g}")
        elif value:
            parts.append(f"{name} {value:g}")
    line = "augmentation: " + (", ".join(parts) or "none")
    epochs = config.train.epochs
    if any(getattr(augment, name) for name in CLOSED) and augment.closed_epochs(epochs):
        last = epochs - augment.closed_epochs(epochs)
        line += f"; no mosaic, mixup and copy_paste after epoch {last} of {epochs}"
    if augment.copy_paste:
        objects = getattr(dataset, "report", {}).get("objects", "the")
        line += f"; {dataset.num_masks} of {objects} objects have a mask"
    return line
