"""Small values for tests: targets, grids, predictions, data sets, configs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

from gfl.config import Config, parse_config
from gfl.exporting import drawn_picture
from gfl.grid import make_grid
from gfl.structures import Batch, ImageMeta, Predictions, Targets

STRIDES = (8, 16, 32, 64, 128)


# VmHWM is the largest resident memory of a process alone; ru_maxrss would start at its parent's.
_KNOWN = """
import re, sys
from pathlib import Path

def mebibytes(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
"""


def measured(code: str, *arguments) -> list[float]:
    """The numbers that a program prints in a process of its own.

    It knows `mebibytes("VmRSS")`, its resident memory, and "VmHWM", the largest there was.
    """
    tests = Path(__file__).resolve().parent
    run = subprocess.run(
        [sys.executable, "-c", _KNOWN + code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(tests), str(tests.parent)))},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return [float(number) for number in run.stdout.split()]


def pyramid(height: int, width: int, origin: str = "corner"):
    """The grid of P3 to P7 for a padded image."""
    sizes, size = [], (height // 8, width // 8)
    for _ in STRIDES:
        sizes.append(size)
        size = ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return make_grid(tuple(sizes), STRIDES, origin)


def make_targets(boxes: list, labels: list | None = None, valid=None, size=(320, 320)) -> Targets:
    """Targets of images given as lists of xyxy boxes."""
    count = max((len(image) for image in boxes), default=0)
    padded = torch.zeros(len(boxes), count, 4)
    classes = torch.zeros(len(boxes), count, dtype=torch.int64)
    present = torch.zeros(len(boxes), count, dtype=torch.bool)
    for row, image in enumerate(boxes):
        if len(image):
            padded[row, : len(image)] = torch.as_tensor(np.asarray(image), dtype=torch.float32)
            if labels is not None:
                classes[row, : len(image)] = torch.as_tensor(np.asarray(labels[row]))
            present[row, : len(image)] = True
    valid = torch.tensor([list(size)] * len(boxes) if valid is None else np.asarray(valid).tolist())
    nothing = torch.zeros(len(boxes), 0, 4)
    return Targets(padded, classes, present, valid, nothing, nothing[..., 0].bool())


def random_boxes(count: int, height: int, width: int, seed: int = 0, smallest: float = 8.0):
    """(count, 4) xyxy boxes inside an image."""
    rng = np.random.default_rng(seed)
    sides = rng.uniform(smallest, min(height, width) / 2, (count, 2))
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate((corner, corner + sides), 1).astype(np.float32)


def random_predictions(grid, num_images: int = 2, num_classes: int = 3, reg_max: int = 16):
    """Leaf logits on a grid."""
    count = grid.strides.shape[0]
    cls_logits = torch.randn(num_images, count, num_classes) - 3
    box_logits = torch.randn(num_images, count, 4 * (reg_max + 1))
    return Predictions(cls_logits.requires_grad_(), box_logits.requires_grad_(), grid)


def write_coco(
    folder: Path,
    splits: dict[str, int],
    size=(96, 128),
    categories=((3, "square"), (7, "disc")),
    empty_every: int = 0,
    seed: int = 0,
) -> Path:
    """A COCO folder of noise pictures with bright rectangles, one category id gap included."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    (folder / "annotations").mkdir()
    number = 0
    for split, count in splits.items():
        images, annotations = [], []
        for _ in range(count):
            number += 1
            height, width = size if number % 3 else size[::-1]
            picture = rng.integers(0, 80, (height, width, 3)).astype(np.uint8)
            has_objects = not empty_every or number % empty_every
            for k in range(2 if has_objects else 0):
                w, h = (int(v) for v in rng.integers(24, 48, 2))
                x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
                category = categories[k % len(categories)][0]
                picture[y : y + h, x : x + w] = (250, 40, 40) if k else (40, 250, 40)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": number * 10,
                        "category_id": category,
                        "bbox": [x, y, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                    }
                )
            name = f"{split}_{number}.png"
            cv2.imwrite(str(folder / "images" / name), picture)
            images.append({"id": number * 10, "file_name": name, "width": width, "height": height})
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": i, "name": name} for i, name in categories],
        }
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(content))
    return folder


def write_formats(folder: Path, splits: dict[str, int]) -> dict[str, Path]:
    """The same data as a COCO, a VOC and a YOLO folder, with the ids that the latter two imply."""
    coco = write_coco(folder / "coco", splits, categories=((0, "disc"), (1, "square")))
    voc, yolo = folder / "voc", folder / "yolo"
    for place in (voc / "Annotations", voc / "ImageSets" / "Main", voc / "JPEGImages"):
        place.mkdir(parents=True)
    for split in splits:
        path = coco / "annotations" / f"{split}.json"
        content = json.loads(path.read_text())
        content["images"].sort(key=lambda image: image["file_name"])
        new_id = {image["id"]: number for number, image in enumerate(content["images"], start=1)}
        for image in content["images"]:
            image["id"] = new_id[image["id"]]
        for entry in content["annotations"]:
            entry["image_id"] = new_id[entry["image_id"]]
        path.write_text(json.dumps(content))
        for place in ("images", "labels"):
            (yolo / place / split).mkdir(parents=True)
        for image in content["images"]:
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            _write_voc_and_yolo(coco, voc, yolo, split, image, objects)
        names = [Path(image["file_name"]).stem for image in content["images"]]
        (voc / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
    lines = ["names: [disc, square]", *(f"{split}: images/{split}" for split in splits)]
    (yolo / "data.yaml").write_text("\n".join(lines) + "\n")
    return {"coco": coco, "voc": voc, "yolo": yolo}


def _write_voc_and_yolo(coco: Path, voc: Path, yolo: Path, split: str, image: dict, objects: list):
    name, width, height = image["file_name"], image["width"], image["height"]
    picture = (coco / "images" / name).read_bytes()
    (voc / "JPEGImages" / name).write_bytes(picture)
    (yolo / "images" / split / name).write_bytes(picture)
    elements, rows = [], []
    for entry in objects:
        x, y, w, h = entry["bbox"]
        corners = zip(("xmin", "ymin", "xmax", "ymax"), (x + 1, y + 1, x + w, y + h), strict=True)
        box = "".join(f"<{key}>{value}</{key}>" for key, value in corners)
        label = ("disc", "square")[entry["category_id"]]
        elements.append(f"<object><name>{label}</name><bndbox>{box}</bndbox></object>")
        numbers = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        rows.append(f"{entry['category_id']} " + " ".join(map(repr, numbers)) + "\n")
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    text = f"<annotation><filename>{name}</filename>{size}{''.join(elements)}</annotation>"
    (voc / "Annotations" / f"{Path(name).stem}.xml").write_text(text)
    (yolo / "labels" / split / f"{Path(name).stem}.txt").write_text("".join(rows))


def tiny_values(folder: Path, **train) -> dict:
    """A config of the smallest model that trains, as plain values."""
    return {
        "data": {
            "path": str(folder),
            "train_size": {"short": 96, "long": 128},
            "test_size": {"short": 96, "long": 128},
            "workers": 0,
        },
        "model": {
            "backbone": {"name": "resnet18_w16", "pretrained": False},
            "neck": {"channels": 32},
            "head": {"channels": 64, "stacked_convs": 1},
            "reg_max": 8,
        },
        "train": {
            "epochs": 2,
            "batch_size": 4,
            "lr": 0.01,
            "lr_batch_size": None,
            "warmup_steps": 2,
            "milestones": [],
            "eval_batch_size": 2,
            "log_steps": 1,
            "checkpoint_steps": 2,
            **train,
        },
        "device": "cpu",
    }


# What a config with auto gets where there is no data to choose from.
CHOSEN = {
    "data.format": "coco",
    "data.val_fraction": None,
    "data.train_size": {"short": 320, "long": 320},
    "data.test_size": {"short": 320, "long": 320},
    "model.reg_max": 16,
    "train.batch_size": 4,
    "train.epochs": 24,
    "train.precision": "fp32",
}


def without_auto(config: Config) -> Config:
    """The config with plain values for what says auto."""
    return config.with_values({key: CHOSEN[key] for key in config.auto_keys})


def tiny_config(folder: Path, **train) -> Config:
    """The config of `tiny_values`."""
    return parse_config(tiny_values(folder, **train))


def pictures(folder: Path) -> list[Path]:
    """The .jpg files of the folder that GFL_PICTURES names, at any depth, or drawn ones.

    Those are written to `folder`: photographs' shapes, and sides that are no multiple of anything.
    """
    if given := os.environ.get("GFL_PICTURES"):
        return sorted(Path(given).rglob("*.jpg"))
    files = []
    for number, size in enumerate([(480, 640), (427, 640), (640, 481), (313, 500), (95, 81)]):
        picture = drawn_picture(*size)[:, :: 1 if number % 2 else -1]
        files.append(folder / f"drawn{number}.jpg")
        Image.fromarray(np.ascontiguousarray(picture)).save(files[-1])
    return files


def noise_batch(num_images: int = 4, size: tuple[int, int] = (800, 1344)) -> Batch:
    """Random pictures with 0, 3, 6, ... objects of three classes."""
    boxes = [random_boxes(3 * n, *size, seed=n) for n in range(num_images)]
    targets = make_targets(boxes, [[i % 3 for i in range(len(b))] for b in boxes], size=size)
    images = torch.randint(0, 256, (num_images, 3, *size), dtype=torch.uint8)
    metas = tuple(ImageMeta(i, size, size, (1.0, 1.0)) for i in range(num_images))
    return Batch(images, torch.tensor([size] * num_images), targets, metas)


# Every quality, box and assigner at least once.
MODES = [
    {},
    {"model": {"quality": "distribution_guided"}, "assigner": {"name": "fcos"}},
    {"model": {"quality": "none"}, "assigner": {"name": "retinanet", "anchor_scale": 4.0}},
    {"model": {"quality": "centerness_branch", "box": "gaussian"}, "assigner": {"name": "fcos"}},
    {"model": {"quality": "iou_branch", "bin_width": 0.5}, "assigner": {"name": "retinanet"}},
    {"model": {"quality": "centerness_guided", "box": "dirac"}, "loss": {"dfl_weight": 0}},
    {
        "model": {"quality": "iou_guided", "box": "dirac"},
        "loss": {"dfl_weight": 0},
        "assigner": {"name": "fcos", "ignore_crowd": True},
    },
    {"assigner": {"name": "tal", "soft_label": "aligned"}},
    {"model": {"quality": "iou_branch"}, "assigner": {"name": "simota"}},
]


def name_of(mode: dict) -> str:
    """A name for one of `MODES`."""
    parts = [*mode.get("model", {}).values(), *mode.get("assigner", {}).values()]
    return "-".join(str(part) for part in parts) or "default"
