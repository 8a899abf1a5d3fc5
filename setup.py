"""Installs `gfl` (distribution gfl-detection). Pure Python: nothing is compiled."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "gfl/__init__.py").read_text()).group(1)

ONNX = ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.5"]

setup(
    name="gfl-detection",
    version=VERSION,
    description="Train, evaluate and study Generalized Focal Loss object detectors",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["gfl", "gfl.*"]), "gfl.configs"],
    package_dir={"gfl.configs": "configs"},
    package_data={
        "gfl": ["py.typed", "html/*.html"],
        "gfl.configs": ["*.yaml", "ablations/*.yaml"],
    },
    install_requires=[
        "torch>=2.11",
        "torchvision>=0.26",
        "numpy",
        "pycocotools>=2.0.7",
        "albumentations>=2.0.8,<2.1",
        "matplotlib",
        "opencv-python-headless",
        "pillow",
        "simplejpeg>=1.8",
        "pydantic>=2.7",
        "tensorboard",
        "pyyaml",
        "tqdm",
    ],
    entry_points={"console_scripts": ["gfl = gfl.cli.main:main"]},
    extras_require={
        "timm": ["timm"],
        "supervision": ["supervision"],
        "onnx": ONNX,
        "dev": ["mypy", "pytest", "pytest-xdist", "ruff", "timm", *ONNX],
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3",
    ],
)
