"""The process that `gfl.benchmark.memory` starts: a few steps, then their peak as JSON."""

import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import Training, random_batch, rival, rival_step

STEPS = 3
STATUS = Path("/proc/self/status")


class Missing(Exception):
    """What can not be measured here; the text says why."""


def main() -> None:
    """Run the steps that argv[1] describes."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    setting = Setting.from_plain(options["setting"])
    peak = resident_peak if options["kind"] == "resident" else allocated_peak
    try:
        print(json.dumps({"bytes": peak(options["name"], setting)}))
    except Missing as why:
        print(json.dumps({"missing": str(why)}))


def resident_peak(name: str, setting: Setting) -> int:
    """Bytes by which the process has grown at most."""
    if not STATUS.exists():
        raise Missing("the resident peak is read from Linux' /proc")
    try:  # forget the peak of the imports
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # where the system does not let us, it hides a step that needs less
    before = resident("VmRSS")
    run(name, setting)
    return resident("VmHWM") - before


def allocated_peak(name: str, setting: Setting) -> int:
    """Most bytes that torch had given out, weights and optimiser included."""
    if setting.device == "cuda":
        run(name, setting)
        return torch.cuda.max_memory_allocated()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run(name, setting)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    return max(e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]")


def run(name: str, setting: Setting) -> None:
    """Build a network and do a few training steps."""
    work = step_of(name, setting)
    for _ in range(STEPS):
        work()


def step_of(name: str, setting: Setting) -> Callable[[], None]:
    """The training step of "gfl" or of a rival."""
    if name == "gfl":
        return Training(setting).step
    model = rival(name, setting, setting.layout)
    if model is None:
        raise Missing(f"torchvision has no {setting.backbone}")
    return rival_step(model, setting, random_batch(setting))


def resident(what: str) -> int:
    """VmRSS, bytes now, or VmHWM, the most so far.

    `getrusage` would not do: Linux hands its peak on from the process that started this one.
    """
    return int(re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text()).group(1)) * 1024


if __name__ == "__main__":
    main()
