"""Timing of several things in one process, in turn: A B C, B A C, ..."""

import random
import time
from collections.abc import Callable

import torch

from gfl.benchmark.record import Spread


def interleaved(
    works: dict[str, Callable[[], float | None]],
    repeats: int,
    warmup: int,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Spread]:
    """Seconds of each work, run in turn, so that what slows the machine down slows all of them.

    The order is drawn anew in each round (the same in each run): what one leaves behind, in caches
    and in memory, would else always meet the same other.

    Args:
        works: name to what is timed. One that gives a number has timed itself, in seconds.
        repeats: timed rounds.
        warmup: rounds before those.
        device: of the works; a CUDA device is waited for before and after each.
        clock: gives seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    is_cuda = torch.device(device).type == "cuda"
    draw = random.Random(0)
    for turn in range(warmup + repeats):
        for name, work in draw.sample(list(works.items()), len(works)):
            if is_cuda:
                torch.cuda.synchronize(device)
            started = clock()
            own = work()
            if is_cuda:
                torch.cuda.synchronize(device)
            took = clock() - started if own is None else own
            if turn >= warmup:
                seconds[name].append(took)
    return {name: Spread.of(values) for name, values in seconds.items()}
