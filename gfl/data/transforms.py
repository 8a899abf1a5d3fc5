"""What is done to a sample before it enters a batch: resize, and in training flips and colour."""

import random
from dataclasses import replace

import cv2
import numpy as np

from gfl.data.dataset import Sample
from gfl.data.flip import flip_boxes
from gfl.data.sampler import SampleKey
from gfl.structures import ImageMeta

# The axis that each flip turns round: 0 for x, 1 for y.
FLIPS = {"mirrored": 0, "upside_down": 1}


def resized_size(size: tuple[int, int], short: int, long: int) -> tuple[int, int]:
    """(h, w) of an image of `size` (h, w) after resizing with kept ratio.

    The factor is the largest that keeps the short side within `short` and the long within `long`.

    Source: mmcv `rescale_size` (halves round up).
    """
    height, width = size
    factor = min(short / min(height, width), long / max(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


class Transform:
    """Resizes a sample and, if asked, changes it at random.

    The randomness is a function of (seed, epoch, index) alone, and each change has a stream of its
    own: with one for all, two flips would always fall together.

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
        chances = {"mirrored": flip_horizontal, "upside_down": flip_vertical, "color": color}
        self.chances = {name: chance for name, chance in chances.items() if chance > 0}
        if color > 0:
            import albumentations as A  # takes a second: only where it is used

            jitter = ((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05))
            self._color = A.ColorJitter(*jitter, p=color)

    def __call__(self, sample: Sample, key: SampleKey) -> tuple[Sample, ImageMeta]:
        """Give the sample in the frame of the network input, and where it came from."""
        original = sample.image.shape[:2]
        height, width = resized_size(original, key.short, self.long)
        image = sample.image
        if (height, width) != original:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        scale = (width / original[1], height / original[0])
        factors = np.array(scale * 2, np.float32)
        boxes, ignore_boxes = sample.boxes * factors, sample.ignore_boxes * factors
        meta = ImageMeta(sample.image_id, original, (height, width), scale)
        sample = Sample(image, boxes, sample.labels, ignore_boxes, sample.image_id)
        return (self._change(sample, key) if self.chances else sample), meta

    def _change(self, sample: Sample, key: SampleKey) -> Sample:
        image, flips = sample.image, {}
        for number, (name, chance) in enumerate(self.chances.items()):
            stream = np.random.default_rng((self.seed, key.epoch, key.index, number))
            coin = random.Random(int(stream.integers(2**63)))
            if name == "color":
                self._color.set_random_state(stream, coin)
                image = self._color(image=image)["image"]
                continue
            flips[FLIPS[name]] = falls = chance >= 1 or coin.random() < chance
            if falls:
                image = cv2.flip(image, 1 - FLIPS[name])
        sample = replace(sample, image=image)
        return _with_flipped_boxes(sample, image.shape[:2], flips) if flips else sample


def _with_flipped_boxes(sample: Sample, size: tuple[int, int], flips: dict[int, bool]) -> Sample:
    boxes, kept = flip_boxes(sample.boxes, size, flips)
    ignore_boxes, _ = flip_boxes(sample.ignore_boxes, size, flips)
    return replace(sample, boxes=boxes, labels=sample.labels[kept], ignore_boxes=ignore_boxes)
