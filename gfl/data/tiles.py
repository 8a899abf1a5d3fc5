"""Large pictures in tiles: a data set of them to train on, and one to evaluate on."""

import copy
from dataclasses import replace

import numpy as np

from gfl.data.dataset import Sample
from gfl.data.tile_layout import tile_places
from gfl.data.window import MIN_SHARE, MIN_SIDE

# Of the random stream that decides which tiles without objects stay.
EMPTY = 105


class TiledDataset:
    """The tiles of a data set's pictures, for training; an index is one tile.

    A picture no larger than a tile stays as it is. Of tiles without objects, those of cut pictures,
    a share is kept, always the same for a seed. What becomes of cut objects: see `cut_boxes`; parts
    that are no objects any more become regions to ignore, as crowd regions are.

    Args:
        whole: the pictures; has `sizes` and `objects()`, whose boxes come in the order of the
            samples' (see `gfl.data.dataset.DetectionDataset`).
        tile, overlap, show_whole: see `tile_places`.
        keep_empty: share of the tiles without objects that stay.
        seed: of the run.

    Attributes:
        sizes: (n, 2) int32 (h, w) of the tiles.
        image: (n,) index of each tile's picture.
        source: what gives the samples of whole pictures: `whole`, or a cache of it.
        counts: what has come of tiles and objects, by name.
        longest_cut: longest side of an object that is whole in no tile, pixels; 0 without any.
    """

    def __init__(
        self,
        whole,
        tile: int,
        overlap: float,
        show_whole: bool = False,
        keep_empty: float = 1.0,
        seed: int = 0,
    ):
        self.whole = self.source = whole
        self.class_names, self.category_ids = whole.class_names, whole.category_ids
        self.report = getattr(whole, "report", {"images": len(whole)})
        self.findings = getattr(whole, "findings", ())
        boxes, labels, image = whole.objects()
        order = np.argsort(image, kind="stable")
        boxes, labels = boxes[order].astype(np.float32), labels[order]
        first = np.searchsorted(image[order], np.arange(len(whole) + 1))
        parts = [
            _Cut(boxes[start:end], tile_places(tuple(size), tile, overlap, show_whole))
            for size, start, end in zip(whole.sizes.tolist(), first, first[1:], strict=False)
        ]
        tiles_of = np.array([len(part.places) for part in parts])
        found = np.concatenate([part.objects for part in parts])
        empty = (found == 0) & np.repeat(tiles_of > 1, tiles_of)
        dropped = _dropped(np.flatnonzero(empty), keep_empty, seed)
        kept = np.ones(len(found), bool)
        kept[dropped] = False
        self.image = np.repeat(np.arange(len(whole)), tiles_of)[kept]
        self.places = np.concatenate([part.places for part in parts])[kept].astype(np.int32)
        self.sizes = self.places[:, [3, 2]] - self.places[:, [1, 0]]
        rows = np.concatenate([part.rows for part in parts])
        self._rows, self._boxes = rows, np.concatenate([part.boxes for part in parts])
        start = np.repeat(first[:-1], [len(part.rows) for part in parts])
        self._labels = labels[start + rows]
        self._first = _ends(found[kept])
        remains = np.concatenate([part.remains for part in parts])
        self._remains = np.concatenate([part.regions for part in parts])[np.repeat(kept, remains)]
        self._first_remain = _ends(remains[kept])
        never_whole = np.concatenate([~part.whole.any(0) for part in parts])
        sides = (boxes[:, 2:] - boxes[:, :2])[never_whole]
        self.longest_cut = float(sides.max(initial=0))
        num_whole = int(sum(part.whole.sum() for part in parts))
        self.counts = {
            "tiles": len(self.image),
            "tiles without objects (kept)": int(empty.sum()) - len(dropped),
            "tiles without objects (left out)": len(dropped),
            "whole boxes": num_whole,
            "clipped boxes": len(rows) - num_whole,
            "ignored parts of boxes": len(self._remains),
            "objects whole in no tile": int(never_whole.sum()),
        }

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"tile {index} of {len(self)}")
        sample = self.source[int(self.image[index])]
        rows = slice(self._first[index], self._first[index + 1])
        remains = self._remains[self._first_remain[index] : self._first_remain[index + 1]]
        crowd, _, kept, _ = cut_boxes(sample.ignore_boxes, self.places[index], 0.0)
        return Sample(
            cut_picture(sample.image, self.places[index]),
            self._boxes[rows],
            self._labels[rows],
            np.concatenate((crowd[kept], remains)),
            sample.image_id,
        )

    def reading(self, source) -> "TiledDataset":
        """The same tiles of pictures that come from `source`, such as a cache."""
        other = copy.copy(self)
        other.source = source
        return other

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All objects of all tiles, those that are clipped too.

        Returns:
            (m, 4) float32 xyxy in pixels of their tile, (m,) labels, (m,) index of the tile.
        """
        index = np.repeat(np.arange(len(self)), np.diff(self._first))
        return self._boxes, self._labels, index

    def mask_of(self, index: int, row: int) -> np.ndarray | None:
        """See `DetectionDataset.mask_of`; (h, w) of the tile."""
        own = int(self._rows[self._first[index] + row])
        mask = self.whole.mask_of(int(self.image[index]), own)
        return None if mask is None else cut_picture(mask, self.places[index])

    @property
    def num_masks(self) -> int:
        """Objects of the whole pictures whose mask is known."""
        return getattr(self.whole, "num_masks", 0)

    def files_of(self, image_id: int) -> list[str]:
        """Files of a picture's id."""
        return list(self.whole.files_of(image_id)) if hasattr(self.whole, "files_of") else []


class TileViews:
    """All tiles of a data set's pictures, to look for objects in; their own objects are not given.

    The picture that was read last is remembered: tiles that are asked for in order decode it once.

    Args:
        whole: the pictures; has `sizes`.
        tile, overlap, show_whole: see `tile_places`.

    Attributes:
        sizes: (n, 2) int32 (h, w) of the tiles.
        image: (n,) index of each tile's picture.
        places: (n, 4) int32 xyxy, pixels of the picture.
    """

    def __init__(self, whole, tile: int, overlap: float, show_whole: bool = False):
        self.whole = whole
        places = [
            tile_places(tuple(size), tile, overlap, show_whole) for size in whole.sizes.tolist()
        ]
        self.image = np.repeat(np.arange(len(places)), [len(part) for part in places])
        self.places = np.array([place for part in places for place in part], np.int32)
        self.sizes = self.places[:, [3, 2]] - self.places[:, [1, 0]]
        self._last: tuple[int, Sample | None] = (-1, None)

    def __len__(self) -> int:
        return len(self.image)

    def __getitem__(self, index: int) -> Sample:
        """The tile, whose `image_id` is its index."""
        image = int(self.image[index])
        if self._last[0] != image:
            self._last = (image, self.whole[image])
        sample, none = self._last[1], np.zeros((0, 4), np.float32)
        picture = cut_picture(sample.image, self.places[index])
        return replace(
            sample,
            image=picture,
            boxes=none,
            labels=np.zeros(0, np.int64),
            ignore_boxes=none,
            image_id=index,
        )


def cut_boxes(
    boxes: np.ndarray, place: np.ndarray, min_share: float = MIN_SHARE
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What a tile shows of boxes.

    A box that lies wholly in the tile stays as it is. A cut one stays, clipped, with at least
    `min_share` of its area and sides of MIN_SIDE; a smaller part of MIN_SIDE is a remain.

    Args:
        boxes: (..., 4) float32 xyxy, pixels of the picture.
        place: (..., 4) of the tile.
        min_share: in 0..1.

    Returns:
        (..., 4) float32 parts in pixels of the tile; (...) bool whether a box is whole, whether it
        is kept (whole or clipped), and whether a remain of it is.
    """
    place = np.asarray(place, np.float32)
    low, high = place[..., :2], place[..., 2:]
    parts = np.concatenate(
        (np.maximum(boxes[..., :2], low), np.minimum(boxes[..., 2:], high)), axis=-1
    )
    whole = (parts == boxes).all(-1)
    sides, before = parts[..., 2:] - parts[..., :2], boxes[..., 2:] - boxes[..., :2]
    seen = (sides >= MIN_SIDE).all(-1)
    kept = whole | (seen & (sides.prod(-1) >= min_share * before.prod(-1)))
    return parts - np.concatenate((low, low), axis=-1), whole, kept, seen & ~kept


def cut_picture(picture: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The (h, w, ...) part of a picture: a copy, that a batch of tiles holds no whole pictures."""
    x1, y1, x2, y2 = (int(side) for side in place)
    if (x1, y1, y2, x2) == (0, 0, *picture.shape[:2]):
        return picture
    return picture[y1:y2, x1:x2].copy()


class _Cut:
    """One picture's objects in its tiles.

    Attributes:
        places: (t, 4).
        whole: (t, n) bool, which object is whole in which tile.
        objects, remains: (t,) how many boxes and remains each tile has.
        boxes, rows: (m, 4) and (m,), of one tile after another; rows are those of the picture.
        regions: (k, 4) remains, likewise.
    """

    def __init__(self, boxes: np.ndarray, places: list):
        self.places = np.array(places, np.float32)
        parts, self.whole, kept, remain = cut_boxes(boxes[None], self.places[:, None])
        self.objects, self.remains = kept.sum(1), remain.sum(1)
        self.boxes, self.regions = parts[kept], parts[remain]
        self.rows = np.nonzero(kept)[1]


def _dropped(empty: np.ndarray, keep: float, seed: int) -> np.ndarray:
    """Those of some tiles that do not stay."""
    order = np.random.default_rng((seed, EMPTY)).permutation(empty)
    return order[round(keep * len(empty)) :]


def _ends(counts: np.ndarray) -> np.ndarray:
    """(n,) counts to the (n + 1,) borders of groups laid end to end."""
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
