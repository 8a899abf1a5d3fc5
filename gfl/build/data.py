"""Data sets and batches from a config."""

import os
from pathlib import Path

import numpy as np
import torch

from gfl.build.augment import build_augment, build_factors, require_masks
from gfl.build.tiles import build_tile_views, build_tiles, tile_lines
from gfl.data.batch import Normalize, padded_size
from gfl.data.coco_json import read_coco_json
from gfl.data.coverage import reg_max_coverage
from gfl.data.dataset import DetectionDataset
from gfl.data.findings import Findings, phrase
from gfl.data.image_facts import default_cache, inspect_images
from gfl.data.listing import Listing
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.picture_cache import CachedDataset
from gfl.data.sampler import EvalSampler, TrainSampler
from gfl.data.split import few_of, split_part
from gfl.data.stand_ins import STAND_INS
from gfl.data.transforms import Transform, resized_size
from gfl.data.voc import read_voc, voc_list
from gfl.data.yolo import YoloFolder
from gfl.distributed import broadcast_object, is_main, local_device, rank, world_size
from gfl.errors import UserError
from gfl.schema import Config
from gfl.schema.data import Data

# Names of `gfl.build.BOX_REPRESENTATIONS` whose sides are not limited by model.reg_max.
UNBOUNDED_BOXES = ("dirac", "gaussian")
# Pictures of more times the pixels of the network input cost more to hand over than to resize.
LARGEST_HANDED_OVER = 4


def build_dataset(
    config: Config,
    split: str,
    class_names: tuple | None = None,
    findings: Findings | None = None,
) -> DetectionDataset:
    """Read and check the data of a split.

    Args:
        config: its `data` section is used.
        split: "train", "val" or "test".
        class_names: those that it must have.
        findings: gets everything that is found; by default made of `data.policy`.

    Raises:
        UserError: the data is not there or not as it must be.
    """
    config.require_chosen("data.format", "data.val_fraction")
    data = config.data
    findings = Findings(data.policy.model_dump()) if findings is None else findings
    cache = default_cache() if data.check_cache is None else Path(data.check_cache)

    def inspect(paths):  # by one process, for all
        return broadcast_object(inspect_images(paths, cache) if is_main() else None)

    listings = _listings(data, split, findings)
    dataset = DetectionDataset(
        listings, class_names, data.classes, findings, inspect, data.max_skipped
    )
    if split != "train":
        dataset.require_distinct_image_ids()
    if dataset.report["objects"] == 0:
        names = ", ".join(dataset.origins)
        raise UserError(f"data.{split} has no object at all ({names}): nothing to learn or find.")
    if split == "train":
        require_masks(config, dataset)
    return dataset


def build_normalize(config: Config, device: torch.device | str) -> Normalize:
    """What makes the network's input of a batch's images."""
    data = config.data
    return Normalize(data.mean, data.std, device, data.color_order)


def has_split(data: Data, split: str) -> bool:
    """Whether there is data of its own for a split."""
    if getattr(data, split) is not None:
        return True
    if data.path is None:
        return False
    if data.format == "coco":
        return Path(data.sources(split)[0].annotations).exists()
    if data.format == "yolo":
        return YoloFolder(Path(data.path)).entries[split] is not None
    return voc_list(Path(data.path), split).exists()


def count_listed(config: Config, split: str) -> int:
    """Images that the annotations of a split list, before any is looked at."""
    silent = Findings(config.data.policy.model_dump(), fail=False)
    return sum(len(listing.images) for listing in _read(config.data, split, silent))


def data_warnings(config: Config, dataset, strides: tuple[int, ...]) -> list[str]:
    """What a user should know of a data set before training: defects by name, large boxes.

    Args:
        config: sizes, anchors and reg_max.
        dataset: a `DetectionDataset`; others have nothing to say.
        strides: of the pyramid levels, pixels.
    """
    lines = finding_lines(dataset) + tile_lines(config, dataset)
    if hasattr(dataset, "objects"):
        levels = coverage(config, dataset, strides)
        lines += [level.advice for level in levels if level.exceeding]
    return lines


def finding_lines(dataset) -> list[str]:
    """A line for each kind of finding: count, what was done, the first few items."""
    lines = []
    for finding in getattr(dataset, "findings", ()):
        more = ", ..." if finding.count > len(finding.items) else ""
        lines.append(f"{finding.count} {phrase(finding)}: {', '.join(finding.items)}{more}")
    return lines


def coverage(config: Config, dataset: DetectionDataset, strides: tuple[int, ...]) -> list:
    """`reg_max_coverage` of a data set at the config's training size; [] if sides have no end.

    With `data.tiles`, that of its tiles.
    """
    if config.model.box in UNBOUNDED_BOXES:
        return []
    dataset = build_tiles(config, dataset)
    boxes, _, index = dataset.objects()
    size = config.data.train_size
    return reg_max_coverage(
        boxes,
        dataset.sizes[index],
        (size.short_range[1], size.long),
        strides,
        config.assigner.anchor_scale,
        config.model.reg_max,
        config.model.bin_width,
    )


def _listings(data: Data, split: str, findings: Findings) -> list[Listing]:
    """What the annotations of a split say."""
    if split == "test" or (data.val_fraction is None and data.overfit is None):
        return _read(data, split, findings)
    if data.overfit is not None:
        return [_few(listing, data, findings) for listing in _read(data, "train", findings)]
    if has_split(data, "val"):
        raise UserError(
            f"data.val_fraction is {data.val_fraction}, but there is a val of its own: leave "
            "data.val_fraction out."
        )
    parts = []
    for listing in _read(data, "train", findings):
        part = split_part(listing, split, data.val_fraction, data.split_seed)
        findings.add(
            "divided",
            listing.origin,
            f"{len(part.images)} of {len(listing.images)} images are {split} (data.val_fraction "
            f"{data.val_fraction:g}, data.split_seed {data.split_seed})",
        )
        parts.append(part)
    return parts


def _few(listing: Listing, data: Data, findings: Findings) -> Listing:
    few = few_of(listing, data.overfit, data.split_seed)
    what = f"{len(few.images)} of {len(listing.images)} images are train and val alike"
    findings.add("overfit", listing.origin, what)
    return few


def _read(data: Data, split: str, findings: Findings) -> list[Listing]:
    if data.format == "coco":
        if data.path is not None and not (Path(data.path) / "annotations").is_dir():
            for mark, other in (("data.yaml", "yolo"), ("Annotations", "voc")):
                if (Path(data.path) / mark).exists():
                    raise UserError(f"{data.path} holds {mark}: set data.format={other}.")
        if split == "val" and data.val is None and data.path and not has_split(data, split):
            raise UserError(
                f"{data.sources(split)[0].annotations} does not exist. Is data.path {data.path} "
                "right? A training evaluates on val: put one there, or set data.val_fraction=0.1 "
                "to divide the training images."
            )
        return [
            read_coco_json(
                Path(source.annotations),
                Path(source.images),
                findings,
                masks=split == "train" and data.augment.copy_paste > 0,
            )
            for source in data.sources(split)
        ]
    if data.path is None:
        raise UserError(f"data.format is {data.format}: set data.path=FOLDER.")
    folder = Path(data.path)
    lists = [name for name in ("train", "val", "test") if has_split(data, name)]
    if split not in lists and (split != "train" or lists):
        hint = " Set data.val_fraction=0.1 to divide the images." if split == "val" else ""
        place = "ImageSets/Main" if data.format == "voc" else "data.yaml"
        raise UserError(f"{folder} has no {split} in {place}, only {lists}.{hint}")
    if data.format == "yolo":
        return [YoloFolder(folder).read(split, findings)]
    return [read_voc(folder, split if split in lists else None, findings)]


def build_train_loader(config: Config, dataset):
    """Shuffled, augmented batches, of tiles with `data.tiles`.

    `loader.batch_sampler` is the `TrainSampler`.

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
    samples = TransformedDataset(dataset, transform, composed, data.reduced_decoding, STAND_INS)
    return BatchLoader(samples, sampler, data.workers)


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
    return BatchLoader(samples, sampler, config.data.workers, new_join)


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
    if local_device(config.device).type == "cpu" or composed is not None or data.augment.color > 0:
        return False
    short, long = data.train_size.short_range[1], data.train_size.long
    factors = np.minimum(short / sizes.min(1), long / sizes.max(1))
    pixels = sizes.prod(1, dtype=np.int64)
    return bool(pixels.sum() <= LARGEST_HANDED_OVER * (pixels * factors**2).sum())
