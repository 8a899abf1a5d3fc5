"""ONNX files of anybody in onnxruntime, one picture at a time, side by side."""

from pathlib import Path

import numpy as np

from gfl.benchmark.record import Record, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.timing import interleaved
from gfl.errors import UserError
from gfl.interop.onnx_network import open_session

FIGURE = "onnx"
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}


def onnx_latency(setting: Setting) -> list[Record]:
    """Milliseconds of one picture of the setting's size on the CPU; each beside the first file.

    Raises:
        UserError: no file, a file that onnxruntime can not run, or one of another picture size.
    """
    if not setting.onnx_files:
        raise UserError("--only onnx needs files to compare: --onnx FILE.onnx [FILE.onnx ...].")
    works = {str(path): onnx_work(Path(path), setting) for path in setting.onnx_files}
    spreads = interleaved(works, setting.repeats, setting.warmup)
    first, *others = works
    height, width = setting.size
    own = spreads[first].times(1000)
    rows = [record(FIGURE, f"{Path(first).name}, {height} x {width}, batch 1", "ms", own)]
    for path in others:
        name = Path(path).name
        rows.append(record(FIGURE, name, "ms", spreads[path].times(1000), own, Path(first).name))
    return rows


def onnx_work(path: Path, setting: Setting):
    """One call of a file on noise."""
    session = open_session(path, ["CPUExecutionProvider"])
    inputs = {each.name: _content(each, setting.size) for each in session.get_inputs()}
    try:
        session.run(None, inputs)
    except Exception as error:  # onnxruntime's exceptions have no base of their own
        raise UserError(f"onnxruntime can not run {path}: {str(error).splitlines()[0]}") from None
    return lambda: session.run(None, inputs) and None


def _content(given, size: tuple[int, int]) -> np.ndarray:
    """For an input of pictures, noise; for gfl's other input, the picture's size."""
    if given.type == "tensor(int64)":
        return np.array([size])
    fixed = [side for side in given.shape[2:] if isinstance(side, int)]
    if len(given.shape) != 4 or given.type not in TYPES or (fixed and tuple(fixed) != size):
        raise UserError(
            f"the input {given.name} is {given.type} of {given.shape}: expected pictures of "
            f"(1, 3, {size[0]}, {size[1]}); --size states another size."
        )
    return np.random.default_rng(0).integers(0, 256, (1, 3, *size)).astype(TYPES[given.type])
