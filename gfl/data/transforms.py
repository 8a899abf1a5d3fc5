"""What is done to a sample before it enters a batch: resize, and in training flips and colour."""

import random
from dataclasses import dataclass

import cv2
import numpy as np

from gfl.data.dataset import Sample
from gfl.data.flip import flip_boxes
from gfl.data.sampler import SampleKey
from gfl.structures import ImageMeta

# The axis that each flip turns round: 0 for x, 1 for y.
FLIPS = {"mirrored": 0, "upside_down": 1}
# Numbers of the random streams: each change has its own, whichever of the others are on.
STREAMS = {"mirrored": 0, "upside_down": 1, "color": 2}


@dataclass(frozen=True)
class NativeSample(Sample):
    """A sample whose boxes are in the frame of the network input, and its picture not yet.

    Attributes:
        image: (H, W, 3) uint8 RGB of any size, not flipped.
        flips: whether the picture is to be mirrored, and whether turned upside down.
    """

    flips: tuple[bool, bool] = (False, False)


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
        on_device: leave resizing and flips of the picture (not of the boxes) to the device; colours
            are then changed before it is resized.
    """

    def __init__(
        self,
        long: int,
        flip_horizontal: float = 0.0,
        flip_vertical: float = 0.0,
        color: float = 0.0,
        seed: int = 0,
        on_device: bool = False,
    ):
        self.long = long
        self.on_device = on_device
        self.seed = seed
        chances = {"mirrored": flip_horizontal, "upside_down": flip_vertical, "color": color}
        self.chances = {name: chance for name, chance in chances.items() if chance > 0}
        if color > 0:
            import albumentations as A  # takes a second: only where it is used

            jitter = ((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05))
            self._color = A.ColorJitter(*jitter, p=color)

    @property
    def changes_pixels(self) -> bool:
        """Whether pictures that are left to the device are changed all the same."""
        return "color" in self.chances

    def input_size(self, size: tuple[int, int], key: SampleKey) -> tuple[int, int]:
        """(h, w) that a picture of `size` (h, w) is resized to."""
        return resized_size(size, key.short, self.long)

    def __call__(self, sample: Sample, key: SampleKey) -> tuple[Sample, ImageMeta]:
        """Give the sample in the frame of the network input, and where it came from.

        Raises:
            ValueError: a box that may be flipped lies outside of its image.
        """
        original = sample.full_size or sample.image.shape[:2]
        size = self.input_size(original, key)
        scale = (size[1] / original[1], size[0] / original[0])
        seen = original
        if sample.shrink > 1:  # sides were rounded up: the last pixels stand for more than there is
            seen = tuple(side * sample.shrink for side in sample.image.shape[:2])
        factors = np.array((size[1] / seen[1], size[0] / seen[0]) * 2, np.float32)
        boxes, ignore_boxes = sample.boxes * factors, sample.ignore_boxes * factors
        meta = ImageMeta(sample.image_id, original, size, scale)
        image = sample.image
        if not self.on_device and size != image.shape[:2]:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        is_own = image is not sample.image
        sample = Sample(image, boxes, sample.labels, ignore_boxes, sample.image_id)
        return self._changed(sample, key, size, is_own), meta

    def _changed(
        self, sample: Sample, key: SampleKey, size: tuple[int, int], is_own: bool
    ) -> Sample:
        """The sample, of input size `size` (h, w), with colours and flips.

        A picture that is `is_own` is flipped in place: fresh memory costs more than the flip.
        """
        image, flips = sample.image, {}
        for name, chance in self.chances.items():
            stream = key.random_stream(self.seed, STREAMS[name])
            coin = random.Random(int(stream.integers(2**63)))
            if name == "color":
                self._color.set_random_state(stream, coin)
                image = self._color(image=image)["image"]
                continue
            axis = FLIPS[name]
            flips[axis] = chance >= 1 or coin.random() < chance
            if flips[axis] and not self.on_device:
                image = cv2.flip(image, 1 - axis, dst=image if is_own else None)
                is_own = True
        boxes, ignore_boxes, labels = sample.boxes, sample.ignore_boxes, sample.labels
        if flips:
            boxes, kept = flip_boxes(boxes, size, flips)
            ignore_boxes, _ = flip_boxes(ignore_boxes, size, flips)
            labels = labels[kept]
        values = (image, boxes, labels, ignore_boxes, sample.image_id)
        if self.on_device:
            return NativeSample(*values, flips=(flips.get(0, False), flips.get(1, False)))
        return Sample(*values)
