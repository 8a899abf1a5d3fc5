"""A data set that a program hands over, completed by what a training asks of one."""

from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO

from gfl.data.coco_truth import coco_of
from gfl.data.dataset import Sample
from gfl.errors import UserError, some

# Where a data set has these, and gives `Sample`s, it is used as it is; for evaluation it needs the
# second too.
COMPLETE = ("class_names", "category_ids", "sizes")
EVALUATED = ("ground_truth",)
ITEM = "image, boxes, labels and, if there are any, crowd regions and the image's id"


def completed(
    dataset,
    class_names: Sequence[str] | None = None,
    num_classes: int | None = None,
    evaluated: bool = False,
):
    """The data set itself if it has all that `CocoDataset` has, else an `OwnDataset` around it.

    Args:
        dataset: of a program.
        class_names: the names that it must have, in order of the labels (those of the training
            set), if it has any.
        num_classes: C, where nothing names the classes.
        evaluated: whether AP is computed on it.

    Raises:
        UserError: it is empty or has other classes, or see `OwnDataset`.
    """
    needed = COMPLETE + EVALUATED * evaluated
    is_complete = all(hasattr(dataset, name) for name in needed)
    if not (is_complete and len(dataset) and isinstance(dataset[0], Sample)):
        dataset = OwnDataset(dataset, class_names, num_classes)
    if not len(dataset):
        raise UserError(
            "the data set has no item: nothing can be learned from it, or judged by it."
        )
    found = tuple(map(str, dataset.class_names))
    if class_names is not None and found != tuple(class_names):
        raise UserError(
            f"the classes of the data set are {', '.join(found)}, expected those of the training "
            f"in their order: {', '.join(class_names)}."
        )
    return dataset


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
        UserError: an item that is not as it should be.
    """

    def __init__(
        self,
        dataset,
        class_names: Sequence[str] | None = None,
        num_classes: int | None = None,
    ):
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise UserError(
                f"the data set is a {type(dataset).__name__}, expected one with a length and items "
                "(__len__ and __getitem__)."
            )
        self._dataset = dataset
        self._objects: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        sizes, image_ids, most = [], [], -1
        for index in range(len(dataset)):
            sample = self[index]
            self._objects.append((sample.boxes, sample.labels, sample.ignore_boxes))
            sizes.append(sample.full_size or sample.image.shape[:2])
            image_ids.append(sample.image_id)
            most = max([most, *sample.labels.tolist()])
        self.sizes = np.array(sizes, np.int32).reshape(-1, 2)
        self.image_ids = np.array(image_ids, np.int64)
        numbers = range(num_classes or max(most + 1, 1))
        self.class_names = tuple(map(str, getattr(dataset, "class_names", class_names or numbers)))
        if most >= len(self.class_names):
            raise UserError(
                f"the data set has the label {most}, but its classes are 0 to "
                f"{len(self.class_names) - 1} ({', '.join(self.class_names)})."
            )
        counted = range(1, len(self.class_names) + 1)
        self.category_ids = _distinct_ids(getattr(dataset, "category_ids", counted))
        if len(self.category_ids) != len(self.class_names):
            raise UserError(
                f"the data set has {len(self.category_ids)} category_ids and "
                f"{len(self.class_names)} class_names, expected as many."
            )
        boxes = self.objects()[0]
        if len(boxes) and boxes.max() <= 1:
            raise UserError(
                "all boxes of the data set lie in the first pixel of their images: they seem to be "
                "fractions, expected pixels (x1, y1, x2, y2)."
            )
        self.report = {"images": len(self), "objects": len(boxes)}

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        try:
            item = self._dataset[index]
        except OSError as error:
            raise UserError(f"item {index} of the data set can not be read: {error}.") from error
        return as_sample(item, index)

    def objects(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All objects: (m, 4) xyxy, (m,) labels, (m,) index of the image."""
        boxes = [boxes for boxes, _, _ in self._objects]
        labels = [labels for _, labels, _ in self._objects]
        index = np.repeat(np.arange(len(self)), [len(each) for each in labels])
        no_boxes, no_labels = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        return np.concatenate([no_boxes, *boxes]), np.concatenate([no_labels, *labels]), index

    def ground_truth(self) -> COCO:
        """Its objects and crowd regions, for evaluation by pycocotools.

        Raises:
            UserError: image ids that occur twice.
        """
        if len(set(self.image_ids.tolist())) < len(self):
            raise UserError("image ids of the data set occur twice: give each image its own.")
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
    smaller = ()
    if isinstance(item, Sample):
        smaller = (item.full_size, item.shrink)
        item = (item.image, item.boxes, item.labels, item.ignore_boxes, item.image_id)
    if not isinstance(item, tuple | list) or not 3 <= len(item) <= 5:
        raise UserError(
            f"item {index} of the data set is a {type(item).__name__}, expected a "
            f"gfl.data.dataset.Sample or a tuple: {ITEM}."
        )
    image, boxes, labels, *rest = item
    regions = rest[0] if rest else ()
    try:
        sample = Sample(
            np.asarray(image),
            _rows(boxes),
            _whole(labels).reshape(-1),
            _rows(regions),
            int(_whole(rest[1])) if len(rest) > 1 else index + 1,
            *smaller,
        )
    except (TypeError, ValueError) as error:
        raise UserError(
            f"item {index} of the data set can not be used ({error}), expected {ITEM}."
        ) from error
    _check(sample, index)
    return sample


def _rows(boxes) -> np.ndarray:
    """(n, 4) float32."""
    boxes = np.asarray(boxes, np.float32)
    if boxes.size == 0:
        return boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape}, not (n, 4)")
    return boxes


def _whole(numbers) -> np.ndarray:
    """int64."""
    given = np.asarray(numbers)
    whole = given.astype(np.int64)
    if (whole != given).any():
        raise ValueError(f"{given[whole != given].flat[0]} is no whole number")
    return whole


def _distinct_ids(category_ids) -> tuple[int, ...]:
    """Plain ints, as JSON needs them."""
    try:
        ids = tuple(_whole(tuple(category_ids)).reshape(-1).tolist())
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"category_ids of the data set are {category_ids!r:.200} ({error}), expected a whole "
            "number for each class."
        ) from error
    if len(set(ids)) < len(ids):
        raise UserError(
            f"category_ids of the data set are {some(ids)}, expected another for each class."
        )
    return ids


def _check(sample: Sample, index: int) -> None:
    image, labels = sample.image, sample.labels
    boxes = np.concatenate((sample.boxes, sample.ignore_boxes))
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        wrong = f"an image of shape {image.shape} and type {image.dtype}, expected (H, W, 3) uint8"
    elif not image.size:
        wrong = f"an image of shape {image.shape}, expected a height and width of 1 or more"
    elif len(sample.boxes) != len(labels):
        wrong = f"{len(sample.boxes)} boxes and {len(labels)} labels, expected as many"
    elif not np.isfinite(boxes).all() or (boxes[:, 2:] <= boxes[:, :2]).any():
        wrong = "boxes without an area, expected x1 < x2 and y1 < y2, pixels of the image"
    elif _outside(boxes, sample.full_size or image.shape[:2]).any():
        wrong = f"boxes that lie outside of the image of {image.shape[:2]} (h, w)"
    elif (labels < 0).any():
        wrong = f"the label {labels.min()}, expected 0 for the first class"
    else:
        return
    raise UserError(f"item {index} of the data set has {wrong}.")


def _outside(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(n,) whether a box shares nothing with a picture of `size` (h, w)."""
    return (boxes[:, 2:] <= 0).any(1) | (boxes[:, :2] >= size[::-1]).any(1)
