"""Options of step and forward that are off by default: each beside the same without it."""

from functools import partial

import torch

from gfl.benchmark.record import Record, not_measured, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import LAYOUT, Training, half, our_detector, random_batch
from gfl.benchmark.timing import interleaved
from gfl.engine.compiled import require_compiler
from gfl.errors import UserError
from gfl.predictor import Detector

FIGURE = "options"
COMPILED_STEP = {"train.compile=true": {"compile": True}}
STEPS = {"train.checkpoint_activations=true": {"checkpoint_activations": True}}
# What `gfl.load` takes as `compile`.
FORWARDS = {"compile=True": True, 'compile="fixed"': "fixed"}


def step_and_forward_options(setting: Setting) -> list[Record]:
    """Milliseconds of the training step and of the network, with and without each option.

    What is compiled was called before, so that no program is made while time is taken.
    """
    steps, forwards, rows = COMPILED_STEP | STEPS, FORWARDS, []
    try:
        require_compiler(torch.device(setting.device), "the figure compiles", "it is left out")
    except UserError as error:
        rows = [not_measured(FIGURE, name, str(error)) for name in (*COMPILED_STEP, *FORWARDS)]
        steps, forwards = STEPS, {}
    works = {name: Training(setting, **train).step for name, train in steps.items()}
    rows = _rows(setting, f"gfl step, {setting}", Training(setting).step, works) + rows
    for count in setting.batches if forwards else ():
        detector, batch = our_detector(setting), random_batch(setting, count)
        images = detector.normalize(batch.images, batch.input_sizes)
        images = images.contiguous(memory_format=LAYOUT)
        plain = partial(_forward, setting, detector, images)
        works = {
            name: partial(_forward, setting, our_detector(setting, compile), images)
            for name, compile in forwards.items()
        }
        height, width = setting.size
        where = f"{setting.backbone}, {height} x {width}, batch {count}, {setting.precision}"
        rows += _rows(setting, f"gfl forward, {where}", plain, works)
    return rows


def _rows(setting: Setting, name: str, plain, works: dict) -> list[Record]:
    for work in works.values():
        work()
    spreads = interleaved({"": plain, **works}, setting.repeats, setting.warmup, setting.device)
    without = spreads.pop("").times(1000)
    rows = [record(FIGURE, name, "ms", without)]
    for option, spread in spreads.items():
        text = f"{name.partition(',')[0]}, {option}"
        rows.append(record(FIGURE, text, "ms", spread.times(1000), without, "without"))
    return rows


@torch.inference_mode()
def _forward(setting: Setting, detector: Detector, images: torch.Tensor) -> None:
    with half(setting):
        detector.model(images)
