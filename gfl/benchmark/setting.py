"""What is measured, at which size; and the machine that it is measured on."""

import datetime
import os
import platform
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

import gfl
from gfl.config import Config, parse_config
from gfl.errors import UserError

NUM_CLASSES = 80
# COCO train2017 has 7.3 objects in an image.
OBJECTS = 7
# The recipe's training at these sizes is what the goals of overhead are stated for.
DEFAULTS = {
    "cpu": {
        "size": (320, 320),
        "batch": 2,
        "precision": "fp32",
        "channels_last": False,
        "repeats": 10,
        "warmup": 2,
    },
    "cuda": {
        "size": (800, 1344),
        "batch": 16,
        "precision": "bf16",
        "channels_last": True,
        "repeats": 30,
        "warmup": 5,
    },
}
BATCHES = {"cpu": (1, 4), "cuda": (1, 8, 32)}


# Longest side of a network input; beyond lies a slip of the keyboard, and no memory holds it.
LARGEST = 16384


@dataclass(frozen=True)
class Setting:
    """One run of the benchmark.

    Attributes:
        device: "cpu" or "cuda".
        size: (h, w) of the network input, multiples of 32.
        batch: images of a training step.
        backbone: as `model.backbone.name`.
        precision: "fp32", "bf16" or "fp16", of ours and of the rivals.
        channels_last: memory layout of weights and images in training, of ours and of the rivals.
        repeats: timed rounds of a step.
        warmup: rounds before those.
        batches: batch sizes of inference.
        pictures: folder of JPEGs for the data pipeline, or None to draw some.
        short_sides: (short, long) bounds that the data pipeline resizes to, pixels.
        num_pictures: how many pictures the data pipeline reads.
        eval_images: images of the evaluation.
        eval_repeats: timed rounds of the evaluation.
        processes: how many are started for each row of `start` and `memory`.
        peer: interpreter of an environment with mmdetection, or None.
        onnx_files: what `onnx` compares.
    """

    device: str = "cpu"
    size: tuple[int, int] = (320, 320)
    batch: int = 2
    backbone: str = "resnet50"
    precision: str = "fp32"
    channels_last: bool = False
    repeats: int = 10
    warmup: int = 2
    batches: tuple[int, ...] = (1, 4)
    pictures: str | None = None
    short_sides: tuple[tuple[int, int], ...] = ((800, 1333), (320, 533))
    num_pictures: int = 32
    eval_images: int = 5000
    eval_repeats: int = 3
    processes: int = 5
    peer: str | None = None
    onnx_files: tuple[str, ...] = ()

    def __post_init__(self):
        if any(not 32 <= side <= LARGEST or side % 32 for side in self.size):
            raise UserError(
                f"--size is {self.size}, expected height and width, multiples of 32 up to "
                f"{LARGEST}."
            )
        for name in ("batch", "repeats", "eval_images"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}: from 1 on.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("--device is cuda, but torch sees no CUDA device: use --device cpu.")
        if self.pictures is not None and not Path(self.pictures).is_dir():
            raise UserError(f"--pictures is {self.pictures}, expected a folder with JPEG files.")

    @staticmethod
    def from_plain(values: dict) -> "Setting":
        """Of `dataclasses.asdict` that went through JSON."""
        return Setting(**{name: _tuples(value) for name, value in values.items()})

    @property
    def is_stated(self) -> bool:
        """Whether goals of overhead were stated for this network, size, batch and precision."""
        stated = DEFAULTS[self.device]
        keys = ("size", "batch", "precision")
        return self.backbone == "resnet50" and all(getattr(self, k) == stated[k] for k in keys)

    @property
    def layout(self) -> torch.memory_format:
        """Of weights and images in training."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def __str__(self) -> str:
        height, width = self.size
        words = [self.backbone, f"{height} x {width}", f"batch {self.batch}", self.precision]
        return ", ".join(words + ["channels last"] * self.channels_last)


def setting(device: str | None = None, **given) -> Setting:
    """The defaults of a device, changed by what is given and not None."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in DEFAULTS:
        raise UserError(f"--device is {device!r}, expected cpu or cuda.")
    values = {**DEFAULTS[device], "batches": BATCHES[device]}
    values |= {name: value for name, value in given.items() if value is not None}
    return Setting(device, **values)


def detector_config(setting: Setting, **train) -> Config:
    """The recipe's network and step: frozen statistics and first stage; weights stay random.

    Args:
        setting: network, batch, precision.
        train: keys of the config's `train` section.
    """
    return parse_config(
        {
            "model": {"backbone": {"name": setting.backbone}},
            # A rate that leaves the random weights, and so the amount of work, as they are.
            "train": {
                "batch_size": setting.batch,
                "lr": 0.00001,
                "precision": setting.precision,
                "channels_last": setting.channels_last,
                **train,
            },
            "device": setting.device,
        }
    )


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def environment(setting: Setting) -> dict:
    """Where and when: plain values."""
    cuda = setting.device == "cuda"
    return {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        **({"GPU": torch.cuda.get_device_name(), **_cuda_versions()} if cuda else {}),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gfl": gfl.__version__,
        **{
            name: metadata.version(name)
            for name in (
                "torch",
                "torchvision",
                "numpy",
                "pycocotools",
                "opencv-python-headless",
                "simplejpeg",
            )
            if _is_installed(name)
        },
    }


def _cuda_versions() -> dict:
    return {"CUDA": torch.version.cuda, "cuDNN": torch.backends.cudnn.version()}


def _is_installed(name: str) -> bool:
    return any(metadata.distributions(name=name))


def _processor() -> str:
    """The processor's name where the system tells it."""
    facts = Path("/proc/cpuinfo")
    if facts.exists():
        for line in facts.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown processor"
