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
    """MiB that training steps need beyond the imported packages, ours beside FCOS's.

    On a GPU it is the peak that torch's allocator had given out; on the CPU the growth of the
    process's peak resident size, its buffers of all kinds included.
    """
    peaks: dict[str, list[float]] = {"gfl": [], RIVAL: []}
    for _ in range(setting.processes):
        for name, values in peaks.items():
            found = _peak(name, setting)
            if "missing" in found:
                return [not_measured(FIGURE, f"peak of a step, {name}", found["missing"])]
            values.append(found["bytes"] / MIB)
    spreads = {name: Spread.of(values) for name, values in peaks.items()}
    kind = "allocated on the GPU" if setting.device == "cuda" else "resident, above the imports"
    name = f"peak of a training step, {setting}"
    return [record(FIGURE, name, "MiB", spreads["gfl"], spreads[RIVAL], RIVAL, GOAL, note=kind)]


def _peak(name: str, setting: Setting) -> dict:
    import torch

    options = {"name": name, "threads": torch.get_num_threads(), "setting": asdict(setting)}
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
