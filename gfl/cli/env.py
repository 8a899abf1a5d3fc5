"""What this machine has: versions, GPUs, shared memory, optional packages. For bug reports."""

import argparse
import importlib.metadata
import os
import platform
import sys

import gfl
from gfl.cli.command import require_folder, run, write_json

REQUIRED = (
    "torch",
    "torchvision",
    "numpy",
    "pycocotools",
    "albumentations",
    "opencv-python-headless",
    "simplejpeg",
    "pydantic",
    "tensorboard",
)
# Distribution to what it is for.
OPTIONAL = {
    "timm": "timm backbones; pip install 'gfl-detection[timm]'",
    "onnx": "export; pip install 'gfl-detection[onnx]'",
    "onnxscript": "export; pip install 'gfl-detection[onnx]'",
    "onnxruntime": "checking an export; pip install 'gfl-detection[onnx]'",
    "supervision": "Detections.to_supervision(); pip install 'gfl-detection[supervision]'",
}


def main(argv: list[str] | None = None) -> int:
    """`env [--json FILE]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="env", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write it as JSON")
    args = parser.parse_args(argv)
    return run(lambda: show(args))


def show(args: argparse.Namespace) -> None:
    """Collect and print."""
    require_folder(args.json)
    found = environment()
    for name, value in found.items():
        if isinstance(value, dict):
            for part, text in value.items():
                print(f"{part:24s}{text}")
        else:
            print(f"{name:24s}{', '.join(value) if isinstance(value, list) else value}")
    write_json(args.json, found)


def environment() -> dict:
    """Plain values that describe where gfl runs. Nothing is fetched, installed or changed."""
    import torch

    from gfl.data.shared_memory import free_bytes

    gpus = [
        f"{(gpu := torch.cuda.get_device_properties(i)).name} "
        f"({gpu.total_memory / 2**30:.0f} GiB, capability {gpu.major}.{gpu.minor})"
        for i in range(torch.cuda.device_count())
    ]
    free = free_bytes()
    return {
        "gfl": gfl.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": f"{os.cpu_count()}, torch uses {torch.get_num_threads()}",
        "required": {name: _version(name) or "NOT INSTALLED" for name in REQUIRED},
        "cuda": f"built for {torch.version.cuda}, "
        + ("available" if torch.cuda.is_available() else "not available"),
        "cudnn": str(torch.backends.cudnn.version() or "none"),
        "gpus": gpus or ["none"],
        "/dev/shm": "none" if free is None else f"{free / 2**20:.0f} MiB free",
        "optional": {
            name: _version(name) or f"not installed ({use})" for name, use in OPTIONAL.items()
        },
    }


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
