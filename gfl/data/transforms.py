"""What is done to a sample before it enters a batch: resize, and in training flips and colour."""

import functools
import random

import albumentations as A
import cv2
import numpy as np

from gfl.data.dataset import Sample
from gfl.data.sampler import SampleKey
from gfl.structures import ImageMeta


def resized_size(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """(h, w) of an image of `size` (h, w) after resizing with kept ratio.

    The factor is the largest that keeps the short side within `short` and the long within `long`.

    Source: mmcv `rescale_size` (halves round up).
    """
    height, width = size
    factor = min(short / min(height, width), long / max(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


@functools.lru_cache(maxsize=1024)
def _resize(height: int, width: int) -> A.Resize:
    return A.Resize(height, width, interpolation=cv2.INTER_LINEAR)


class Transform:
    """Resizes a sample and, if asked, changes it at random.

    The randomness is a function of (seed, epoch, index) alone and each albumentations transform
    has a stream of its own: `A.Compose(seed=...)` would hand all of them the same one, so that
    two flips would always fall together.

    Args:
        long: bound of the long side, pixels; the short side comes with the sample's key.
        flip_horizontal, flip_vertical, color: probabilities.
        seed: of the run.
    """

    def __init__(
        self,
        long: int,
        flip_horizontal: float = 0.0,
        flip_vertical: float = 0.0,
        color: float = 0.0,
        seed: int = 0,
    ):
        self.long = long
        self.seed = seed
        changes = [
            A.HorizontalFlip(p=flip_horizontal),
            A.VerticalFlip(p=flip_vertical),
            A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=color),
        ]
        changes = [change for change in changes if change.p > 0]
        moves_boxes = flip_horizontal > 0 or flip_vertical > 0
        boxes = A.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True)
        self.changes = A.Compose(changes, boxes if moves_boxes else None) if changes else None

    def __call__(self, sample: Sample, key: SampleKey) -> tuple[Sample, ImageMeta]:
        """Give the sample in the frame of the network input, and where it came from."""
        original = sample.image.shape[:2]
        height, width = resized_size(original, key.short, self.long)
        image = _resize(height, width)(image=sample.image)["image"]
        scale = (width / original[1], height / original[0])
        factors = np.array(scale * 2, np.float32)
        boxes, ignore_boxes = sample.boxes * factors, sample.ignore_boxes * factors
        meta = ImageMeta(sample.image_id, original, (height, width), scale)
        sample = Sample(image, boxes, sample.labels, ignore_boxes, sample.image_id)
        return (sample if self.changes is None else self._change(sample, key)), meta

    def _change(self, sample: Sample, key: SampleKey) -> Sample:
        for number, change in enumerate(self.changes.transforms):
            stream = key.random_stream(self.seed, number)
            change.set_random_state(stream, random.Random(int(stream.integers(2**63))))
        both = np.concatenate((sample.boxes, sample.ignore_boxes))
        changed = self.changes(image=sample.image, bboxes=both, rows=np.arange(len(both)))
        rows = np.asarray(changed["rows"], np.int64)
        both = np.asarray(changed["bboxes"], np.float32).reshape(-1, 4)
        is_object = rows < len(sample.boxes)
        return Sample(
            changed["image"],
            both[is_object],
            sample.labels[rows[is_object]],
            both[~is_object],
            sample.image_id,
        )
