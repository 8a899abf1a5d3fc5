"""Which images form which batch, on which process. All of it a function of seed and epoch."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from typing import NamedTuple

import numpy as np


class SampleKey(NamedTuple):
    """What a dataset view needs to make a sample: nothing else decides how it looks."""

    index: int
    epoch: int
    short: int
    """Bound of the short side after resizing, pixels."""


class TrainSampler:
    """One epoch of shuffled batches, in equal number on every process.

    Every image occurs in every epoch; the last batch is filled up with the first images of the
    epoch. All processes draw the same global batches and take their own share, in `accumulate`
    parts, so that the training does not depend on their number.

    Args:
        sizes: (n, 2) h, w of the images.
        batch_size: images of one step over all processes.
        short_range: smallest and largest short side, drawn for each image.
        group_by_aspect: keep wide and tall images in different batches where possible.
        seed: of the run.
        accumulate, rank, world_size: how a batch is divided; they must divide it evenly.
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
    ):
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
        return -(-len(self.is_tall) // self.batch_size)

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
        order = rng.permutation(len(self.is_tall))
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
        return [
            [SampleKey(index, self.epoch, int(rng.integers(low, high + 1))) for index in batch]
            for batch in batches
        ]


class EvalSampler:
    """Every image once over all processes; a batch holds only images of one padded shape.

    So padding, and with it AP, does not depend on the batch size or the number of processes.

    Args:
        sizes: (n, 2) h, w of the images.
        padded_shape: (h, w) of an image to (h, w) of its network input.
        batch_size: images of one batch.
        short: bound of the short side, pixels.
        rank, world_size: this process takes every `world_size`-th batch.
    """

    def __init__(
        self,
        sizes: np.ndarray,
        padded_shape: Callable[[tuple[int, int]], tuple[int, int]],
        batch_size: int,
        short: int,
        rank: int = 0,
        world_size: int = 1,
    ):
        by_shape = defaultdict(list)
        for index, size in enumerate(sizes.tolist()):
            by_shape[padded_shape(tuple(size))].append(SampleKey(index, 0, short))
        batches = [
            keys[first : first + batch_size]
            for _, keys in sorted(by_shape.items())
            for first in range(0, len(keys), batch_size)
        ]
        self.batches = batches[rank::world_size]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        return iter(self.batches)
