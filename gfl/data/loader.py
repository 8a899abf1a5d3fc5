"""Datasets behind PyTorch's DataLoader."""

import math
import signal
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from gfl.data.augment import Augment
from gfl.data.batch import collate, collate_native, room
from gfl.data.dataset import Sample
from gfl.data.freed_memory import keep_freed_memory
from gfl.data.image import shrink_for
from gfl.data.native_batch import NativeBatch
from gfl.data.sampler import SampleKey
from gfl.data.transforms import NativeSample, Transform
from gfl.errors import UserError
from gfl.structures import Batch, ImageMeta

# Seconds that a worker goes on after SIGTERM: longer than a step, which the training finishes
# first. One whose training process is gone ends by itself as soon as it waits for work.
GRACE = 600
# Number of the random stream that draws what stands in, and how many it draws: enough for mosaic,
# which needs four pictures, with half of them lost.
STAND_IN, TRIES = 200, 300


class TransformedDataset(Dataset):
    """A data set seen through a transform; indexed by `SampleKey`.

    Args:
        dataset: anything whose `dataset[i]` is a `Sample`.
        transform: what is done to each.
        augment: what gives the samples, in place of `dataset[i]`.
        reduced_decoding: let a `DetectionDataset` decode pictures no larger than necessary; not
            with `augment`.
        stand_in: whether another image, drawn at random, takes the place of one that can not be
            read; see `gfl.data.stand_ins`.
    """

    def __init__(
        self,
        dataset,
        transform: Transform,
        augment: Augment | None = None,
        reduced_decoding: bool = False,
        stand_in: bool = False,
    ):
        self.dataset = dataset
        self.transform = transform
        self.augment = augment
        self.reduced_decoding = reduced_decoding
        self.stand_in = stand_in

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Sample, ImageMeta] | UserError:
        """The sample, or what the user has to mend: raised in a worker it would become text."""
        try:
            return self._made(key)
        except UserError as error:
            first = error
        if not self.stand_in:
            return first
        drawn = key.random_stream(self.transform.seed, STAND_IN).integers(len(self), size=TRIES)
        for index in drawn.tolist():
            try:
                sample, meta = self._made(key._replace(index=index))
            except UserError:
                continue
            return sample, replace(meta, stands_in_for=str(first))
        return first

    def _made(self, key: SampleKey) -> tuple[Sample, ImageMeta]:
        if self.augment is None:
            return self.transform(self._sample(key), key)
        sample, others = self.augment(self.dataset, key)
        sample, meta = self.transform(sample, key)
        return sample, replace(meta, others=others)

    def __getitems__(self, keys: list[SampleKey]) -> list | NativeBatch:
        """What belongs into a batch: samples with their metas, an error, or the batch itself.

        Decoding a picture pushes all else out of the CPU's caches. Where pictures are kept as they
        are, all are decoded first, into the memory of the batch, and what follows runs in half the
        time.
        """
        if self.augment is not None or not self.transform.on_device:
            return [self[key] for key in keys]
        try:
            samples, pictures = self._decoded(keys)
        except UserError:
            return [self[key] for key in keys]
        items = [self.transform(*pair) for pair in zip(samples, keys, strict=True)]
        return collate_native(items, None if self.transform.changes_pixels else pictures)

    def _decoded(self, keys: list[SampleKey]) -> tuple[list[Sample], Tensor | None]:
        """Samples, and the memory in which their pictures lie, one behind the other; None where
        sizes are not known before, or nothing decodes into memory that is given."""
        if self.reduced_decoding or not hasattr(self.dataset, "read"):
            return [self._sample(key) for key in keys], None
        indices = [key.index for key in keys]
        sizes = [(height, width, 3) for height, width in self.dataset.sizes[indices].tolist()]
        ends = np.cumsum([math.prod(size) for size in sizes])
        pictures = room(int(ends[-1]))
        parts = np.split(pictures.numpy(), ends[:-1])
        places = [part.reshape(size) for part, size in zip(parts, sizes, strict=True)]
        pairs = zip(indices, places, strict=True)
        images = [self.dataset.picture(index, out=place) for index, place in pairs]
        return list(map(self.dataset.sample, indices, images)), pictures

    def _sample(self, key: SampleKey) -> Sample:
        """As the data set has it."""
        if hasattr(self.dataset, "read"):  # a `DetectionDataset`
            return self.dataset.read(key.index, self._shrink(key))
        return self.dataset[key.index]

    def _shrink(self, key: SampleKey) -> int:
        """How much smaller the picture may be decoded."""
        if not self.reduced_decoding:
            return 1
        size = tuple(self.dataset.sizes[key.index].tolist())
        return shrink_for(size, self.transform.input_size(size, key))


class BatchLoader(DataLoader):
    """Loads batches in `workers` processes that stay alive between epochs, one thread each.

    Each is ready for use after its `to(device)`.

    Args:
        dataset: the samples.
        sampler: lists of keys; kept as `batch_sampler`.
        workers: number of processes, 0 for none.
        new_join: makes what joins the detections of tiles, for one pass; see `detect`.
        pinned: put batches into memory from which a GPU fetches them by itself.

    Attributes:
        watch: is shown each batch, if it is there; see `gfl.data.stand_ins`.

    Raises:
        UserError: on iteration, for a sample that can not be read.
    """

    def __init__(
        self,
        dataset: TransformedDataset,
        sampler: Iterable[list[SampleKey]],
        workers: int,
        new_join: Callable[[], Callable] | None = None,
        pinned: bool = False,
    ):
        self.new_join = new_join
        self.watch: Callable[[Batch | NativeBatch], None] | None = None
        super().__init__(
            dataset,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=_collate_or_error,
            pin_memory=pinned,
            persistent_workers=workers > 0,
            worker_init_fn=_prepare_worker,
            # Samples do not use it; without it each pass would advance the global random state,
            # and a resumed run would differ from one that was not interrupted.
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[Batch | NativeBatch]:
        return map(self._watched, super().__iter__())

    def _watched(self, batch: Batch | NativeBatch | UserError) -> Batch | NativeBatch:
        batch = _raise_error(batch)
        if self.watch is not None:
            self.watch(batch)
        return batch

    def close(self) -> None:
        """End the workers; the next iteration starts new ones."""
        if self._iterator is not None:
            self._iterator._shutdown_workers()
            self._iterator = None

    def load(self, keys: list[SampleKey]) -> Batch | NativeBatch:
        """One batch, made in this process as the workers make theirs."""
        return _raise_error(self.collate_fn(self.dataset.__getitems__(keys)))


def _collate_or_error(items: list | NativeBatch) -> Batch | NativeBatch | UserError:
    if isinstance(items, NativeBatch):
        return items
    errors = [item for item in items if isinstance(item, UserError)]
    if errors:
        return errors[0]
    return (collate_native if isinstance(items[0][0], NativeSample) else collate)(items)


def _raise_error(batch: Batch | NativeBatch | UserError) -> Batch | NativeBatch:
    if isinstance(batch, UserError):
        raise batch
    return batch


def _prepare_worker(_worker: int) -> None:
    """One thread, and no end by a signal that is meant for the training process.

    Ctrl-C and schedulers signal whole groups of processes; the training still needs batches to
    finish its step, and ends its workers itself. One that outlives it ends after GRACE seconds.
    """
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "SIGALRM"):  # not on Windows
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda *_: signal.alarm(signal.alarm(0) or GRACE))
