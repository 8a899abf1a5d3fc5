"""Peak memory of a training step, each network in a process of its own."""

import json
import subprocess
import sys
from dataclasses import asdict

from gfl.benchmark.record import Record, Spread, not_measured, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.start import environment_of_child

FIGURE = "memory"
GOAL = 1.0
RIVAL = "torchvision FCOS"
MIB = 2**20


def memory(setting: Setting) -> list[Record]:
    """MiB that training steps need, ours beside FCOS's.

    On every device the peak of what torch's allocator had given out, which is the same in each
    run. On the CPU also the growth of the process's peak resident size beyond the imports: with
    the buffers of oneDNN, and with what malloc has got back and keeps, which is not.
    """
    if setting.device == "cuda":
        return [_row("allocated", "allocated on the GPU", setting, setting.processes)]
    return [
        _row("allocated", "allocated by torch", setting, 1),
        _row("resident", "resident, above the imports", setting, setting.processes),
    ]


def _row(kind: str, note: str, setting: Setting, processes: int) -> Record:
    peaks: dict[str, list[float]] = {RIVAL: [], "gfl": []}  # without it ours is not started
    for _ in range(processes):
        for name, values in peaks.items():
            found = _peak(name, kind, setting)
            if "missing" in found:
                what = f"peak of a step, {name}, {note}"
                return not_measured(FIGURE, what, found["missing"])
            values.append(found["bytes"] / MIB)
    spreads = {name: Spread.of(values) for name, values in peaks.items()}
    name = f"peak of a training step, {setting}"
    return record(FIGURE, name, "MiB", spreads["gfl"], spreads[RIVAL], RIVAL, GOAL, note=note)


def _peak(name: str, kind: str, setting: Setting) -> dict:
    import torch

    options = {"name": name, "kind": kind, "threads": torch.get_num_threads()}
    options["setting"] = asdict(setting)
    done = subprocess.run(
        [sys.executable, "-m", "gfl.benchmark.memory_program", json.dumps(options)],
        env=environment_of_child(),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"ended with status {done.returncode}"]
        return {"missing": f"its steps failed: {words[-1]}"}
    return json.loads(done.stdout.splitlines()[-1])
