"""Data sets and batches from a config."""

import torch

from gfl.data.batch import Normalize, padded_size
from gfl.data.dataset import CocoDataset
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.sampler import EvalSampler, TrainSampler
from gfl.data.transforms import Transform, resized_size
from gfl.distributed import rank, world_size
from gfl.errors import UserError
from gfl.schema import Config


def build_dataset(config: Config, split: str, class_names: tuple | None = None) -> CocoDataset:
    """Read the annotations of a split; `class_names` are those it must have."""
    sources = [(source.images, source.annotations) for source in config.data.sources(split)]
    dataset = CocoDataset(sources, class_names)
    if split != "train":
        dataset.require_distinct_image_ids()
    if dataset.report["objects"] == 0:
        names = ", ".join(annotations for _, annotations in sources)
        raise UserError(f"data.{split} has no object at all ({names}): nothing to learn or find.")
    return dataset


def build_normalize(config: Config, device: torch.device | str) -> Normalize:
    """What makes the network's input of a batch's images."""
    data = config.data
    return Normalize(data.mean, data.std, device, data.color_order)


def build_train_loader(config: Config, dataset):
    """Shuffled, augmented batches; `loader.batch_sampler` is the `TrainSampler`.

    Raises:
        UserError: the batch does not divide among processes and accumulated parts.
    """
    data, train = config.data, config.train
    parts = world_size() * train.accumulate
    if train.batch_size % parts:
        raise UserError(
            f"train.batch_size {train.batch_size} is the total of {world_size()} processes and "
            f"train.accumulate {train.accumulate}: it must be a multiple of {parts}."
        )
    sampler = TrainSampler(
        dataset.sizes,
        train.batch_size,
        data.train_size.short_range,
        data.group_by_aspect,
        train.seed,
        train.accumulate,
        rank(),
        world_size(),
    )
    augment = data.augment
    transform = Transform(
        data.train_size.long,
        augment.flip_horizontal,
        augment.flip_vertical,
        augment.color,
        train.seed,
    )
    return BatchLoader(TransformedDataset(dataset, transform), sampler, data.workers)


def build_eval_loader(config: Config, dataset):
    """Each image once over all processes, in batches of one padded shape."""
    short, long = config.data.test_size.short_range[1], config.data.test_size.long
    sampler = EvalSampler(
        dataset.sizes,
        lambda size: padded_size(resized_size(size, short, long)),
        config.train.eval_batch_size,
        short,
        rank(),
        world_size(),
    )
    return BatchLoader(TransformedDataset(dataset, Transform(long)), sampler, config.data.workers)
