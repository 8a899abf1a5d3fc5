"""Large pictures in tiles, from a config: to train on, to evaluate on, and what is said of it."""

from collections.abc import Callable
from functools import partial

import numpy as np

from gfl.data.tiles import TiledDataset, TileViews
from gfl.data.transforms import resized_size
from gfl.errors import UserError
from gfl.schema import Config
from gfl.tiling import TileJoin


def build_tiles(config: Config, dataset):
    """The tiles of a training set; the data set itself without `data.tiles`, or if it is tiles.

    Raises:
        UserError: the data set does not tell what tiles are made from.
    """
    tiles = config.data.tiles
    if tiles is None or isinstance(dataset, TiledDataset):
        return dataset
    _require(dataset, "sizes", "objects")
    seed = config.train.seed
    return TiledDataset(dataset, tiles.size, tiles.overlap, tiles.whole, tiles.keep_empty, seed)


def build_tile_views(config: Config, dataset) -> tuple[TileViews, Callable[[], TileJoin]]:
    """All tiles of a data set that is evaluated on, and what makes a join of their detections.

    Raises:
        UserError: the data set does not tell what tiles are made from.
    """
    _require(dataset, "sizes", "image_ids")
    tiles, options = config.data.tiles, config.postprocess
    views = TileViews(dataset, tiles.size, tiles.overlap, tiles.whole)
    limits = (options.nms_iou, options.max_per_image)
    return views, partial(TileJoin, views, dataset.image_ids, *limits)


def _require(dataset, *names: str) -> None:
    missing = [name for name in names if not hasattr(dataset, name)]
    if missing:
        raise UserError(
            f"data.tiles needs a data set with {' and '.join(names)} (see "
            f"gfl.data.dataset.DetectionDataset), but {type(dataset).__name__} has no "
            f"{' and no '.join(missing)}: add them, or set data.tiles=null."
        )


def tile_lines(config: Config, dataset) -> list[str]:
    """What `data.tiles` makes of a data set, for people; nothing without it.

    Of a training set: what has come of tiles and objects. Of another: whether there are more
    objects in an image than are kept of it.
    """
    tiles = config.data.tiles
    if tiles is None:
        return []
    if not isinstance(dataset, TiledDataset):
        return _limit_lines(config, dataset)
    size, counts = (tiles.size, tiles.size), dataset.counts
    train = config.data.train_size
    became = resized_size(size, train.short_range[1], train.long)
    whole = ", and each picture as a whole" if tiles.whole else ""
    lines = [
        f"data.tiles: {counts['tiles']} tiles of {tiles.size} x {tiles.size} pixels at most, "
        f"overlap {tiles.overlap:g}{whole}; data.train_size makes {became[1]} x {became[0]} of one",
        "data.tiles: " + ", ".join(f"{n} {what}" for what, n in list(counts.items())[1:]),
    ]
    return lines + [line for line in [cut_advice(config, dataset)] if line]


def cut_advice(config: Config, dataset: TiledDataset) -> str | None:
    """A warning where objects are whole in no tile."""
    lost, tiles = dataset.counts["objects whole in no tile"], config.data.tiles
    if not lost:
        return None
    total = len(dataset.whole.objects()[0])
    return (
        f"WARNING: {lost} of {total} objects are whole in no tile: they are up to "
        f"{dataset.longest_cut:.0f} pixels long, tiles overlap by "
        f"{int(tiles.size * tiles.overlap)}. Raise data.tiles.size or data.tiles.overlap, or set "
        "data.tiles.whole=true, which shows the whole pictures too"
    )


def _limit_lines(config: Config, dataset) -> list[str]:
    if not hasattr(dataset, "objects"):
        return []
    most = int(np.bincount(dataset.objects()[2], minlength=1).max())
    limit = config.postprocess.max_per_image
    if most <= limit:
        return []
    return [
        f"WARNING: an image has up to {most} objects, but postprocess.max_per_image keeps {limit} "
        "detections of it, all tiles together: raise it"
    ]
