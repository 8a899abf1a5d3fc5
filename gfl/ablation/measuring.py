"""Seconds of rows: of a few steps of one, and of all of them in turn. Each runs in a process."""

import itertools
import os
import platform
import sys
import time

import torch

from gfl import build
from gfl.ablation.contestant import Contestant
from gfl.ablation.cost import Measured
from gfl.config import Config, parse_config
from gfl.distributed import process_group
from gfl.errors import UserError
from gfl.sample import drawn_if_missing
from gfl.structures import Batch

# Steps before any is timed: caches, choice of algorithms, memory.
WARM_UP = 2
# Steps and detections that a cost is measured on.
MEASURED_STEPS = 5
# Different batches that take turns, so that no shape or picture decides.
BATCHES = 4


def measure_cost(candidates: list[tuple[str, dict]], started: float) -> Measured:
    """Time a few steps of the first row that can be built.

    Args:
        candidates: name and config values of each row, in order.
        started: `time.time()` when the process was asked for.

    Raises:
        UserError: none can be built; what is wrong with the first.
    """
    first_error = None
    for name, values in candidates:
        try:
            return _measure(name, parse_config(values), started)
        except UserError as error:
            print(f"row {name} can not be measured: {error}", file=sys.stderr)
            first_error = first_error or error
    raise first_error


def _measure(name: str, config: Config, started: float) -> Measured:
    with process_group(config.device) as device:
        loaders = _Loaders(config)
        try:
            contestant = Contestant(config, loaders.num_classes, device)
            warm_up = [contestant.step(group) for group in loaders.train_groups(WARM_UP)]
            ready = time.time()
            # From here on the loading processes are warm: a step is timed with its waiting.
            timed = time.perf_counter()
            for group in loaders.train_groups(MEASURED_STEPS):
                contestant.step(group)
            step_seconds = (time.perf_counter() - timed) / MEASURED_STEPS
            contestant.detect(next(iter(loaders.val)))
            timed, count = time.perf_counter(), 0
            for batch in itertools.islice(loaders.val, MEASURED_STEPS):
                contestant.detect(batch)
                count += 1
            return Measured(
                row=name,
                steps_per_epoch=loaders.train.batch_sampler.steps_per_epoch,
                steps=MEASURED_STEPS,
                step_seconds=step_seconds,
                eval_batches=len(loaders.val),
                eval_batch_seconds=(time.perf_counter() - timed) / count,
                start_seconds=max(0.0, ready - started - sum(warm_up)),
                checkpoint_bytes=contestant.checkpoint_bytes(),
                device=device_name(device),
            )
        finally:
            loaders.close()


def time_rows(contenders: list[tuple[dict, str]], pairs: int) -> dict:
    """Time all rows against each other: every round, each takes a step on the same batch.

    Each round begins with another row. Detections come first, with the weights as they were
    trained; steps are those of the first step of the warm-up, which hardly change them.

    Args:
        contenders: config values of each row, and the last.pt that gives its weights.
        pairs: rounds.

    Returns:
        "training" and "inference": for each row a list of `pairs` seconds; and "device",
        "batch_size" and "eval_batch_size".
    """
    config = parse_config(contenders[0][0])
    with process_group(config.device) as device:
        loaders = _Loaders(config)
        try:
            train = list(loaders.train_groups(BATCHES))
            val = list(itertools.islice(loaders.val, BATCHES))
        finally:
            loaders.close()
        rows = [
            Contestant(parse_config(values), loaders.num_classes, device, checkpoint)
            for values, checkpoint in contenders
        ]
        return {
            "inference": take_turns([row.detect for row in rows], val, pairs),
            "training": take_turns([row.step for row in rows], train, pairs),
            "device": device_name(device),
            "batch_size": config.train.batch_size,
            "eval_batch_size": config.train.eval_batch_size,
        }


def take_turns(works: list, batches: list, pairs: int) -> list[list[float]]:
    """Call each work on the same batch, round after round; seconds of each, (rows, pairs).

    Args:
        works: functions of a batch that give seconds.
        batches: take turns; each is tried once by each work before anything counts.
        pairs: rounds that count.
    """
    for batch in batches:
        for work in works:
            work(batch)
    seconds = [[0.0] * pairs for _ in works]
    for number in range(pairs):
        batch = batches[number % len(batches)]
        for turn in range(len(works)):
            row = (number + turn) % len(works)
            seconds[row][number] = works[row](batch)
    return seconds


def device_name(device: torch.device) -> str:
    """What computes, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads, machine = torch.get_num_threads(), platform.machine()
    return f"CPU ({machine}, {threads} of {os.cpu_count()} threads)"


class _Loaders:
    """Batches of a config's train and val."""

    def __init__(self, config: Config):
        drawn_if_missing(config.data)
        data = build.build_dataset(config, "train")
        val = build.build_dataset(config, "val", tuple(data.class_names))
        self.num_classes = len(data.class_names)
        self.accumulate = config.train.accumulate
        self.train = build.build_train_loader(config, data)
        self.val = build.build_eval_loader(config, val)
        self._epoch, self._batches = 0, iter(())

    def train_groups(self, count: int):
        """The batches of `count` steps, one epoch after another."""
        for _ in range(count):
            yield [self._next() for _ in range(self.accumulate)]

    def _next(self) -> Batch:
        batch = next(self._batches, None)
        if batch is None:
            self.train.batch_sampler.set_position(self._epoch)
            self._epoch += 1
            self._batches = iter(self.train)
            batch = next(self._batches)
        return batch

    def close(self) -> None:
        self.train.close()
        self.val.close()
