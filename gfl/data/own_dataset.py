"""A data set that a program hands over, completed by what a training asks of one."""

from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO

from gfl.data.coco_truth import coco_of
from gfl.data.dataset import Sample
from gfl.errors import UserError

# Where a data set has these, and gives `Sample`s, it is used as it is.
COMPLETE = ("class_names", "category_ids", "sizes", "ground_truth")
ITEM = "image, boxes, labels and, if there are any, crowd regions and the image's id"


def completed(dataset, class_names: Sequence[str] | None = None, num_classes: int | None = None):
    """The data set itself if it has all that `CocoDataset` has, else an `OwnDataset` around it.

    Args:
        dataset: of a program.
        class_names: expected names, in order of the labels (those of the training set).
        num_classes: C, where nothing names the classes.
    """
    is_complete = all(hasattr(dataset, name) for name in COMPLETE)
    if is_complete and (not len(dataset) or isinstance(dataset[0], Sample)):
        return dataset
    return OwnDataset(dataset, class_names, num_classes)


class OwnDataset:
    """Any data set of samples or tuples, with the attributes of `CocoDataset`.

    Every item is read once, here, to know the sizes and the objects; pictures are not kept.

    Args:
        dataset: `dataset[i]`, for i below `len(dataset)`, is a `Sample` or a tuple of its first
            three to five fields. It may have `class_names` and `category_ids`.
        class_names, num_classes: see `completed`. Without any, classes are called by their numbers
            up to the largest label, and category ids count from 1.

    Attributes:
        class_names, category_ids: of the labels.
        sizes: (n, 2) int32 (h, w).
        image_ids: (n,) int64; an item without one has its number, from 1.
        report: counts of images and objects.

    Raises:
        UserError: an item that is not as it should be, or image ids that occur twice.
    """

    def __init__(
        self,
        dataset,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
    ):
        self._dataset = dataset
        self._objects: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        sizes, image_ids, most = [], [], -1
        for index in range(len(dataset)):
            sample = self[index]
            self._objects.append((sample.boxes, sample.labels, sample.ignore_boxes))
            sizes.append(sample.image.shape[:2])
            image_ids.append(sample.image_id)
            most = max([most, *sample.labels.tolist()])
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.image_ids = np.array(image_ids, np.int64)
        if len(set(image_ids)) < len(image_ids):
            raise UserError("image ids of the data set occur twice: give each image its own.")
        numbers = map(str, range(num_classes or max(most + 1, 1)))
        self.class_names = tuple(getattr(dataset, "class_names", class_names or numbers))
        if most >= len(self.class_names):
            raise UserError(
                f"the data set has the label {most}, but its classes are 0 to "
                f"{len(self.class_names) - 1} ({', '.join(self.class_names)})."
            )
        counted = range(1, len(self.class_names) + 1)
        self.category_ids = tuple(getattr(dataset, "category_ids", counted))
        self.report = {"images": len(self), "objects": len(self.objects()[1])}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        return as_sample(self._dataset[index], index)

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All objects: (m, 4) xyxy, (m,) labels, (m,) index of the image."""
        boxes = [boxes for boxes, _, _ in self._objects]
        labels = [labels for _, labels, _ in self._objects]
        index = np.repeat(np.arange(len(self)), [len(each) for each in labels])
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return np.concatenate([no_boxes, *boxes]), np.concatenate([no_labels, *labels]), index

    def ground_truth(self) -> COCO:
        """Its objects and crowd regions, for evaluation by pycocotools."""
        annotations = []
        for image_id, (boxes, labels, regions) in zip(
            self.image_ids.tolist(), self._objects, strict=True
        ):
            # A crowd region is one of every class.
            rows = [(box, label, 0) for box, label in zip(boxes, labels.tolist(), strict=True)]
            rows += [(box, label, 1) for box in regions for label in range(len(self.class_names))]
            for box, label, is_crowd in rows:
                x1, y1, x2, y2 = box.astype(float).tolist()
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": self.category_ids[label],
                        "bbox": [x1, y1, x2 - x1, y2 - y1],
                        "area": (x2 - x1) * (y2 - y1),
                        "iscrowd": is_crowd,
                    }
                )
        names = zip(self.category_ids, self.class_names, strict=True)
        images = zip(self.image_ids.tolist(), self.sizes.tolist(), strict=True)
        return coco_of(
            {
                "images": [{"id": i, "height": h, "width": w} for i, (h, w) in images],
                "annotations": annotations,
                "categories": [{"id": i, "name": name} for i, name in names],
            }
        )


def as_sample(item, index: int) -> Sample:
    """An item of a data set as a `Sample`; `index` names it in errors, and numbers it from 1.

    Raises:
        UserError: it is none.
    """
    if not isinstance(item, Sample):
        if not isinstance(item, tuple | list) or not 3 <= len(item) <= 5:
            raise UserError(
                f"item {index} of the data set is a {type(item).__name__}, expected a "
                f"gfl.data.dataset.Sample or a tuple: {ITEM}."
            )
        image, boxes, labels, *rest = item
        regions = rest[0] if rest else ()
        image_id = int(rest[1]) if len(rest) > 1 else index + 1
        item = Sample(
            np.asarray(image),
            np.asarray(boxes, np.float32).reshape(-1, 4),
            np.asarray(labels, np.int64).reshape(-1),
            np.asarray(regions, np.float32).reshape(-1, 4),
            image_id,
        )
    _check(item, index)
    return item


def _check(sample: Sample, index: int) -> None:
    image, boxes, labels = sample.image, sample.boxes, sample.labels
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        wrong = f"an image of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8"
    elif len(boxes) != len(labels):
        wrong = f"{len(boxes)} boxes and {len(labels)} labels, expected as many"
    elif not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        wrong = "boxes without an area, expected x1 < x2 and y1 < y2, pixels of the image"
    elif (labels < 0).any():
        wrong = f"the label {labels.min()}, expected 0 for the first class"
    else:
        return
    raise UserError(f"item {index} of the data set has {wrong}.")
