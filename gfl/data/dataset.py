"""COCO files to samples. Annotations are held in flat arrays, so that workers do not grow."""

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools.coco import COCO

from gfl.data.coco_json import read_coco_json
from gfl.data.image import read_image
from gfl.errors import UserError

# Boxes narrower or lower than this are dropped, pixels (as in mmdet).
MIN_SIDE = 1.0


@dataclass(frozen=True)
class Sample:
    """One image with its objects, as read.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) float32 xyxy, pixels of `image`.
        labels: (n,) int64 in [0, C).
        ignore_boxes: (m, 4) float32, crowd regions.
        image_id: the data set's own id.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore_boxes: np.ndarray
    image_id: int


class CocoDataset:
    """Images and boxes of one or several COCO json files, concatenated.

    Any category ids are fine: label i is the i-th category of the first file, or `class_names[i]`
    where these are given; files are matched by class name. Boxes are clipped to their image, those
    under 1 pixel and those of unknown categories left out; `report` counts what was done.

    Args:
        sources: (image folder, json file) pairs.
        class_names: expected names, in order of the labels (those of the training split).

    Attributes:
        class_names: name of each label.
        category_ids: the (first) file's own category id of each label.
        sizes: (n, 2) int32 (h, w) of the images, as the files state them.
        image_ids: (n,) int64.
        report: counts of what was found and repaired, by name.

    Raises:
        UserError: a missing folder or file, a json that is not COCO, class names that differ, no
            annotation that maps to a class.
    """

    def __init__(
        self,
        sources: Sequence[tuple[str | Path, str | Path]],
        class_names: Sequence[str] | None = None,
    ):
        self.sources = [(Path(images), Path(annotations)) for images, annotations in sources]
        self.class_names: tuple[str, ...] | None = tuple(class_names) if class_names else None
        self.report: Counter = Counter()
        paths, sizes, image_ids, boxes, labels, crowd, counts = [], [], [], [], [], [], []
        for number, (folder, json_file) in enumerate(self.sources):
            content = read_coco_json(json_file)
            label_of = self._match_classes(content["categories"], json_file)
            if number == 0:
                id_of = {label: category_id for category_id, label in label_of.items()}
                self.category_ids = tuple(id_of[i] for i in range(len(id_of)))
            by_image = self._objects_by_image(content, label_of, json_file)
            for image in content["images"]:
                paths.append(str(folder / image["file_name"]))
                sizes.append((image["height"], image["width"]))
                image_ids.append(image["id"])
                objects = by_image[image["id"]]
                boxes.extend(box for box, _, _ in objects)
                labels.extend(label for _, label, _ in objects)
                crowd.extend(is_crowd for _, _, is_crowd in objects)
                counts.append(len(objects))
            _require_images(folder, paths[-len(content["images"]) :])
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.image_ids = np.array(image_ids, np.int64)
        self._paths = np.array([path.encode() for path in paths])
        self._boxes = np.array(boxes, np.float32).reshape(-1, 4)
        self._labels = np.array(labels, np.int64)
        self._crowd = np.array(crowd, bool)
        self._first = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        self._finish_report()

    def __len__(self) -> int:
        return len(self.image_ids)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        rows = slice(self._first[index], self._first[index + 1])
        boxes, labels, crowd = self._boxes[rows], self._labels[rows], self._crowd[rows]
        path = self._paths[index].decode()
        image = read_image(path)
        if image.shape[:2] != tuple(self.sizes[index]):
            raise UserError(
                f"{path} is {image.shape[1]} x {image.shape[0]} pixels, but its json says "
                f"{self.sizes[index][1]} x {self.sizes[index][0]}: correct the json or the file."
            )
        image_id = int(self.image_ids[index])
        return Sample(image, boxes[~crowd], labels[~crowd], boxes[crowd], image_id)

    def files_of(self, image_id: int) -> list[str]:
        """Files of an image id; several where annotation files share ids."""
        return [self._paths[i].decode() for i in np.flatnonzero(self.image_ids == image_id)]

    def require_distinct_image_ids(self) -> None:
        """Raise `UserError` if several files share ids: detections could not be told apart."""
        if len(set(self.image_ids.tolist())) < len(self):
            names = ", ".join(str(json_file) for _, json_file in self.sources)
            raise UserError(
                f"{names} share image ids, so that detections could not be told apart: give each "
                "image of the split an id of its own."
            )

    def ground_truth(self) -> COCO:
        """The annotation files as they are, for evaluation by pycocotools."""
        self.require_distinct_image_ids()
        contents = [read_coco_json(json_file) for _, json_file in self.sources]
        truth = COCO()
        truth.dataset = contents[0] if len(contents) == 1 else self._merged(contents)
        # Files made by hand often leave these out. Ids are given anew: pycocotools loses objects
        # whose id occurs twice, and takes id 0 for "not matched".
        for number, annotation in enumerate(truth.dataset["annotations"], start=1):
            annotation["id"] = number
            annotation.setdefault("iscrowd", 0)
            annotation.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
        with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
            truth.createIndex()
        return truth

    def _merged(self, contents: list[dict]) -> dict:
        """One COCO dict of several with distinct image ids; category ids become the first's."""
        merged = {"images": [], "annotations": [], "categories": contents[0]["categories"]}
        id_of = dict(zip(self.class_names, self.category_ids, strict=True))
        for content in contents:
            name_of = {category["id"]: category["name"] for category in content["categories"]}
            merged["images"] += content["images"]
            for annotation in content["annotations"]:
                if annotation["category_id"] in name_of:
                    category_id = id_of[name_of[annotation["category_id"]]]
                    merged["annotations"].append({**annotation, "category_id": category_id})
        return merged

    def _match_classes(self, categories: list[dict], json_file: Path) -> dict[int, int]:
        """Category id to label, by name; sets `class_names` from the first file."""
        names = [category["name"] for category in categories]
        if self.class_names is None:
            self.class_names = tuple(names)
        if set(names) != set(self.class_names):
            only_here = sorted(set(names) - set(self.class_names))
            missing = sorted(set(self.class_names) - set(names))
            raise UserError(
                f"the class names of {json_file} differ from the training classes: "
                f"only here {only_here}, missing here {missing} (capitals and blanks count). "
                "Make the categories of both files the same."
            )
        return {category["id"]: self.class_names.index(category["name"]) for category in categories}

    def _objects_by_image(self, content: dict, label_of: dict, json_file: Path) -> dict:
        """Image id to [(xyxy, label, is crowd)], cleaned; counts repairs in `report`."""
        size_of = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
        objects: dict[int, list] = {image_id: [] for image_id in size_of}
        for annotation in content["annotations"]:
            if annotation["category_id"] not in label_of:
                self.report["boxes of unknown categories left out"] += 1
            elif annotation["image_id"] not in size_of:
                self.report["boxes of unknown images left out"] += 1
            else:
                box = self._clean(annotation["bbox"], size_of[annotation["image_id"]])
                if box is not None:
                    label = label_of[annotation["category_id"]]
                    is_crowd = bool(annotation.get("iscrowd", 0))
                    objects[annotation["image_id"]].append((box, label, is_crowd))
        if content["annotations"] and not any(objects.values()):
            raise UserError(
                f"{json_file}: none of its {len(content['annotations'])} annotations can be used "
                f"({dict(self.report)}). Known categories: "
                f"{dict(zip(label_of, self.class_names, strict=False))}."
            )
        return objects

    def _clean(self, xywh: list[float], size: tuple[int, int]) -> tuple | None:
        """xyxy within the image, or None for a box that is degenerate there."""
        x, y, width, height = xywh
        box = (x, y, x + width, y + height)
        clipped = tuple(min(max(v, 0), limit) for v, limit in zip(box, size * 2, strict=True))
        sides = clipped[2] - clipped[0], clipped[3] - clipped[1]
        if not np.isfinite(box).all():
            self.report["boxes that are not finite left out"] += 1
            return None
        if min(sides) < MIN_SIDE:
            self.report[f"boxes under {MIN_SIDE:g} pixel left out"] += 1
            return None
        if max(abs(a - b) for a, b in zip(box, clipped, strict=True)) > 1:
            self.report["boxes clipped to their image"] += 1
        return clipped

    def _finish_report(self) -> None:
        per_image = np.diff(self._first)
        found = {
            "images": len(self),
            "objects": int((~self._crowd).sum()),
            "crowd regions": int(self._crowd.sum()),
            "images without objects (kept)": int((per_image == 0).sum()),
        }
        self.report = Counter({**found, **self.report})


def _require_images(folder: Path, paths: list[str]) -> None:
    if not folder.is_dir():
        raise UserError(
            f"image folder {folder} does not exist: set data.path or images of the split."
        )
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        raise UserError(
            f"{len(missing)} of {len(paths)} image files are missing in {folder}, "
            f"the first is {missing[0]}."
        )
