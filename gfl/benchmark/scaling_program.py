"""The process that `gfl.benchmark.scaling` starts: a training step whenever its turn comes."""

import contextlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from gfl.benchmark.scaling_plan import FLOAT, NORMALISERS
from gfl.benchmark.setting import Setting
from gfl.benchmark.subjects import Training
from gfl.benchmark.traffic import CollectiveTraffic
from gfl.distributed import data_parallel, process_group
from gfl.engine.bad_batch import BadBatches
from gfl.engine.run_log import RunLog
from gfl.engine.stop import StopSignal
from gfl.engine.train import train_one_epoch

# Steps that are counted; the last of them is logged.
COUNTED = 2


class Process:
    """One process of a training: our step, with DDP around the network if there are several.

    Args:
        setting: network, size, images of each process.
        device: of this process.
    """

    def __init__(self, setting: Setting, device: torch.device):
        self.training = Training(setting)
        self.training.network = data_parallel(self.training.state.model, device)
        self.device = device

    def step(self) -> dict:
        """Seconds of a step."""
        return self._timed(self.training.step)

    def apart(self) -> dict:
        """Seconds of a step that exchanges no gradients."""
        with getattr(self.training.network, "no_sync", contextlib.nullcontext)():
            return self._timed(self.training.step)

    def traffic(self) -> dict:
        """Bytes that the training's own loop hands to collectives, and those expected.

        DDP arranges its buckets anew after its first step, which is not counted.
        """
        training = self.training
        for _ in range(2):
            training.step()
        model, criterion, normalize = training.state.model, training.criterion, training.normalize
        with torch.no_grad():
            losses = criterion(model(training.images), training.batch.targets)
        options = replace(training.options, log_steps=COUNTED)
        with CollectiveTraffic() as traffic:
            train_one_epoch(
                training.state,
                training.network,
                [training.batch] * COUNTED,
                criterion,
                normalize,
                options,
                RunLog(None),
                BadBatches(Path("bad_batches"), model, criterion, normalize),
                save=lambda: None,
                stop_due=StopSignal().due,
            )
        trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
        return {
            "bytes": sum(traffic.bytes.values()),
            "calls": dict(traffic.calls),
            "expected": FLOAT * (COUNTED * (trainable + NORMALISERS) + len(losses)),
        }

    def _timed(self, work: Callable[[], object]) -> dict:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return {"seconds": time.perf_counter() - started}

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    """Do what each line of stdin says, one answer a line."""
    options = json.loads(sys.argv[1])
    setting = Setting.from_plain(options)
    torch.set_num_threads(1)
    with process_group(setting.device) as device:
        process = Process(setting, device)
        works = {"step": process.step, "apart": process.apart, "traffic": process.traffic}
        for line in sys.stdin:
            print("gfl-scaling " + json.dumps(works[line.strip()]()), flush=True)


if __name__ == "__main__":
    main()
