"""The process that `gfl.benchmark.memory` starts: a few steps, then its peak as JSON."""

import json
import re
import sys
from pathlib import Path

import torch

from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import Training, random_batch, rival, rival_step

STEPS = 3
STATUS = Path("/proc/self/status")


def main() -> None:
    """Run the steps that argv[1] describes."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    setting = Setting.from_plain(options["setting"])
    on_cpu = setting.device == "cpu"
    if on_cpu and not STATUS.exists():
        print(json.dumps({"missing": "the resident peak is read from Linux' /proc"}))
        return
    before = start_peak() if on_cpu else 0
    if options["name"] == "gfl":
        work = Training(setting).step
    else:
        model = rival(options["name"], setting, setting.layout)
        if model is None:
            print(json.dumps({"missing": f"torchvision has no {setting.backbone}"}))
            return
        work = rival_step(model, setting, random_batch(setting))
    for _ in range(STEPS):
        work()
    peak = resident("VmHWM") - before if on_cpu else torch.cuda.max_memory_allocated()
    print(json.dumps({"bytes": peak}))


def start_peak() -> int:
    """Forget the peak of the imports, as far as the system lets us; bytes that are resident now."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # the imports' peak then hides a step that needs less
    return resident("VmRSS")


def resident(what: str) -> int:
    """VmRSS, bytes now, or VmHWM, the most so far.

    `getrusage` would not do: Linux hands its peak on from the process that started this one.
    """
    return int(re.search(rf"{what}:\s+(\d+) kB", STATUS.read_text()).group(1)) * 1024


if __name__ == "__main__":
    main()
