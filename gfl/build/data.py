"""Data sets and batches from a config."""

import os
from pathlib import Path

import torch

from gfl.build.augment import require_masks
from gfl.build.tiles import build_tiles, tile_lines
from gfl.data.batch import Normalize
from gfl.data.coco_json import read_coco_json
from gfl.data.coco_layout import coco_splits
from gfl.data.coverage import reg_max_coverage
from gfl.data.dataset import DetectionDataset
from gfl.data.findings import Findings, phrase
from gfl.data.image_facts import default_cache, inspect_images
from gfl.data.listing import Listing
from gfl.data.split import few_of, split_part
from gfl.data.voc import read_voc, voc_list
from gfl.data.yolo import YoloFolder
from gfl.distributed import done_by_main
from gfl.errors import UserError
from gfl.schema import Config
from gfl.schema.data import Data

# Names of `gfl.build.BOX_REPRESENTATIONS` whose sides are not limited by model.reg_max.
UNBOUNDED_BOXES = ("dirac", "gaussian")


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
        return done_by_main(lambda: inspect_images(paths, cache))

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
        return split in coco_splits(Path(data.path))
    if data.format == "yolo":
        return YoloFolder(Path(data.path)).entries[split] is not None
    return os.path.exists(voc_list(Path(data.path), split))


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
            f"data.val_fraction is {data.val_fraction}, but there is a val of its own: set "
            "data.val_fraction=null to use it, or remove it (the val line of data.yaml, val.txt in "
            "ImageSets/Main, val.json or data.val) to divide the training images."
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
        if getattr(data, split) is None and data.path and not coco_splits(Path(data.path)):
            for mark, other in (("data.yaml", "yolo"), ("Annotations", "voc")):
                if os.path.exists(Path(data.path) / mark):
                    raise UserError(f"{data.path} holds {mark}: set data.format={other}.")
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
