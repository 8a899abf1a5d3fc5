"""Checkpoints as other projects write them, with what they hold beside the weights."""

import sys
import types
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


class _Fake:
    """A class that exists, under a module's name, only while a file is written."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __enter__(self):
        parts = self.module.split(".")
        self.names = [".".join(parts[: i + 1]) for i in range(len(parts))]
        for name in self.names:
            sys.modules[name] = types.ModuleType(name)

        def mean(self):
            return 0.0

        kind = type(self.name, (), {"__module__": self.module, "mean": mean})
        mean.__module__, mean.__qualname__ = self.module, f"{self.name}.mean"
        setattr(sys.modules[self.module], self.name, kind)
        return kind

    def __exit__(self, *_):
        for name in self.names:
            del sys.modules[name]


def write_public_file(
    path: Path,
    state: dict[str, torch.Tensor],
    legacy: bool = False,
    prefix: str = "",
    ema: bool = False,
    history: bool = False,
    optimizer: bool = False,
    numbers: bool = False,
    meta: dict | None = None,
) -> Path:
    """Write `state` the way mmcv and mmengine do.

    Args:
        legacy: torch's serialisation before 1.6 (no zip).
        prefix: such as "module.".
        ema: add mmcv's averages, `ema_backbone_conv1_weight` and so on, and mmengine's dict.
        history: add mmengine's message hub with a HistoryBuffer.
        optimizer: add the state of an SGD with momentum.
        numbers: add numpy scalars and arrays.
        meta: goes into the file's meta.
    """
    tensors = OrderedDict((prefix + name, value) for name, value in state.items())
    content = {"meta": {"epoch": 12, "time": "now", **(meta or {})}, "state_dict": tensors}
    if ema:
        for name, value in state.items():
            tensors[f"{prefix}ema_{name.replace('.', '_')}"] = value + 1
        content["ema_state_dict"] = {"steps": torch.tensor(3), "module.x": torch.zeros(1)}
    if optimizer:
        weight = torch.nn.Parameter(torch.ones(2, 3))
        sgd = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
        weight.sum().backward()
        sgd.step()
        content["optimizer"] = sgd.state_dict()
    if numbers:
        content["meta"]["scores"] = [np.float64(0.402), np.int64(3), np.float32(1.5)]
        content["meta"]["history"] = np.arange(5)
    with _Fake("mmengine.logging.history_buffer", "HistoryBuffer") as kind:
        if history:
            buffer = kind()
            buffer.values = np.arange(4.0)
            buffer.methods = OrderedDict(mean=kind.mean)
            content["message_hub"] = {"log_scalars": OrderedDict(loss=buffer)}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    return path


# Each is a way in which public files were written.
FORMS = {
    "zip": {},
    "legacy": {"legacy": True},
    "module": {"prefix": "module.", "optimizer": True},
    "ema": {"ema": True, "legacy": True},
    "history": {"history": True, "optimizer": True},
    "history_legacy": {"history": True, "numbers": True, "legacy": True},
    "numbers": {"numbers": True, "meta": {"mmdet_version": "3.3.0"}},
}
