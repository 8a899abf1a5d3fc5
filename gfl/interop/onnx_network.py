"""Running ONNX files in onnxruntime."""

import importlib
import json
import os
from pathlib import Path

import torch
from torch import Tensor

from gfl.errors import UserError
from gfl.interop.exported import INPUTS


def require(*modules: str) -> None:
    """Import what ONNX needs.

    Raises:
        UserError: it is not installed.
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(
                f"{module} is not installed ({error}): pip install 'gfl-detection[onnx]'."
            ) from None


def open_session(path: str | Path, providers: list[str]):
    """An onnxruntime session with as many threads as torch has.

    Raises:
        UserError: onnxruntime is missing, or can not run the file.
    """
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Its threads would otherwise look for more work for a while, on cores that others need.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise UserError(f"onnxruntime can not run {path}: {_first_line(error)}") from None


class OnnxNetwork:
    """An ONNX file in onnxruntime.

    Args:
        path: a file that gfl has exported.
        device: "cpu" or "cuda"; default: the GPU where this onnxruntime has one.

    Attributes:
        device: where it computes.
        metadata: the file's, JSON read.

    Raises:
        UserError: onnxruntime is missing, the file is missing, damaged or not of gfl, or this
            onnxruntime can not run it (there).
    """

    def __init__(self, path: str | Path, device: str | None = None):
        require("onnxruntime")
        import onnxruntime

        if not os.path.isfile(path):
            raise UserError(f"{path} does not exist: expected an .onnx file of tools/export.py.")
        has_gpu = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
        if device not in (None, "cpu", "cuda") or (device == "cuda" and not has_gpu):
            raise UserError(
                f"device is {device!r}, but this onnxruntime "
                + ("runs on cpu and cuda." if has_gpu else "runs on cpu: install onnxruntime-gpu.")
            )
        gpu = ["CUDAExecutionProvider"] if has_gpu and device != "cpu" else []
        self.session = open_session(path, [*gpu, "CPUExecutionProvider"])
        has_gpu = "CUDAExecutionProvider" in self.session.get_providers()
        if device == "cuda" and not has_gpu:
            raise UserError(
                f"device is cuda, but onnxruntime could not start there for {path}: its CUDA and "
                "cuDNN must be of the versions that onnxruntime-gpu names. device=cpu works."
            )
        self.device = "cuda" if has_gpu else "cpu"
        texts = self.session.get_modelmeta().custom_metadata_map
        if "gfl_version" not in texts:
            raise UserError(f"{path} was not exported by gfl: it has no metadata of ours.")
        self.metadata = {key: _read(text) for key, text in texts.items()}
        self.output_names = [output.name for output in self.session.get_outputs()]

    def __call__(self, images: Tensor, input_sizes: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) RGB in 0..255 and (B, 2) sizes to the form's outputs, on the CPU."""
        arrays = images.float().cpu().numpy(), input_sizes.cpu().numpy()
        outputs = self.session.run(self.output_names, dict(zip(INPUTS, arrays, strict=True)))
        return {
            name: torch.from_numpy(value)
            for name, value in zip(self.output_names, outputs, strict=True)
        }


def _read(text: str):
    try:
        return json.loads(text)
    except ValueError:
        return text


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
