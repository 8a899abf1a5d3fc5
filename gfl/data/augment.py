"""Which random changes befall a sample, in which order, and where further pictures come from."""

import math
from functools import partial

import numpy as np

from gfl.data.copy_paste import copy_pasted
from gfl.data.dataset import Sample
from gfl.data.mixup import mixed
from gfl.data.mosaic import FACTORS, mosaic
from gfl.data.random_crop import random_crop
from gfl.data.sampler import SampleKey
from gfl.data.scale_jitter import scale_jittered
from gfl.data.transforms import resized_size

# First number of the random streams; those of `Transform` count from 0.
STREAMS = {"copy_paste": 100, "crop": 101, "mosaic": 102, "scale_jitter": 103, "mixup": 104}
FITTING = (1.0, 1.0)


class Augment:
    """Reads samples of a data set and changes them; `Transform` does the rest.

    In this order: copy-paste and crop, on the picture as it is; mosaic, or else scale jitter, which
    give a picture of the size that the sample's own would have been resized to; mix-up. So sizes
    and batches stay what the sampler took them to be, but for a crop alone.

    What happens, and with which further pictures, is a function of (seed, epoch, index) alone
    (and of the number of a repetition), and each change has a stream of its own: turning one on
    leaves the others as they were.

    Args:
        long: bound of the long side, pixels; the short side comes with the sample's key.
        mosaic, mixup, copy_paste, crop: probabilities.
        scale_jitter: smallest and largest factor, of mosaic, mix-up and copy-paste too.
        strong_epochs: mosaic, mix-up and copy-paste end after that many.
        seed: of the run.
    """

    def __init__(
        self,
        long: int,
        mosaic: float = 0.0,
        mixup: float = 0.0,
        copy_paste: float = 0.0,
        crop: float = 0.0,
        scale_jitter: tuple[float, float] | None = None,
        strong_epochs: float = math.inf,
        seed: int = 0,
    ):
        self.long = long
        self.chances = {"mosaic": mosaic, "mixup": mixup, "copy_paste": copy_paste, "crop": crop}
        self.chances["scale_jitter"] = float(scale_jitter is not None)
        self.scale_jitter = scale_jitter
        self.strong_epochs = strong_epochs
        self.seed = seed

    def __call__(self, dataset, key: SampleKey) -> tuple[Sample, tuple[int, ...]]:
        """The sample of a key, and the image ids of further pictures in it."""
        sample = dataset[key.index]
        # Before a crop: what the sampler went by.
        frame = resized_size(sample.image.shape[:2], key.short, self.long)
        others = []
        factors = self.scale_jitter or FITTING

        def further(rng: np.random.Generator) -> tuple[Sample, int]:
            index = int(rng.integers(len(dataset)))
            others.append(dataset[index])
            return others[-1], index

        strong = key.epoch < self.strong_epochs
        if strong and (rng := self._drawn("copy_paste", key)):
            second, index = further(rng)
            mask_of = partial(dataset.mask_of, key.index)
            second_mask_of = partial(dataset.mask_of, index)
            sample = copy_pasted(sample, mask_of, second, second_mask_of, factors, rng)
        if rng := self._drawn("crop", key):
            sample = random_crop(sample, rng)
        if strong and (rng := self._drawn("mosaic", key)):
            samples = [sample, *(further(rng)[0] for _ in range(3))]
            sample = mosaic(samples, frame, self.scale_jitter or FACTORS, rng)
        elif rng := self._drawn("scale_jitter", key):
            sample = scale_jittered(sample, frame, factors, rng)
        if strong and (rng := self._drawn("mixup", key)):
            second = scale_jittered(further(rng)[0], frame, factors, rng)
            if sample.image.shape[:2] != frame:
                sample = scale_jittered(sample, frame, FITTING, rng)
            sample = mixed(sample, second)
        return sample, tuple(other.image_id for other in others)

    def _drawn(self, name: str, key: SampleKey) -> np.random.Generator | None:
        """The random stream of a change if it happens to a sample."""
        chance = self.chances[name]
        if not chance:
            return None
        rng = key.random_stream(self.seed, STREAMS[name])
        return rng if rng.random() < chance else None
