"""torch.compile for detectors: one program for all sizes of images, or one for each."""

from collections.abc import Callable

import torch
from torch import Tensor

from gfl.engine.compiled import compiled, require_compiler
from gfl.errors import UserError

KINDS = (False, True, "fixed")


def compiled_inference(tensors: Callable, device: torch.device, kind: bool | str) -> Callable:
    """A network's `tensors`, compiled.

    Args:
        tensors: (B, 3, H, W) images to a named tuple of (B, ...) outputs or None, and (h, w) of
            each level.
        device: where it computes.
        kind: True for one program for images of all sizes. "fixed" for a program for each size,
            made when it first comes up; on CUDA it is recorded as a graph, so that the host no
            longer launches each kernel.

    Raises:
        UserError: another kind, or nothing can be compiled here.
    """
    if kind not in KINDS:
        raise UserError(f"compile is {kind!r}, expected False, True or 'fixed'.")
    require_compiler(device, "compile was asked for", "leave it out")
    if kind != "fixed":
        return torch.compile(tensors, dynamic=True)
    on_gpu = device.type == "cuda"
    program = compiled(tensors, "reduce-overhead" if on_gpu else None)

    def run(images: Tensor):
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()
        outputs, sizes = program(with_images(images, power_of_two(len(images))))
        rows = [None if output is None else output[: len(images)] for output in outputs]
        # The graph writes its next outputs where these are.
        rows = [row.clone() if on_gpu and row is not None else row for row in rows]
        return type(outputs)(*rows), sizes

    return run


def power_of_two(count: int) -> int:
    """The smallest that is at least `count`: a last batch of 5 is computed as one of 8."""
    return 1 << (count - 1).bit_length()


def with_images(images: Tensor, count: int) -> Tensor:
    """(B, 3, H, W) to (count, 3, H, W) with black ones behind, in one memory layout."""
    if count > len(images):
        nothing = images.new_zeros(count - len(images), *images.shape[1:])
        images = torch.cat((images, nothing))
    return images.contiguous(memory_format=torch.channels_last)
