"""Batches for training and evaluation from a config and a data set."""

import os

import numpy as np
import torch

from gfl.build.augment import build_augment, build_factors
from gfl.build.tiles import build_tile_views, build_tiles
from gfl.data.batch import padded_size
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.picture_cache import CachedDataset
from gfl.data.sampler import EvalSampler, TrainSampler
from gfl.data.transforms import Transform, resized_size
from gfl.distributed import rank, world_size
from gfl.errors import UserError
from gfl.schema import Config

# Pictures of more times the pixels of the network input cost more to hand over than to resize.
LARGEST_HANDED_OVER = 4


def build_train_loader(config: Config, dataset, stand_in: bool = False):
    """Shuffled, augmented batches, of tiles with `data.tiles`.

    `loader.batch_sampler` is the `TrainSampler`. With `stand_in` images that can not be read are
    replaced, and `loader.watch` is to tell of it (`gfl.data.stand_ins`); else they are errors.

    Raises:
        UserError: the batch does not divide among processes and accumulated parts, or a setting
            does not fit the data.
    """
    config.require_chosen("data.train_size", "train.batch_size")
    data, train = config.data, config.train
    parts = world_size() * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f"train.batch_size {train.batch_size} is the total of {world_size()} processes and "
            f"train.accumulate {train.accumulate}: it must be a multiple of {parts}."
        )
    dataset = build_tiles(config, dataset)
    sampler = TrainSampler(
        dataset.sizes,
        train.batch_size,
        data.train_size.short_range,
        data.group_by_aspect,
        train.seed,
        train.accumulate,
        rank(),
        world_size(),
        build_factors(config, dataset),
    )
    augment = data.augment
    composed = build_augment(config, dataset)
    transform = Transform(
        data.train_size.long,
        augment.flip_horizontal,
        augment.flip_vertical,
        augment.color,
        train.seed,
        _resizes_on_device(config, dataset.sizes, composed),
    )
    asked = {"reduced_decoding": data.reduced_decoding, "cache": data.cache != "none"}
    whole = dataset if data.tiles is None else dataset.whole
    for name in (name for name, is_asked in asked.items() if is_asked):
        if not hasattr(whole, "picture"):
            raise UserError(
                f"data.{name} is for image files, but the training data is a "
                f"{type(whole).__name__} of its own: leave it out."
            )
    if data.cache != "none":
        whole = CachedDataset(whole, data.cache, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        dataset = whole if data.tiles is None else dataset.reading(whole)
    samples = TransformedDataset(dataset, transform, composed, data.reduced_decoding, stand_in)
    return BatchLoader(samples, sampler, data.workers, pinned=_feeds_gpu(config))


def build_eval_loader(
    config: Config,
    dataset,
    short: int | None = None,
    long: int | None = None,
    mirrored: bool = False,
):
    """Each image once over all processes, in batches of one padded shape.

    With `data.tiles`, each tile; `gfl.engine.evaluate.detect` joins what is found in them.

    Args:
        config: its `data`, `train` and `postprocess` sections are used.
        dataset: the samples.
        short, long: bounds of the sides in pixels; default, `data.test_size`.
        mirrored: left and right exchanged.
    """
    config.require_chosen("data.test_size")
    short = config.data.test_size.short_range[1] if short is None else short
    long = config.data.test_size.long if long is None else long
    transform = Transform(long, flip_horizontal=float(mirrored))
    new_join = pictures = None
    if config.data.tiles is not None:
        dataset, new_join = build_tile_views(config, dataset)
        pictures = dataset.image
    sampler = EvalSampler(
        dataset.sizes,
        lambda size: padded_size(resized_size(size, short, long)),
        config.train.eval_batch_size,
        short,
        rank(),
        world_size(),
        pictures,
    )
    samples = TransformedDataset(dataset, transform)
    return BatchLoader(samples, sampler, config.data.workers, new_join, _feeds_gpu(config))


def _feeds_gpu(config: Config) -> bool:
    return config.device != "cpu" and torch.cuda.is_available()


def _resizes_on_device(config: Config, sizes: np.ndarray, composed) -> bool:
    """What `data.resize_on_device` says; else a GPU does it for pictures that are not changed
    otherwise and not much larger than what becomes of them.

    Args:
        config: of the training.
        sizes: (n, 2) h, w of the pictures in their files.
        composed: what makes one picture of several, or None.
    """
    data = config.data
    if data.resize_on_device is not None:
        return data.resize_on_device
    if not _feeds_gpu(config) or composed is not None or data.augment.color > 0:
        return False
    short, long = data.train_size.short_range[1], data.train_size.long
    factors = np.minimum(short / sizes.min(1), long / sizes.max(1))
    pixels = sizes.prod(1, dtype=np.int64)
    return bool(pixels.sum() <= LARGEST_HANDED_OVER * (pixels * factors**2).sum())
