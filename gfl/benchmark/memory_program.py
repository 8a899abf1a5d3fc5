"""The process that `gfl.benchmark.memory` starts: a few steps, then its peak as JSON."""

import json
import sys

import torch

from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import Training, random_batch, rival, rival_step

STEPS = 3


def main() -> None:
    """Run the steps that argv[1] describes."""
    options = json.loads(sys.argv[1])
    torch.set_num_threads(options["threads"])
    setting = Setting(**{k: _tuples(v) for k, v in options["setting"].items()})
    if setting.device == "cpu" and not hasattr(sys, "getwindowsversion"):
        import resource
    elif setting.device == "cpu":
        print(json.dumps({"missing": "no resident peak on this system"}))
        return
    before = 0 if setting.device == "cuda" else _resident_peak(resource)
    if options["name"] == "gfl":
        work = Training(setting).step
    else:
        model = rival(options["name"], setting)
        if model is None:
            print(json.dumps({"missing": f"torchvision has no {setting.backbone}"}))
            return
        work = rival_step(model, setting, random_batch(setting))
    for _ in range(STEPS):
        work()
    if setting.device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = _resident_peak(resource) - before
    print(json.dumps({"bytes": peak}))


def _resident_peak(resource) -> int:
    """Bytes: Linux counts in KiB, macOS in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


if __name__ == "__main__":
    main()
