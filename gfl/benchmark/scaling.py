"""Weak scaling: one process and two, the same images each, and what they exchange."""

import contextlib
import json
import socket
import subprocess
import sys
from dataclasses import asdict

import torch

from gfl.benchmark.record import Record, Spread, not_measured, record
from gfl.benchmark.scaling_program import COUNTED
from gfl.benchmark.setting import Setting
from gfl.benchmark.start import environment_of_child
from gfl.benchmark.timing import interleaved

FIGURE = "scaling"
PROCESSES = 2


def scaling(setting: Setting) -> list[Record]:
    """Milliseconds of a step, alone and in two processes, and the bytes of their collectives.

    Processes have one thread, or one GPU, each, and `setting.batch` images each. All are kept
    and take turns: one alone, two together, two that do not exchange gradients.
    """
    if setting.device == "cuda" and torch.cuda.device_count() < PROCESSES:
        return [not_measured(FIGURE, f"{PROCESSES} processes", "it needs as many GPUs")]
    groups = []
    try:
        for count in (1, PROCESSES):
            groups.append(_Group(setting, count))
        alone, together = groups
        works = {
            "alone": lambda: alone.seconds("step"),
            "together": lambda: together.seconds("step"),
            "apart": lambda: together.seconds("apart"),
        }
        spreads = interleaved(works, setting.repeats, setting.warmup)
        traffic = together.ask("traffic")
    except ProcessEnded as error:
        return [not_measured(FIGURE, f"{PROCESSES} processes", str(error))]
    finally:
        for group in groups:
            group.close()
    milliseconds = {name: spread.times(1000) for name, spread in spreads.items()}
    step, one = milliseconds["together"], milliseconds["alone"]
    apart = milliseconds["apart"]
    calls = ", ".join(f"{count} x {name}" for name, count in traffic[0]["calls"].items())
    return [
        record(FIGURE, f"gfl step, {setting}, 1 process", "ms", one),
        record(FIGURE, f"{PROCESSES} processes, as many images each", "ms", step, one, "1 process"),
        record(
            FIGURE,
            f"{PROCESSES} processes",
            "ms",
            step,
            apart,
            "gradients not exchanged",
            note="above 1: communication that is not hidden",
        ),
        record(
            FIGURE,
            f"bytes to collectives in {COUNTED} steps, one of them logged",
            "B",
            Spread.of([answer["bytes"] for answer in traffic]),
            traffic[0]["expected"],
            "4 x (trainable parameters + 2) a step, 4 x losses",
            note=calls,
        ),
    ]


class ProcessEnded(RuntimeError):
    """One of those that train together has ended; it said why on stderr."""


class _Group:
    """Processes that train together and wait for their turn.

    Args:
        setting: of each.
        count: how many; one alone knows of no others.
    """

    def __init__(self, setting: Setting, count: int):
        self._processes: list[subprocess.Popen] = []
        command = [sys.executable, "-m", "gfl.benchmark.scaling_program"]
        command.append(json.dumps(asdict(setting)))
        for environment in _environments(count):
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )

    def ask(self, what: str) -> list[dict]:
        """Tell all to do something; their answers, in order of rank."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # it has ended: `_answer` says how
                process.stdin.write(what + "\n")
                process.stdin.flush()
        return [self._answer(process) for process in self._processes]

    def seconds(self, what: str) -> float:
        """As the slowest of them says."""
        return max(answer["seconds"] for answer in self.ask(what))

    def close(self) -> None:
        """End them; one that waits for another that is gone would wait for long."""
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        for process in self._processes:
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            process.stdout.close()

    @staticmethod
    def _answer(process: subprocess.Popen) -> dict:
        for line in process.stdout:
            if line.startswith("gfl-scaling "):
                return json.loads(line.removeprefix("gfl-scaling "))
        raise ProcessEnded(f"a process of the figure ended with status {process.wait()}")


def _environments(count: int) -> list[dict[str, str]]:
    """What torchrun would set for processes of one machine; nothing for one alone."""
    own = {**environment_of_child(), "OMP_NUM_THREADS": "1"}
    base = {name: value for name, value in own.items() if name not in ("RANK", "LOCAL_RANK")}
    if count == 1:
        return [base]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    base |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**base, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
