"""The data pipeline of one worker beside decoding alone."""

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import torch

from gfl import build
from gfl.benchmark.record import Record, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.timing import interleaved
from gfl.config import parse_config
from gfl.data.dataset import CocoDataset
from gfl.data.freed_memory import keep_freed_memory
from gfl.data.image import read_image
from gfl.data.image_facts import inspect_images
from gfl.data.transforms import resized_size
from gfl.errors import UserError

FIGURE = "data"
GOAL = 0.8
JPEG = (".jpg", ".jpeg")
# Of drawn pictures, as most of COCO's are.
SIZE = (480, 640)
QUALITY = 92
OBJECTS = 7
# The recipes' batch, all of it on one GPU.
BATCH = 16


def data_pipeline(setting: Setting) -> list[Record]:
    """Images per second of one core: read, decode, transform, collate; and decoding alone.

    The pipeline is the training loader's own, run in this process on one thread as each of its
    workers does. Decoding is `cv2.imdecode` of the same files, held in memory; resizing is
    `cv2.resize` of what it gives, the least that a pipeline to that size can do. What
    `data.resize_on_device` leaves to the device is a row of its own.
    """
    with tempfile.TemporaryDirectory() as folder, one_thread():
        paths = _pictures(setting, Path(folder))
        contents = [np.fromfile(path, np.uint8) for path in paths]
        listing = _listing(Path(folder), paths)
        # What is remembered of image files stays in the folder that goes.
        dataset = CocoDataset(
            [(paths[0].parent, listing)],
            inspect=lambda files: inspect_images(files, Path(folder) / "cache"),
        )
        rows = []
        for short, long in setting.short_sides:
            rows += _beside_decoding(setting, dataset, contents, short, long)
        return rows


CACHED = "pipeline, cache=ram, filled,"
ON_DEVICE = "pipeline of a GPU training, its part in the loading process,"
# What each row sets: on a CPU the first is the default, on a GPU the second.
WAYS = {
    "pipeline of a CPU training": {"resize_on_device": False},
    ON_DEVICE: {"resize_on_device": True},
    CACHED: {"resize_on_device": False, "cache": "ram"},
}


def _beside_decoding(
    setting: Setting, dataset, contents: list, short: int, long: int
) -> list[Record]:
    loaders = {name: _loader(dataset, short, long, data) for name, data in WAYS.items()}
    batches = list(loaders[ON_DEVICE].batch_sampler)
    count = sum(len(keys) for keys in batches)

    def load(loader) -> None:
        for keys in batches:
            loader.load(keys)

    def decode() -> None:
        for keys in batches:
            for key in keys:
                cv2.imdecode(contents[key.index], cv2.IMREAD_COLOR)

    def decode_and_resize() -> None:
        for keys in batches:
            for key in keys:
                picture = cv2.imdecode(contents[key.index], cv2.IMREAD_COLOR)
                height, width = resized_size(picture.shape[:2], short, long)
                cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)

    works = {"decode": decode, "resize": decode_and_resize}
    works |= {name: functools.partial(load, loader) for name, loader in loaders.items()}
    load(loaders[CACHED])
    seconds = interleaved(works, setting.repeats, setting.warmup)
    rates = {name: spread.per(count) for name, spread in seconds.items()}
    height, width = dataset.sizes.mean(0).round().astype(int)
    note = f"{len(dataset)} JPEGs of {height} x {width} on average"
    size = f"{short} x {long}"
    limit = (rates["decode"], "decoding alone, OpenCV")
    rows = [
        record(
            FIGURE,
            f"{name} to {size}, one core",
            "images/s",
            rates[name],
            *limit,
            GOAL,
            at_most=False,
            note=note,
        )
        for name in WAYS
    ]
    alone = f"decoding and resizing alone to {size}, one core"
    rows.append(record(FIGURE, alone, "images/s", rates["resize"], *limit))
    return [*rows, _on_device(setting, loaders[ON_DEVICE], batches, size)]


def _on_device(setting: Setting, loader, batches: list, size: str) -> Record:
    """What is left to the device: moving pictures there and resizing them, by itself."""
    native = [loader.load(keys) for keys in batches]
    if setting.device == "cuda":
        native = [batch.pin_memory() for batch in native]

    def resize() -> None:
        for batch in native:
            batch.to(setting.device, non_blocking=True)

    spread = interleaved({"it": resize}, setting.repeats, setting.warmup, setting.device)["it"]
    count = sum(len(keys) for keys in batches)
    name = f"resizing alone on the device ({setting.device}) to {size}"
    return record(FIGURE, name, "ms/image", spread.times(1000 / count))


def _loader(dataset, short: int, long: int, data: dict):
    """The training loader, in this process."""
    size = {"train_size": {"short": short, "long": long}, "workers": 0}
    train = {"batch_size": min(BATCH, len(dataset))}
    return build.build_train_loader(parse_config({"data": size | data, "train": train}), dataset)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """As in a loader's worker: one thread for torch and OpenCV; freed memory is kept (for good)."""
    keep_freed_memory()
    threads, cv2_threads = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)


def _pictures(setting: Setting, folder: Path) -> list[Path]:
    """Those of a folder, or drawn ones: smooth shapes with some noise, as photographs have."""
    if setting.pictures is not None:
        files = sorted(p for p in Path(setting.pictures).iterdir() if p.suffix.lower() in JPEG)
        if not files:
            raise UserError(f"--pictures {setting.pictures} holds no {' or '.join(JPEG)} file.")
        return files[: setting.num_pictures]
    rng = np.random.default_rng(0)
    height, width = SIZE
    paths = []
    for number in range(setting.num_pictures):
        coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
        noise = cv2.GaussianBlur(rng.normal(0, 24, picture.shape), (0, 0), 0.8)
        picture = np.clip(picture + noise, 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:03d}.jpg")
        cv2.imwrite(str(paths[-1]), picture, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return paths


def _listing(folder: Path, paths: list[Path]) -> Path:
    """A COCO json of the pictures with a few random boxes each."""
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number, path in enumerate(paths, start=1):
        height, width = read_image(str(path)).shape[:2]
        images.append({"id": number, "file_name": path.name, "width": width, "height": height})
        for _ in range(OBJECTS):
            w, h = rng.uniform(0.1, 0.5, 2) * (width, height)
            x, y = rng.uniform(0, width - w), rng.uniform(0, height - h)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 1,
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    content = {"images": images, "annotations": annotations}
    content["categories"] = [{"id": 1, "name": "object"}]
    path = folder / "listing.json"
    path.write_text(json.dumps(content))
    return path
