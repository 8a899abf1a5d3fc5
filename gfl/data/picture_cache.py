"""Decoded training pictures, kept for the next epoch: in shared memory, or in one file."""

import hashlib
import os
import shutil
import zlib
from pathlib import Path

import numpy as np
import torch

from gfl.data.main_memory import free_main_memory
from gfl.data.shared_memory import free_bytes
from gfl.errors import UserError

RAM = "ram"
GIB = 2**30


class PictureCache:
    """Pictures at their own size, filled by whoever reads one first, in any process.

    One flat tensor: a checksum of each picture, 0 where it is not there yet, then the pixels. The
    checksum is written after the pixels, and compared when a process first takes a picture out of
    a file; so neither a run that was killed nor a machine that lost power leaves a wrong picture.

    Args:
        sizes: (n, 2) h, w of the pictures.
        place: "ram", or a folder.
        fingerprint: of the pictures; names the file in the folder.
        copies: processes of this machine that each keep a cache of their own in memory.

    Raises:
        UserError: there is no room for all pictures.
    """

    def __init__(self, sizes: np.ndarray, place: str, fingerprint: str, copies: int = 1):
        self.sizes = sizes.astype(np.int64)
        lengths = self.sizes.prod(1) * 3
        self.first = 4 * len(sizes) + np.concatenate(([0], np.cumsum(lengths)))
        self.total = int(self.first[-1])
        self.copies = copies
        self.path = None if place == RAM else Path(place) / f"pictures_{fingerprint}.bin"
        self._checked = np.zeros(len(sizes), bool)
        if self.path is None:
            _require_memory(self.total * copies)
            storage = torch.UntypedStorage._new_shared(self.total)  # zeros, taken as they are used
            self._tensor = torch.empty(0, dtype=torch.uint8).set_(storage)
        else:
            _make_file(self.path, self.total)
            self._tensor = None

    @property
    def description(self) -> str:
        """Where it is and how large, and how much of it is there."""
        there = int(np.count_nonzero(self._parts()[0]))
        what = f"{len(self.sizes)} decoded pictures, {there} of them there"
        size = f"{self.total / GIB:.2f} GiB"
        if self.path is not None:
            return f"data.cache: {self.path} of {size} for {what}"
        each = f" in each of {self.copies} processes" if self.copies > 1 else ""
        return f"data.cache: {size} of shared memory{each} for {what}"

    def get(self, index: int) -> np.ndarray | None:
        """(h, w, 3) uint8 in the cache itself, not to be written to; None if it is not there."""
        checksums, pixels = self._parts()
        if not checksums[index]:
            return None
        picture = self._picture(pixels, index)
        if self.path is not None and not self._checked[index]:
            if _checksum(picture) != checksums[index]:
                return None
            self._checked[index] = True
        return picture

    def put(self, index: int, picture: np.ndarray) -> None:
        """Keep a picture of the size that was stated."""
        checksums, pixels = self._parts()
        self._picture(pixels, index)[...] = picture
        checksums[index] = _checksum(picture)

    def _parts(self) -> tuple[np.ndarray, np.ndarray]:
        """(n,) uint32 checksums and all bytes."""
        if self._tensor is None:
            self._tensor = torch.from_file(
                str(self.path), shared=True, size=self.total, dtype=torch.uint8
            )
        content = self._tensor.numpy()
        return content[: 4 * len(self.sizes)].view(np.uint32), content

    def _picture(self, content: np.ndarray, index: int) -> np.ndarray:
        return content[self.first[index] : self.first[index + 1]].reshape(*self.sizes[index], 3)

    def __getstate__(self) -> dict:
        """For processes that are not forked: each opens the file itself."""
        return {**self.__dict__, **({} if self.path is None else {"_tensor": None})}


class CachedDataset:
    """A `DetectionDataset` whose pictures are decoded once.

    Args:
        dataset: the samples.
        place, copies: see `PictureCache`.
    """

    def __init__(self, dataset, place: str, copies: int = 1):
        self.dataset = dataset
        self.sizes = dataset.sizes
        self.cache = PictureCache(dataset.sizes, place, fingerprint(dataset), copies)

    def __len__(self) -> int:
        return len(self.dataset)

    def mask_of(self, index: int, row: int) -> np.ndarray | None:
        """See `DetectionDataset.mask_of`."""
        return self.dataset.mask_of(index, row)

    def __getitem__(self, index: int):
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        picture = self.cache.get(index)
        if picture is None:
            picture = self.dataset.picture(index)
            self.cache.put(index, picture)
        return self.dataset.sample(index, picture)


def fingerprint(dataset) -> str:
    """Of all image files: path, size of the picture and of the file, time of its last change."""
    digest = hashlib.sha256(np.ascontiguousarray(dataset.sizes, np.int64).tobytes())
    for index in range(len(dataset)):
        path = os.fsencode(dataset.path(index))
        facts = os.stat(path)
        digest.update(path + f"\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]


def _checksum(picture: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(picture)) or 1


def _require_memory(needed: int) -> None:
    free = [size for size in (free_bytes(), free_main_memory()) if size is not None]
    if free and needed > min(free):
        raise UserError(
            f"data.cache=ram needs {needed / GIB:.2f} GiB for the decoded pictures, but "
            f"{min(free) / GIB:.2f} GiB of memory are free (/dev/shm counts): set data.cache to a "
            "folder on a fast disk, or to none."
        )


def _make_file(path: Path, total: int) -> None:
    """Take the room of the whole file: a mapped file that finds none later is a bus error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(path.parent).free
        taken = path.stat().st_blocks * 512 if path.exists() else 0
        if total > free + taken:
            raise UserError(
                f"data.cache={path.parent} needs {total / GIB:.2f} GiB for the decoded pictures, "
                f"but {(free + taken) / GIB:.2f} GiB are free there: name another folder, or set "
                "data.cache=none."
            )
        with path.open("ab") as file:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, total)
            else:
                file.truncate(total)
    except OSError as error:
        raise UserError(
            f"data.cache={path.parent} can not be used: {error.strerror or error}. Name a folder "
            "that can be written to."
        ) from None
