"""Which images form which batch, on which process. All of it a function of seed and epoch."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import count, cycle, islice
from typing import NamedTuple

import numpy as np

from gfl.data.repeat_factor import epoch_counts, epoch_length

# Number of the random stream that decides how often images come.
REPEATS = 1


class SampleKey(NamedTuple):
    """What a dataset view needs to make a sample: nothing else decides how it looks."""

    index: int
    epoch: int
    short: int
    """Bound of the short side after resizing, pixels."""
    repeat: int = 0
    """How often the image came before in the epoch, where some come several times by intent."""

    def random_stream(self, seed: int, number: int) -> np.random.Generator:
        """What draws the change `number` of this sample, in the run of a seed."""
        repeat = (self.repeat,) if self.repeat else ()
        return np.random.default_rng((seed, self.epoch, self.index, number, *repeat))


class TrainSampler:
    """One epoch of shuffled batches, in equal number on every process.

    Every image occurs in every epoch, some several times if `factors` say so; the last batch is
    filled up with the first images of the epoch. All processes draw the same global batches and
    take their own share, in `accumulate` parts, so that the training does not depend on their
    number.

    Args:
        sizes: (n, 2) h, w of the images.
        batch_size: images of one step over all processes.
        short_range: smallest and largest short side, drawn for each image.
        group_by_aspect: keep wide and tall images in different batches where possible.
        seed: of the run.
        accumulate, rank, world_size: how a batch is divided; they must divide it evenly.
        factors: (n,) how often each image comes in an epoch, on average; None is once.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        batch_size: int,
        short_range: tuple[int, int],
        group_by_aspect: bool = True,
        seed: int = 0,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        factors: np.ndarray | None = None,
    ):
        self.factors = factors
        self.is_tall = (sizes[:, 0] > sizes[:, 1]) & group_by_aspect
        self.batch_size = batch_size
        self.short_range = short_range
        self.seed = seed
        self.accumulate = accumulate
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_step = 0

    @property
    def steps_per_epoch(self) -> int:
        length = len(self.is_tall) if self.factors is None else epoch_length(self.factors)
        return -(-length // self.batch_size)

    def set_position(self, epoch: int, first_step: int = 0) -> None:
        """Where the next iteration starts: `first_step` counts within the epoch."""
        self.epoch, self.first_step = epoch, first_step

    def __len__(self) -> int:
        return (self.steps_per_epoch - self.first_step) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        share = self.batch_size // self.world_size
        part = share // self.accumulate
        for batch in self.global_batches()[self.first_step :]:
            own = batch[self.rank * share : (self.rank + 1) * share]
            for first in range(0, share, part):
                yield own[first : first + part]

    def global_batches(self) -> list[list[SampleKey]]:
        """The epoch's batches, the same on every process."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(self._images())
        batches, waiting = [], {False: [], True: []}
        for index in order.tolist():
            group = waiting[bool(self.is_tall[index])]
            group.append(index)
            if len(group) == self.batch_size:
                batches.append(group.copy())
                group.clear()
        rest = waiting[False] + waiting[True]
        missing = -len(rest) % self.batch_size
        rest += islice(cycle(order.tolist()), missing)
        batches += [rest[i : i + self.batch_size] for i in range(0, len(rest), self.batch_size)]
        batches = [batches[i] for i in rng.permutation(len(batches))]
        low, high = self.short_range
        keys = [
            [SampleKey(index, self.epoch, int(rng.integers(low, high + 1))) for index in batch]
            for batch in batches
        ]
        return keys if self.factors is None else _numbered(keys)

    def _images(self) -> np.ndarray:
        """(m,) the epoch's images, not yet shuffled; more than once where `factors` say so."""
        images = np.arange(len(self.is_tall))
        if self.factors is None:
            return images
        rng = np.random.default_rng((self.seed, self.epoch, REPEATS))
        return np.repeat(images, epoch_counts(self.factors, rng))


def _numbered(batches: list[list[SampleKey]]) -> list[list[SampleKey]]:
    """The same with the repetitions of each image counted, so that no two look alike."""
    came = defaultdict(count)
    return [[key._replace(repeat=next(came[key.index])) for key in batch] for batch in batches]


class EvalSampler:
    """Every image once over all processes; a batch holds only images of one padded shape.

    So padding, and with it AP, does not depend on the batch size or the number of processes.

    Args:
        sizes: (n, 2) h, w of the images.
        padded_shape: (h, w) of an image to (h, w) of its network input.
        batch_size: images of one batch.
        short: bound of the short side, pixels.
        rank, world_size: this process takes every `world_size`-th batch.
        pictures: (n,) where the images are tiles, the picture of each. This process then takes all
            tiles of every `world_size`-th picture, and they come in order as far as possible.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        padded_shape: Callable[[tuple[int, int]], tuple[int, int]],
        batch_size: int,
        short: int,
        rank: int = 0,
        world_size: int = 1,
        pictures: np.ndarray | None = None,
    ):
        by_shape = defaultdict(list)
        for index, size in enumerate(sizes.tolist()):
            if pictures is None or pictures[index] % world_size == rank:
                by_shape[padded_shape(tuple(size))].append(SampleKey(index, 0, short))
        batches = [
            keys[first : first + batch_size]
            for _, keys in sorted(by_shape.items())
            for first in range(0, len(keys), batch_size)
        ]
        self.batches = batches[rank::world_size] if pictures is None else sorted(batches)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)
