"""torchrun's processes: set-up, rank, and the few collectives that we use."""

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gfl.errors import TrainingFailed, TrainingStopped, UserError

T = TypeVar("T")

# Long enough for one rank to evaluate alone while the others wait, short enough to end a hang. A
# process that ends takes the others with it at once; this is for one that stands still.
TIMEOUT = timedelta(minutes=30)
# Name in the processes' common store of the first failure.
FAILURE = "gfl/failure"
# Whether `alone` is entered.
_is_alone = False


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes, 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() and not _is_alone else 1


def is_main() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def restart_count() -> int:
    """How often torchrun has started this node's processes again (`--max-restarts`)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


@contextmanager
def process_group(device: str | None = None) -> Iterator[torch.device]:
    """Join torchrun's processes if there are any, give this process's device, leave at the end.

    Args:
        device: "cpu", "cuda", "cuda:1", or None for CUDA where there is one.

    Raises:
        TrainingFailed: another process has ended; its error is in the message if it left one.
    """
    local = local_device(device)
    on_gpu = local.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(local)
    if "RANK" not in os.environ or dist.is_initialized():
        yield local
        return
    store, number, count = next(dist.rendezvous("env://", timeout=TIMEOUT))
    store = dist.PrefixStore(_agreed_word(store, number, count), store)
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=TIMEOUT)
    try:
        yield local
    except TrainingStopped:
        dist.destroy_process_group()
        raise
    except Exception as error:
        first = _first_failure(error)
        # NCCL would wait here for the others, who may be waiting for us: there, exiting ends it.
        if not on_gpu:
            dist.destroy_process_group()
        if first is not None:
            raise TrainingFailed(first) from error
        raise
    dist.destroy_process_group()


def _agreed_word(store: dist.Store, number: int, count: int) -> str:
    """A word that the processes of this start alone share, to begin the names of their keys with.

    torchrun keeps its store when it starts its processes again: what those before have written
    (addresses of gloo, a signal, a failure) must not be read. Its restart count will not do as a
    word: each node counts the failures of its own processes only.

    Each process writes a word of its own and waits for an answer to it. The first answers what it
    reads, which may be the word of a process that has ended, until each has confirmed its own.

    Args:
        store: torchrun's.
        number: of this process.
        count: of processes.
    """
    own = uuid.uuid4().hex
    if number:
        store.set(f"gfl/hello/{number}", own)
        agreed = store.get(f"gfl/answer/{own}").decode()  # waits for it
        store.set(f"gfl/confirmed/{agreed}/{number}", "")
        return agreed
    waiting, deadline = set(range(1, count)), time.monotonic() + TIMEOUT.total_seconds()
    while waiting:
        for other in [n for n in waiting if store.check([f"gfl/hello/{n}"])]:
            store.set(f"gfl/answer/{store.get(f'gfl/hello/{other}').decode()}", own)
        waiting = {n for n in waiting if not store.check([f"gfl/confirmed/{own}/{n}"])}
        if time.monotonic() > deadline:
            raise TrainingFailed(f"no word from ranks {sorted(waiting)} in {TIMEOUT}.")
        time.sleep(0.02 if waiting else 0)
    return own


def shared_store() -> dist.Store | None:
    """The key-value store that torchrun's processes share, None without torchrun."""
    return dist.distributed_c10d._get_default_store() if dist.is_initialized() else None


def _first_failure(error: Exception) -> str | None:
    """Leave word for the other processes; give the word that another has left.

    Args:
        error: what ends this process.

    Returns:
        A message if `error` is only the echo of another process's end.
    """
    text = str(error)
    is_echo = isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and "gloo" in text.lower()
    )
    try:
        if not is_echo:
            word = f"rank {rank()}: {type(error).__name__}: {text}"
            shared_store().compare_set(FAILURE, "", word)
            return None
        if shared_store().check([FAILURE]):
            return f"stopped because of {shared_store().get(FAILURE).decode()}"
    except RuntimeError:  # the store went down with its process
        pass
    first_line = text.splitlines()[0] if text else type(error).__name__
    return f"another process is gone (killed, or out of memory?): {first_line}" if is_echo else None


def local_device(device: str | torch.device | None) -> torch.device:
    """This process's device: torchrun's processes take one GPU each."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    device = str(device) if isinstance(device, torch.device) else device
    if device == "cpu" or (device is None and gpus == 0):
        return torch.device("cpu")
    if device is not None and not re.fullmatch(r"cuda(:\d+)?", device):
        raise UserError(f"device is {device!r}, expected cpu, cuda or cuda:N.")
    number = int(os.environ.get("LOCAL_RANK", torch.device(device or "cuda").index or 0))
    if number >= gpus:
        raise UserError(
            f"device {device or 'cuda'} asks for GPU {number}, but {gpus} can be used here: start "
            "fewer processes, or set device=cpu."
        )
    return torch.device("cuda", number)


def data_parallel(model: nn.Module, device: torch.device) -> nn.Module:
    """DDP around a model, which averages gradients over the processes; without others, the model.

    Buffers are not sent before each forward, as torch would: frozen statistics are the same
    everywhere, learned ones are taken from the first process before an evaluation.
    """
    if world_size() == 1:
        return model
    ids = [device.index] if device.type == "cuda" else None
    network = DistributedDataParallel(model, device_ids=ids)
    network.broadcast_buffers = False  # as an argument, new versions of torch warn of it
    return network


@contextmanager
def alone() -> Iterator[None]:
    """Inside, `world_size` is 1 and `sum_over_ranks` gives what it gets: a computation that other
    processes take no part in."""
    global _is_alone
    _is_alone = True
    try:
        yield
    finally:
        _is_alone = False


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a tensor over the processes, on its device; the tensor itself without torchrun."""
    if _is_alone or not dist.is_initialized():
        return value
    total = value.detach().clone()
    dist.all_reduce(total)
    return total


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process rank 0's buffers: without SyncBN each has seen its own images only."""
    if dist.is_initialized():
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def gather_objects(value: object) -> list:
    """Every rank's value, in order of rank, on every rank."""
    if not dist.is_initialized():
        return [value]
    gathered = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: object) -> object:
    """Rank 0's value on every rank."""
    if not dist.is_initialized():
        return value
    holder = [value]
    dist.broadcast_object_list(holder, src=0)
    return holder[0]


def done_by_main(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, which alone does it, on every process.

    Raises:
        UserError: what the first process's work raised, on every process alike.
    """
    given = problem = None
    if is_main():
        try:
            given = work()
        except UserError as error:
            problem = str(error)
    given, problem = broadcast_object((given, problem))
    if problem:
        raise UserError(problem)
    return given
