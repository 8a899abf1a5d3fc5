"""torch.compile for the training step: network and criterion as programs of fixed shapes."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from gfl.errors import UserError
from gfl.structures import Predictions

BACKEND = "inductor"
# Programs of one function that torch keeps; its own bound of 8 is below sizes x numbers of objects.
MAX_PROGRAMS = 64


class CompiledNetwork(nn.Module):
    """`network(images)` gives `Predictions`, computed by a compiled program for each shape.

    The model itself stays as it is: whoever holds it saves, averages and evaluates it uncompiled.

    Args:
        model: has `tensors` and `predictions`, as `gfl.models.detector.GFLDetector` does.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.compiled = compiled(model.tensors)

    def forward(self, images: Tensor) -> Predictions:
        return self.model.predictions(*self.compiled(images), images.device)


def compiled(function: Callable, mode: str | None = None) -> Callable:
    """`function`, with a program for each shape of its arguments; `mode` is torch.compile's."""
    torch._dynamo.config.recompile_limit = MAX_PROGRAMS
    return torch.compile(function, dynamic=False, backend=BACKEND, mode=mode)


def require_compiler(
    device: torch.device,
    asked: str = "train.compile is true",
    otherwise: str = "set train.compile=false",
) -> None:
    """Compile a trivial function.

    Args:
        device: where it is to run.
        asked, otherwise: who wants it, and how to do without; for the message.

    Raises:
        UserError: that does not work here, with the compiler's words.
    """
    # Without caches, in which a compiler that is gone would have left its work.
    uncached = torch._inductor.config.patch(force_disable_caches=True)
    with uncached, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            torch.compile(lambda x: x.sin() + 1, backend=BACKEND)(torch.zeros(8, device=device))
        except Exception as error:  # whatever the compiler, or the lack of one, raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            wanted = "Triton" if device.type == "cuda" else "a C++ compiler (apt install g++)"
            raise UserError(
                f"{asked}, but torch.compile does not work here: "
                f"{' '.join(lines[:2])[:300] or type(error).__name__}. It needs {wanted}; without, "
                f"{otherwise}."
            ) from error


class Programs:
    """What computes a training step: network and criterion, compiled or as they are.

    Args:
        model: the network.
        criterion: the losses.
        device: where they compute.
        compile: whether they are compiled, one program for each shape that comes up.

    Attributes:
        network: `network(images)` gives `Predictions`; for DDP to wrap.
        criterion: what `criterion` is.

    Raises:
        UserError: nothing can be compiled here.
    """

    def __init__(self, model: nn.Module, criterion: Callable, device: torch.device, compile: bool):
        self.network, self.criterion, self.compile = model, criterion, compile
        self._told = self._epochs = 0
        if compile:
            require_compiler(device)
            self.network, self.criterion = CompiledNetwork(model), compiled(criterion)
            self._before = _programs()

    def tell(self, say: Callable[[str], None]) -> None:
        """Say how many programs have been made, where there are new ones since the last call."""
        total = _programs() - self._before if self.compile else 0
        new, self._told = total - self._told, total
        if not new:
            return
        self._epochs += 1
        text = f"train.compile: {total} compiled programs, {new} of them new"
        breaks = sum(torch._dynamo.utils.counters["graph_break"].values())
        if breaks:
            text += f"; {breaks} graph breaks (TORCH_LOGS=graph_breaks shows where)"
        if self._epochs > 2:
            text += ". If this goes on, give fewer sizes in data.pad_to (docs/speed.md)"
        say(text)


def _programs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]
