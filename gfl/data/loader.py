"""Datasets behind PyTorch's DataLoader."""

from collections.abc import Iterable

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from gfl.data.batch import collate
from gfl.data.dataset import Sample
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.structures import ImageMeta


class TransformedDataset(Dataset):
    """A data set seen through a transform; indexed by `SampleKey`.

    Args:
        dataset: anything whose `dataset[i]` is a `Sample`.
        transform: what is done to each.
    """

    def __init__(self, dataset, transform: Transform):
        self.dataset = dataset
        self.transform = transform

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: SampleKey) -> tuple[Sample, ImageMeta]:
        return self.transform(self.dataset[key.index], key)


def make_loader(
    dataset: TransformedDataset, sampler: Iterable[list[SampleKey]], workers: int
) -> DataLoader:
    """Load batches in `workers` processes that stay alive between epochs, one thread each."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=workers > 0,
        worker_init_fn=_one_thread,
        # Samples do not use it; without it each pass would advance the global random state, and
        # a resumed run would differ from one that was not interrupted.
        generator=torch.Generator(),
    )


def _one_thread(_worker: int) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
