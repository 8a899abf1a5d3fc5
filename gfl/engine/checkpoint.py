"""Files that survive: written whole or not at all, read without running code."""

import os
import zipfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from gfl.engine.ema import EMA
from gfl.engine.optim import Schedule
from gfl.errors import UserError
from gfl.files import beside, replacing

# 1: plain dict of model, class_map, config, step, epoch; last.pt adds what resuming needs.
FORMAT_VERSION = 1
# What zipfile raises for bytes that are no archive of ours: damaged or cut off, without our member,
# encrypted, of an unknown compression or version (a RuntimeError or NotImplementedError).
UNREADABLE_ZIP = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    StopIteration,
    ValueError,
    RuntimeError,
)


@dataclass
class TrainState:
    """All that changes while training, and that a resumed training must get back.

    Attributes:
        model: the bare network.
        optimizer, schedule: how it learns.
        scaler: loss scaling of fp16; disabled otherwise.
        ema: averaged weights, or None.
        step: finished optimiser steps.
        evaluated_step: the step after which the last evaluation took place.
        best: {"AP": ..., "epoch": ...} of the best evaluation so far.
        bad_steps: steps in a row whose gradient was not finite.
        precision: {"asked": ..., "used": ...} once `train.precision` has been tried (see
            `gfl/engine/precision.py`).
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    scaler: torch.amp.GradScaler
    ema: EMA | None = None
    step: int = 0
    evaluated_step: int = 0
    best: dict = field(default_factory=dict)
    bad_steps: int = 0
    precision: dict = field(default_factory=dict)

    @property
    def evaluated_model(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one where there is one."""
        return self.ema.model if self.ema else self.model

    @property
    def trained(self) -> list[list[str]]:
        """Names of the parameters in each of the optimiser's groups."""
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        return [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    def state_dict(self) -> dict:
        """Plain values and tensors."""
        return {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict() if self.ema else None,
            "optimizer": self.optimizer.state_dict(),
            "trained": self.trained,
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "device_rng": self._device_rng(),
            "step": self.step,
            "evaluated_step": self.evaluated_step,
            "best": self.best,
            "bad_steps": self.bad_steps,
            "precision": self.precision,
        }

    def _device_rng(self) -> Tensor | None:
        """State of the GPU's random numbers; some backbones drop layers by them."""
        device = next(self.model.parameters()).device
        return torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    def load_state_dict(self, state: dict) -> None:
        """Take back what `state_dict` gave."""
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.model.load_state_dict(state["ema"] or state["model"])
        trained = state.get("trained", self.trained)
        if trained != self.trained:
            raise ValueError(
                "the parameters that train, or the groups of a common learning rate and weight "
                "decay, are others than in the checkpoint"
            )
        # Moments come from the checkpoint, settings such as weight decay from the config; the rate
        # is set by the schedule before each step.
        groups = zip(self.optimizer.param_groups, state["optimizer"]["param_groups"], strict=True)
        settings = [
            {**group, "params": saved["params"], "lr": saved["lr"]} for group, saved in groups
        ]
        self.optimizer.load_state_dict({**state["optimizer"], "param_groups": settings})
        self._lay_out_moments()
        if state["scaler"]:  # empty where the checkpoint was trained without
            self.scaler.load_state_dict(state["scaler"])
        torch.set_rng_state(state["rng"].cpu())
        if self._device_rng() is not None and state.get("device_rng") is not None:
            torch.cuda.set_rng_state(state["device_rng"], next(self.model.parameters()).device)
        self.step, self.evaluated_step = state["step"], state["evaluated_step"]
        self.best, self.bad_steps = state["best"], state["bad_steps"]
        self.precision = state.get("precision", {})

    def _lay_out_moments(self) -> None:
        """Give moments the memory layout of their parameters, which may be another one than in the
        checkpoint (`train.channels_last`): fused optimisers go through both as they lie there."""
        for parameter, moments in self.optimizer.state.items():
            for name, value in moments.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    moments[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class DamagedCheckpoint(UserError):
    """A file that can not be read, or not to its end."""


def write_atomically(path: Path, write, previous: Path | None = None) -> None:
    """Call `write(file)` on a temporary file beside `path`, then put it in place in one move.

    Args:
        path: is the old or the new file at every moment, never a part.
        write: gets a binary file.
        previous: where the old file is kept, if it is to be kept.

    Raises:
        OSError: such as a full disk; the old file is untouched, the temporary one removed.
    """
    try:
        with replacing(path) as temporary:
            with open(temporary, "wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            if previous is not None and path.exists():
                _keep_as(path, previous)
    except RuntimeError as error:
        # torch's writer turns a full disk into a RuntimeError of its own.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _keep_as(path: Path, previous: Path) -> None:
    """Give a file a second name in place of an older one; it keeps its own."""
    link = beside(previous)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: for a moment `previous` alone is there
        os.replace(path, previous)
    else:
        os.replace(link, previous)
        link.unlink(missing_ok=True)  # nothing is moved where both name the same file already


def save_checkpoint(path: Path, content: dict, previous: Path | None = None) -> None:
    """Write a checkpoint whole or not at all; raises OSError as `write_atomically` does.

    Its tensors lie on the CPU, so that the file can be read where there is no GPU.
    """
    content = {"format": "gfl", "version": FORMAT_VERSION, **_on_cpu(content)}
    write_atomically(path, lambda file: torch.save(content, file), previous)


def _on_cpu(content: object) -> object:
    """The same dicts and lists, with tensors moved."""
    if isinstance(content, Tensor):
        return content.detach().cpu()
    if isinstance(content, dict):
        return {key: _on_cpu(value) for key, value in content.items()}
    return [_on_cpu(value) for value in content] if isinstance(content, list) else content


def is_checkpoint(path: str | Path) -> bool:
    """Whether a file begins as ours do, found out without unpickling a stranger's bytes."""
    if not zipfile.is_zipfile(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("/data.pkl"))
            with archive.open(name) as file:
                head = file.read(64)  # {"format": "gfl", ...
    except UNREADABLE_ZIP:
        return False
    return b"format" in head and b"gfl" in head


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of ours on the CPU.

    Raises:
        UserError: missing, or not a checkpoint of gfl.
        DamagedCheckpoint: cut off, changed bytes, or no such file at all.
    """
    path = Path(path)
    if not os.path.isfile(path):
        raise UserError(f"checkpoint {path} does not exist: expected a best.pt or last.pt of gfl.")
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()  # torch itself does not compare the check sums
        if broken:
            raise zipfile.BadZipFile(f"the bytes of {broken} have changed.")
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a file that is something else
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DamagedCheckpoint(
            f"{path} is damaged or no checkpoint: {reason} Expected a best.pt or last.pt of gfl."
        ) from None
    if not isinstance(content, dict) or content.get("format") != "gfl":
        raise UserError(
            f"{path} is not a checkpoint of gfl: expected a best.pt or last.pt that it has written."
        )
    version = content.get("version")
    if not isinstance(version, int):
        raise DamagedCheckpoint(f"{path} is damaged: it has no format version.")
    if version > FORMAT_VERSION:
        raise UserError(
            f"{path} has format version {version}, this gfl reads up to {FORMAT_VERSION}: "
            "update gfl."
        )
    return content


def require_usable(content: dict, path: str | Path) -> dict:
    """Check that a checkpoint holds what using it takes; raises DamagedCheckpoint."""
    class_map = content.get("class_map")
    lists = [class_map.get(key) for key in ("names", "category_ids")] if class_map else [None]
    whole = isinstance(content.get("config"), dict) and isinstance(content.get("model"), dict)
    if not whole or not all(isinstance(v, list) for v in lists) or len(set(map(len, lists))) > 1:
        raise DamagedCheckpoint(f"{path} is damaged: its model, config or classes are not whole.")
    return content
