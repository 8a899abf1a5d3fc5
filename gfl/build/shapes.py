"""Which shapes of batches a training has, from a config and its data."""

import numpy as np

from gfl.data.batch import padded_size
from gfl.data.static_shapes import Size, batch_bounds, smallest_holding
from gfl.distributed import world_size
from gfl.errors import UserError
from gfl.schema import Config


def build_pad_to(config: Config, sizes: np.ndarray) -> tuple[Size, ...]:
    """Sizes that training batches are padded to; () leaves each batch its own.

    Without `data.pad_to` a compiled training gets those that hold every batch: of wide images, of
    tall ones, and of both together; with random crops, whose shape may be any, a single one.

    Args:
        config: its `data` and `train` sections are used.
        sizes: (n, 2) h, w of the training images.

    Raises:
        UserError: `data.pad_to` lacks a size that some batch needs.
    """
    data, train = config.data, config.train
    if data.pad_to is None and not train.compile:
        return ()
    part = train.batch_size // world_size() // train.accumulate
    short, long = data.train_size.short_range[1], data.train_size.long
    if data.augment.crop:
        needed = (padded_size((long, long)),)
    else:
        needed = batch_bounds(np.asarray(sizes), short, long, data.group_by_aspect, part)
    if data.pad_to is None:
        return needed
    missing = [size for size in needed if smallest_holding(size, data.pad_to) is None]
    if missing:
        raise UserError(
            f"data.pad_to {_listed(data.pad_to)} holds no batch of {_listed(missing)} (height x "
            f"width), which data.train_size gives for these images"
            f"{' and random crops of them' if data.augment.crop else ''}. Add "
            f"{'it' if len(missing) == 1 else 'them'}, lower data.train_size, or leave "
            "data.pad_to out."
        )
    return tuple(data.pad_to)


def shape_lines(pad_to: tuple[Size, ...], config: Config) -> list[str]:
    """What a training says of the shapes it computes in."""
    if not pad_to:
        return []
    chosen = "chosen from the images" if config.data.pad_to is None else "data.pad_to"
    lines = [f"batches are padded to {_listed(pad_to)} pixels (height x width; {chosen})"]
    if config.train.compile:
        lines.append(
            "train.compile: network and criterion are compiled when a shape first comes up, which "
            "takes from seconds to minutes each"
        )
    return lines


def _listed(sizes) -> str:
    return ", ".join(f"{height} x {width}" for height, width in sizes)
