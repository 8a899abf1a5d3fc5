"""The light family: one picture through each network, in PyTorch and in onnxruntime."""

import tempfile
from functools import partial
from pathlib import Path

import torch

from gfl import build
from gfl.benchmark.onnx_latency import onnx_work
from gfl.benchmark.record import Record, record
from gfl.benchmark.setting import NUM_CLASSES, Setting
from gfl.benchmark.subjects import LAYOUT, half
from gfl.benchmark.timing import interleaved
from gfl.config import load_config
from gfl.exporting import export_program
from gfl.interop.export_metadata import output_shapes
from gfl.interop.onnx_file import write_onnx
from gfl.predictor import Detector

FIGURE = "light"
CONFIGS = ("gfl_n", "gfl_s", "gfl_m", "gfl_l")
FORM = "decoded"


def light_family(setting: Setting) -> list[Record]:
    """Milliseconds of one picture of the setting's size, each beside the smallest network.

    In PyTorch it is the network alone, as `gfl.load` makes it; in onnxruntime, on the CPU, the file
    of the form `decoded` (with normalisation and boxes). Weights are random.
    """
    images = torch.zeros(1, 3, *setting.size, device=setting.device)
    images = images.contiguous(memory_format=LAYOUT)
    works, millions = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in CONFIGS:
            detector, millions[name] = _detector(name, setting, setting.device)
            works[name] = partial(_forward, setting, detector, images)
            path = Path(folder) / f"{name}.onnx"
            _write(path, name, setting)
            works[path.name] = onnx_work(path, setting)
        spreads = interleaved(works, setting.repeats, setting.warmup, setting.device)
    height, width = setting.size
    rows = []
    for ending, where in (("", setting.device), (".onnx", "onnxruntime")):
        least = CONFIGS[0] + ending
        for name in CONFIGS:
            text = f"{name}{ending}, {height} x {width}, batch 1, {where}"
            beside = () if name == CONFIGS[0] else (spreads[least].times(1000), least)
            spread = spreads[name + ending].times(1000)
            note = f"{millions[name]:.2f} million parameters, {NUM_CLASSES} classes"
            rows.append(record(FIGURE, text, "ms", spread, *beside, note=note))
    return rows


def _detector(name: str, setting: Setting, device: str) -> tuple[Detector, float]:
    """One of the family, and its millions of parameters before norms are folded."""
    height, width = setting.size
    size = {"short": min(height, width), "long": max(height, width)}
    config = load_config(
        name, [f"model.num_classes={NUM_CLASSES}", "model.reg_max=16", f"data.test_size={size}"]
    )
    torch.manual_seed(0)
    model = build.build_model(config, load_pretrained=False)
    count = sum(parameter.numel() for parameter in model.parameters())
    names = tuple(str(number) for number in range(NUM_CLASSES))
    return Detector(model, config, names, tuple(range(NUM_CLASSES)), device), count / 1e6


@torch.inference_mode()
def _forward(setting: Setting, detector: Detector, images: torch.Tensor) -> None:
    with half(setting):
        detector.model(images)


def _write(path: Path, name: str, setting: Setting) -> None:
    """An ONNX file of the same network."""
    detector, _ = _detector(name, setting, "cpu")
    program = export_program(detector, FORM, False)
    write_onnx(program, path, output_shapes(detector, FORM), {})
