"""gfl: train, evaluate and study Generalized Focal Loss detectors (arXiv 2006.04388).

`import gfl` is cheap: torch and the rest are imported when first needed.
"""

import importlib

from gfl.errors import UserError

__version__ = "0.1.0"
__all__ = [
    "UserError",
    "__version__",
    "evaluate",
    "export",
    "load",
    "read_image",
    "save_picture",
    "train",
]

_LAZY = {
    "evaluate": "gfl.evaluation",
    "export": "gfl.exporting",
    "load": "gfl.predictor",
    "read_image": "gfl.data.image",
    "save_picture": "gfl.drawing",
    "train": "gfl.training",
}
_SUBMODULES = "assigner boxes build config data engine losses models structures".split()


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"gfl.{name}")
    raise AttributeError(f"module 'gfl' has no attribute {name!r}")
