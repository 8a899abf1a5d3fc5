"""Listings to samples. Annotations are held in flat arrays, so that workers do not grow."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from gfl.data.clean_boxes import CleanSet, clean_boxes
from gfl.data.coco_json import read_coco_json
from gfl.data.coco_truth import coco_of
from gfl.data.findings import Findings
from gfl.data.image import read_image, shrunk_size
from gfl.data.image_facts import inspect_images
from gfl.data.listing import Listing
from gfl.data.masks import Masks
from gfl.data.usable_images import Inspect, usable_images
from gfl.errors import SHOWN, UserError, some


@dataclass(frozen=True)
class Sample:
    """One image with its objects, as read.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) float32 xyxy, pixels of `image`.
        labels: (n,) int64 in [0, C).
        ignore_boxes: (m, 4) float32, crowd regions.
        image_id: the data set's own id.
        full_size: (h, w) that the boxes belong to, where `image` was decoded smaller than that.
        shrink: how many times smaller, if by `read_image`: sides are rounded up.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore_boxes: np.ndarray
    image_id: int
    full_size: tuple[int, int] | None = None
    shrink: int = 1


class DetectionDataset:
    """Images and boxes of one or several listings, concatenated.

    Any category ids are fine: label i is the i-th category of the first listing, or
    `class_names[i]` where these are given; listings are matched by class name. What is wrong with
    files and boxes is repaired, left out or refused as the policies of `findings` say; `report`
    counts what was done.

    Args:
        listings: what annotation files say; see `gfl.data.coco_json`, `voc`, `yolo`.
        class_names: expected names, in order of the labels (those of the training split).
        classes: use these classes only, in this order; None uses all.
        findings: policies, and what reading the listings has found.
        inspect: looks at image files; see `gfl.data.image_facts`.
        max_skipped: largest fraction of images that may be left out.

    Attributes:
        class_names: name of each label.
        category_ids: the (first) listing's own category id of each label.
        sizes: (n, 2) int32 (h, w) of the upright images.
        image_ids: (n,) int64.
        report: counts of what there is, then of what was found and repaired, by name.
        findings: a tuple of `gfl.data.findings.Finding`, the first few items of each.

    Raises:
        UserError: a missing folder, class names that differ, no annotation that maps to a class, a
            defect whose policy is fail.
    """

    def __init__(
        self,
        listings: Sequence[Listing],
        class_names: Sequence[str] | None = None,
        classes: Sequence[str] | None = None,
        findings: Findings | None = None,
        inspect: Inspect = inspect_images,
        max_skipped: float = 0.5,
    ):
        findings = Findings() if findings is None else findings
        if class_names:
            listings = [listing.with_classes(class_names) for listing in listings]
        if classes:
            listings = [listing.keep_classes(tuple(classes), findings) for listing in listings]
        self.origins = tuple(listing.origin for listing in listings)
        self.class_names = tuple(class_names or listings[0].categories.values())
        sets, labels = [], []
        for listing in listings:
            label_of = self._match_classes(listing)
            images, joined = usable_images(listing, inspect, findings)
            part = clean_boxes(listing, images, joined, findings)
            _require_objects(listing, part, findings)
            sets.append(part)
            labels += [label_of[category_id] for category_id in part.category_ids.tolist()]
        findings.raise_failures()
        id_of = {name: category_id for category_id, name in listings[0].categories.items()}
        self.category_ids = tuple(id_of[name] for name in self.class_names)
        images = [image for part in sets for image in part.images]
        listed = sum(listing.num_listed for listing in listings)
        if listed - len(images) > max_skipped * listed:
            raise UserError(
                f"{listed - len(images)} of {listed} images of {', '.join(self.origins)} can not "
                f"be used ({dict(findings.counts())}): mend them, or raise data.max_skipped."
            )
        self.sizes = np.array([image.size for image in images], np.int32).reshape(-1, 2)
        self.image_ids = np.array([image.id for image in images], np.int64)
        self._paths = np.array([os.fsencode(image.path) for image in images], np.bytes_)
        self._boxes = np.concatenate([part.boxes for part in sets])
        self._trained = np.concatenate([part.trained for part in sets])
        self._xywh = np.concatenate([part.xywh for part in sets])
        self._area = np.concatenate([part.area for part in sets])
        self._crowd = np.concatenate([part.crowd for part in sets])
        self._labels = np.array(labels, np.int64)
        counts = np.concatenate([np.diff(part.first) for part in sets])
        self._first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        segmentations = [mask for part in sets for mask in part.segmentations]
        self._masks = Masks(segmentations, np.repeat(self.sizes, counts, 0), self._boxes)
        self.findings = findings.summary()
        self.report = self._report(findings)

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        return self.read(index)

    def read(self, index: int, shrink: int = 1) -> Sample:
        """As `self[index]`, its picture from `picture`."""
        return self.sample(index, self.picture(index, shrink), shrink)

    def picture(self, index: int, shrink: int = 1, out: np.ndarray | None = None) -> np.ndarray:
        """(H, W, 3) uint8 RGB from its file, see `read_image`."""
        path = self.path(index)
        image = read_image(path, shrink, out)
        own = tuple(self.sizes[index].tolist())
        if image.shape[:2] in (own, shrunk_size(own, shrink)):
            return image
        if shrink > 1:
            return self.picture(index)  # to say which size it has
        raise UserError(
            f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but was {own[1]} x {own[0]} "
            "when the data set was read: it must not change in between."
        )

    def sample(self, index: int, image: np.ndarray, shrink: int = 1) -> Sample:
        """What belongs to a picture that is at hand, from `picture` with the same `shrink`."""
        rows = slice(self._first[index], self._first[index + 1])
        boxes, labels, crowd = self._boxes[rows], self._labels[rows], self._crowd[rows]
        objects, regions = self._trained[rows] & ~crowd, self._trained[rows] & crowd
        own = tuple(self.sizes[index].tolist())
        smaller = () if image.shape[:2] == own else (own, shrink)
        image_id = int(self.image_ids[index])
        return Sample(image, boxes[objects], labels[objects], boxes[regions], image_id, *smaller)

    def path(self, index: int) -> str:
        """Its image file."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return os.fsdecode(self._paths[index])

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All training objects at once.

        Returns:
            (m, 4) float32 xyxy in pixels of their image, (m,) labels, (m,) index of the image.
        """
        rows = self._trained & ~self._crowd
        index = np.repeat(np.arange(len(self)), np.diff(self._first))
        return self._boxes[rows], self._labels[rows], index[rows]

    def mask_of(self, index: int, row: int) -> np.ndarray | None:
        """(H, W) uint8 mask, 0 and 1, of a sample's box; None where none is known."""
        rows = np.arange(self._first[index], self._first[index + 1])
        return self._masks[rows[self._trained[rows] & ~self._crowd[rows]][row]]

    @property
    def num_masks(self) -> int:
        """Objects whose mask is known; 0 where masks were not read."""
        return int((self._masks.known & self._trained & ~self._crowd).sum())

    def files_of(self, image_id: int) -> list[str]:
        """Files of an image id; several where annotation files share ids."""
        return [os.fsdecode(self._paths[i]) for i in np.flatnonzero(self.image_ids == image_id)]

    def require_distinct_image_ids(self) -> None:
        """Raise `UserError` if several files share ids: detections could not be told apart."""
        if len(set(self.image_ids.tolist())) < len(self):
            raise UserError(
                f"{', '.join(self.origins)} share image ids, so that detections could not be told "
                "apart: give each image of the split an id of its own."
            )

    def ground_truth(self) -> COCO:
        """Boxes and areas as the annotation files have them, for evaluation by pycocotools."""
        self.require_distinct_image_ids()
        ids = self.image_ids.tolist()
        images = [
            {"id": image_id, "file_name": os.fsdecode(path), "height": height, "width": width}
            for image_id, path, (height, width) in zip(
                ids, self._paths.tolist(), self.sizes.tolist(), strict=True
            )
        ]
        rows = zip(
            np.repeat(self.image_ids, np.diff(self._first)).tolist(),
            self._labels.tolist(),
            self._xywh.tolist(),
            self._area.tolist(),
            self._crowd.tolist(),
            strict=True,
        )
        content = {
            "images": images,
            # Ids are given anew: pycocotools loses objects whose id occurs twice, and takes id 0
            # for "not matched".
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": self.category_ids[label],
                    "bbox": box,
                    "area": area,
                    "iscrowd": int(is_crowd),
                }
                for number, (image_id, label, box, area, is_crowd) in enumerate(rows, start=1)
            ],
            "categories": [
                {"id": category_id, "name": name}
                for category_id, name in zip(self.category_ids, self.class_names, strict=True)
            ],
        }
        return coco_of(content)

    def _match_classes(self, listing: Listing) -> dict[int, int]:
        """Category id to label, by name."""
        names = set(listing.categories.values())
        if names != set(self.class_names):
            only_here = sorted(names - set(self.class_names))
            missing = sorted(set(self.class_names) - names)
            raise UserError(
                f"the class names of {listing.origin} differ from the training classes: "
                f"only here {some(only_here)}, missing here {some(missing)} (capitals and blanks "
                "count). "
                "Make the categories of both files the same."
            )
        label_of = {name: label for label, name in enumerate(self.class_names)}
        return {i: label_of[name] for i, name in listing.categories.items()}

    def _report(self, findings: Findings) -> Counter:
        index = np.repeat(np.arange(len(self)), np.diff(self._first))[self._trained]
        found = {
            "images": len(self),
            "objects": int((self._trained & ~self._crowd).sum()),
            "crowd regions": int((self._trained & self._crowd).sum()),
            "images without objects (kept)": len(self) - len(np.unique(index)),
        }
        return Counter({**found, **findings.counts()})


class CocoDataset(DetectionDataset):
    """A `DetectionDataset` of COCO json files.

    Args:
        sources: (image folder, json file) pairs.
        class_names, findings, options: as there.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str | Path, str | Path]],
        class_names: Sequence[str] | None = None,
        findings: Findings | None = None,
        **options,
    ):
        findings = Findings() if findings is None else findings
        listings = [
            read_coco_json(Path(json_file), Path(images), findings) for images, json_file in sources
        ]
        super().__init__(listings, class_names, findings=findings, **options)


def _require_objects(listing: Listing, part: CleanSet, findings: Findings) -> None:
    """Refuse annotations of which none is left; having none from the start is legal."""
    if listing.num_annotations and not part.trained.any():
        findings.raise_failures()
        known = list(listing.categories.items())
        more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
        raise UserError(
            f"{listing.origin}: none of its {listing.num_annotations} annotations can be used "
            f"({dict(findings.counts())}). Known categories: {dict(known[:SHOWN])}{more}."
        )
