"""From listed objects to flat arrays: boxes that training can rely on."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gfl.data.findings import Findings
from gfl.data.listing import ListedObject, Listing
from gfl.data.usable_images import UsableImage

# Boxes narrower or lower than this are left out of training, pixels (as in mmdet).
MIN_SIDE = 1.0
# A box that reaches out by no more is clipped without a word, pixels: rounding.
ROUNDING = 1.0
# A box whose four numbers are all within this looks like fractions of the image.
FRACTION = 1.5
# A box that reaches out by more, in longer sides of the image, is absurd.
ABSURD = 10.0
# Shares of a file's boxes from which on the whole file is taken to be of another form.
NORMALISED_SHARE, XYXY_SHARE, XYXY_OUTSIDE = 0.5, 0.95, 0.25


@dataclass(frozen=True)
class CleanSet:
    """Images and boxes of a source, boxes sorted by image.

    Attributes:
        images: those that are used.
        first: (n + 1,) row of each image's first box, then the number of boxes.
        boxes: (m, 4) float32 xyxy, within the image.
        trained: (m,) bool; False for boxes that are evaluated only.
        xywh: (m, 4) float64, as listed.
        area: (m,) float64, as listed, else width * height.
        category_ids: (m,) int64.
        crowd: (m,) bool.
        segmentations: of each box, as listed.
    """

    images: list[UsableImage]
    first: np.ndarray
    boxes: np.ndarray
    trained: np.ndarray
    xywh: np.ndarray
    area: np.ndarray
    category_ids: np.ndarray
    crowd: np.ndarray
    segmentations: list


def clean_boxes(
    listing: Listing, images: list[UsableImage], joined: dict[int, int], findings: Findings
) -> CleanSet:
    """Keep the boxes that make sense in their image, mend those that nearly do.

    Boxes that are only too small for training, or repeated, stay in the evaluation, so that AP is
    that of pycocotools on the same file; other boxes that are left out are in neither.

    Args:
        listing: the objects.
        images: those that can be used.
        joined: ids of images whose boxes belong to another one.
        findings: gets what is repaired or left out.
    """
    row_of = {image.id: row for row, image in enumerate(images)}
    row_of |= {twin: row_of[first] for twin, first in joined.items() if first in row_of}
    entries = []
    for entry in listing.objects:
        if entry.image_id in row_of:
            entries.append(entry)
        else:
            findings.add("lost_with_image", listing.place(entry))
    work = _Work(listing, images, entries, row_of, findings)
    work.refuse_other_forms()
    work.drop_images_of_other_size()
    work.clean()
    return work.result()


class _Work:
    """The steps of `clean_boxes` on arrays; `alive` marks boxes that no step has left out."""

    def __init__(self, listing: Listing, images, entries: list[ListedObject], row_of, findings):
        rows = np.array([row_of[entry.image_id] for entry in entries], np.int64)
        order = np.argsort(rows, kind="stable")
        self.listing, self.images, self.findings = listing, images, findings
        self.entries = [entries[i] for i in order.tolist()]
        self.rows = rows[order]
        self.sizes = np.array([image.size[::-1] for image in images], np.float64).reshape(-1, 2)
        self.limits = self.sizes[self.rows]  # (m, 2) width, height of each box's image
        self.xywh = np.array([entry.box for entry in self.entries], np.float64).reshape(-1, 4)
        if listing.relative:
            self.xywh *= np.tile(self.limits, 2)
        self.crowd = np.array([entry.crowd for entry in self.entries], bool)
        self.area = np.array([entry.area for entry in self.entries], np.float64)
        self.alive = np.ones(len(self.entries), bool)
        self.trained = self.alive.copy()
        self.kept = np.ones(len(images), bool)
        self.boxes = np.zeros((len(self.entries), 4))

    def plausible(self) -> np.ndarray:
        """Boxes of finite numbers and positive sides."""
        with np.errstate(over="ignore", invalid="ignore"):
            ends = np.abs(self.xywh[:, :2]) + self.xywh[:, 2:] * 2
            return np.isfinite(ends).all(1) & (self.xywh[:, 2:] > 0).all(1) & self.alive

    def looks_normalised(self) -> np.ndarray:
        """Boxes of fractions, in images where that is not a box of a pixel or two."""
        small = (np.abs(self.xywh) <= FRACTION).all(1)
        return small & (self.limits.min(1) > 2 * FRACTION) & (not self.listing.relative)

    def refuse_other_forms(self) -> None:
        """Find files whose boxes are fractions, or two corners."""
        plausible = self.plausible()
        total = int(plausible.sum())
        normalised = self.looks_normalised() & plausible
        if total and normalised.sum() >= NORMALISED_SHARE * total:
            detail = f"{normalised.sum()} of {total} boxes are within 0..{FRACTION}"
            if self.findings.add("normalised_file", self.listing.origin, detail):
                self.xywh[normalised] *= np.tile(self.limits, 2)[normalised]
                fractions = normalised & (self.area <= 1)  # others are in pixels already
                self.area[fractions] *= self.limits[fractions].prod(1)
            return
        corner, side = self.xywh[:, :2], self.xywh[:, 2:]
        ordered = (side > corner) & (side <= self.limits + ROUNDING) & (corner >= 0)
        as_corners = ordered.all(1) & plausible
        with np.errstate(over="ignore", invalid="ignore"):
            outside = (corner + side > self.limits + ROUNDING).any(1) & as_corners
        many = total and as_corners.sum() >= XYXY_SHARE * total and total > 3
        if many and outside.sum() >= XYXY_OUTSIDE * total:
            detail = f"{outside.sum()} of {total} boxes would reach out of their image"
            if self.findings.add("xyxy_file", self.listing.origin, detail):
                self.xywh[as_corners, 2:] -= self.xywh[as_corners, :2]
                self.area[as_corners] = self.xywh[as_corners, 2:].prod(1)

    def drop_images_of_other_size(self) -> None:
        """Where file and listing differ in size, trust the file if the boxes fit it."""
        first = np.searchsorted(self.rows, np.arange(len(self.images) + 1))
        plausible = self.plausible()
        xywh = np.where(plausible[:, None], self.xywh, 0)
        ends = xywh[:, :2] + xywh[:, 2:]
        for row, image in enumerate(self.images):
            if image.stated is None or tuple(image.stated) == image.size:
                continue
            rows = slice(first[row], first[row + 1])
            height, width = image.stated
            detail = f"{image.size[1]} x {image.size[0]} pixels, stated {width:g} x {height:g}"
            fits = (ends[rows] <= self.limits[rows] + ROUNDING).all()
            # The size before turning: the boxes were drawn on the picture as it is stored.
            unturned = 5 <= image.orientation <= 8 and (width, height) == image.size
            if unturned and len(ends[rows]):
                fits, detail = False, f"{detail}, which is its size before turning upright"
            kind = "wrong_size" if fits else "boxes_of_other_size"
            if not self.findings.add(kind, self._place(row), detail):
                self.kept[row] = False
                self.alive[rows] = False
                for entry in self.entries[rows]:
                    self.findings.add("lost_with_image", self.listing.place(entry))

    def clean(self) -> None:
        """Judge each box by itself, then look for repetitions."""
        finite = np.isfinite(self.xywh).all(1)
        with np.errstate(over="ignore", invalid="ignore"):
            box = np.concatenate((self.xywh[:, :2], self.xywh[:, :2] + self.xywh[:, 2:]), 1)
            finite &= np.isfinite(box).all(1)
            limits = np.tile(self.limits, 2)
            clipped = np.clip(np.where(finite[:, None], box, 0), 0, limits)
            out_by = np.abs(np.where(finite[:, None], box, 0) - clipped).max(1, initial=0)
        sides = clipped[:, 2:] - clipped[:, :2]
        absurd = ABSURD * self.limits.max(1, initial=1)
        for kind, wrong in (
            ("not_finite_box", ~finite),
            ("degenerate_box", (self.xywh[:, 2:] <= 0).any(1)),
            ("normalised_box", self.looks_normalised()),
            ("absurd_box", out_by > absurd),
            ("outside_box", (sides <= 0).any(1)),
            ("small_box", (sides < MIN_SIDE).any(1)),
            ("clipped_box", (out_by > ROUNDING) & (out_by <= absurd)),
        ):
            self._judge(kind, wrong & self.trained & self.alive, stays=kind == "small_box")
        self.boxes = clipped
        self._judge("duplicate_box", self._repeated(), stays=True)
        self._report_emptied()

    def _judge(self, kind: str, wrong: np.ndarray, stays: bool) -> None:
        """Record boxes; those left out still count in evaluation if `stays`."""
        for index in np.flatnonzero(wrong).tolist():
            entry = self.entries[index]
            numbers = ", ".join(f"{value:.6g}" for value in self.xywh[index])
            place = self.listing.place(entry)
            if not self.findings.add(kind, place, f"[x, y, width, height] is [{numbers}]"):
                self.trained[index] = False
                self.alive[index] &= stays

    def _repeated(self) -> np.ndarray:
        """Boxes with an equal one of the same class in the same image before them."""
        repeated, seen = np.zeros(len(self.entries), bool), set()
        for index in np.flatnonzero(self.trained & self.alive & ~self.crowd).tolist():
            key = (self.rows[index], self.entries[index].category_id, *self.boxes[index])
            repeated[index] = key in seen
            seen.add(key)
        return repeated

    def _place(self, row: int) -> str:
        return f"{Path(self.listing.origin).name}: {self.images[row].name}"

    def _report_emptied(self) -> None:
        had = np.bincount(self.rows, minlength=len(self.images)) > 0
        has = np.bincount(self.rows[self.alive & self.trained], minlength=len(self.images)) > 0
        for row in np.flatnonzero(had & ~has & self.kept).tolist():
            if not self.findings.add("emptied_image", self._place(row)):
                self.kept[row] = False

    def result(self) -> CleanSet:
        """Images and boxes that are left."""
        alive = self.alive & self.kept[self.rows]
        counts = np.bincount(self.rows[alive], minlength=len(self.images))[self.kept]
        xywh = self.xywh[alive]
        area = self.area[alive]
        return CleanSet(
            [image for image, kept in zip(self.images, self.kept, strict=True) if kept],
            np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            self.boxes[alive].astype(np.float32),
            (self.trained & self.alive)[alive],
            xywh,
            np.where(np.isnan(area), xywh[:, 2] * xywh[:, 3], area),
            np.array([entry.category_id for entry in self.entries], np.int64)[alive],
            self.crowd[alive],
            [self.entries[i].segmentation for i in np.flatnonzero(alive).tolist()],
        )
