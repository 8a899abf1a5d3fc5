"""Trainings in processes of their own, which tests kill, signal or spoil.

The processes are forked from a server that has torch imported already, so that each starts at once.
"""

import io
import multiprocessing
import os
import signal
import socket
import sys
from pathlib import Path

import torch

# Imported by the server, so that its children need not.
import torch.utils.tensorboard  # noqa: F401

import gfl.engine.checkpoint as checkpoint
import gfl.training  # noqa: F401
from gfl.cli import train as command

CONTEXT = multiprocessing.get_context("forkserver")


def start(argv: list, spoil: tuple = (), environment: dict | None = None, log: Path | None = None):
    """Run the command `train` in a new process; stderr goes to `log`.

    Args:
        argv: of the command.
        spoil: name of a function below and its arguments, called before the training.
        environment: variables to set.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    CONTEXT.set_forkserver_preload(["jobs"])
    argv = [str(arg) for arg in argv]
    process = CONTEXT.Process(target=_work, args=(argv, spoil, environment or {}, log))
    process.start()
    return process


def run(argv: list, spoil: tuple = (), environment: dict | None = None, log: Path | None = None):
    """`start` and wait; gives the exit status, -9 after SIGKILL."""
    process = start(argv, spoil, environment, log)
    process.join(120)
    assert process.exitcode is not None, "the training has not ended"
    return process.exitcode


def ranks(count: int) -> list[dict]:
    """The environments of torchrun's processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [{**shared, "RANK": str(i), "LOCAL_RANK": str(i)} for i in range(count)]


def run_on_ranks(argv: list, folder: Path, count: int = 2) -> None:
    """Run one command as torchrun's processes, which all end well; their logs are in `folder`."""
    logs = [folder / f"{rank}.txt" for rank in range(count)]
    processes = [
        start(argv, environment=environment, log=log)
        for environment, log in zip(ranks(count), logs, strict=True)
    ]
    for process, log in zip(processes, logs, strict=True):
        process.join(600)
        assert process.exitcode == 0, log.read_text()


def _work(argv: list[str], spoil: tuple, environment: dict, log: Path | None) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    if log is not None:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 2)
        sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    if spoil:
        name, *values = spoil
        globals()[name](*values)
    sys.exit(command.main(argv))


# What goes wrong --------------------------------------------------------------------------------


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at(number: int, action, count: list) -> None:
    count[0] += 1
    if count[0] == number:
        action()


def killed_before_writing(number: int) -> None:
    """Before a byte of the n-th checkpoint is written."""
    real, count = torch.save, [0]

    def save(content, file):
        _at(number, _die, count)
        real(content, file)

    torch.save = save


def killed_in_the_bytes(number: int) -> None:
    """With half of the n-th checkpoint written."""
    real, count = torch.save, [0]

    def save(content, file):
        whole = io.BytesIO()
        real(content, whole)
        half = whole.getbuffer()[: whole.tell() // 2]

        def write_half():
            file.write(half)
            file.flush()
            _die()

        _at(number, write_half, count)
        file.write(whole.getbuffer())

    torch.save = save


def killed_before_rename(number: int) -> None:
    """With the n-th checkpoint written, but not in place."""
    real, count = os.replace, [0]

    def replace(source, target):
        if str(target).endswith(("last.pt", "best.pt")):
            _at(number, _die, count)
        real(source, target)

    checkpoint.os.replace = replace


def killed_after_rename(number: int) -> None:
    """With the n-th checkpoint just in place."""
    real, count = os.replace, [0]

    def replace(source, target):
        real(source, target)
        if str(target).endswith(("last.pt", "best.pt")):
            _at(number, _die, count)

    checkpoint.os.replace = replace


def disk_full(*numbers: int) -> None:
    """The n-th checkpoints find no room after a few thousand bytes."""
    real, count = torch.save, [0]

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 5000

        def write(self, data):
            self.left -= len(data)
            if self.left < 0:
                raise OSError(28, os.strerror(28))
            return self.file.write(data)

        def flush(self):
            self.file.flush()

    def save(content, file):
        count[0] += 1
        real(content, Full(file) if count[0] in numbers else file)

    torch.save = save


def in_step(number: int, what: str) -> None:
    """After the forward of step n: kill this process, raise in it, or leave it standing still."""
    import gfl.losses.criterion as criterion

    real, count = criterion.GFLCriterion._losses, [0]

    def action():
        if what == "kill":
            _die()
        raise IndexError("a bug of ours")

    def losses(self, *args):
        found = real(self, *args)
        _at(number, action, count)
        return found

    criterion.GFLCriterion._losses = losses


def spoiled_in_step(number: int) -> None:
    """The first image of step n is NaN whenever it is normalised; stderr has its id."""
    import gfl.engine.train as loop
    from gfl.data.batch import Normalize

    real_step, real_normalize, count, spoiled = loop.train_step, Normalize.__call__, [0], []

    def normalize(self, images, sizes):
        bad = [any(torch.equal(image, other) for other in spoiled) for image in images]
        bad = torch.tensor(bad)[:, None, None, None]
        return torch.where(bad, torch.nan, real_normalize(self, images, sizes))

    def step(state, network, batches, *args):
        def spoil():
            spoiled.append(batches[0].images[0])
            print(f"spoilt image {batches[0].metas[0].image_id}.", file=sys.stderr)

        _at(number, spoil, count)
        return real_step(state, network, batches, *args)

    Normalize.__call__, loop.train_step = normalize, step


def slow_steps(seconds: float) -> None:
    """Each step takes that much longer."""
    import time

    import gfl.engine.train as loop

    real = loop.train_step

    def step(*args):
        time.sleep(seconds)
        return real(*args)

    loop.train_step = step


def stuck_at(number: int) -> None:
    """Step n does not end."""
    import time

    import gfl.engine.train as loop

    real, count = loop.train_step, [0]

    def stand_still():
        while True:
            time.sleep(0.1)

    def step(*args):
        _at(number, stand_still, count)
        return real(*args)

    loop.train_step = step


def signalled_in_evaluation() -> None:
    """SIGTERM comes with the first batch of an evaluation."""
    import gfl.postprocess as decoding

    real = decoding.Postprocess.__call__

    def decode(self, *args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args, **options)

    decoding.Postprocess.__call__ = decode
