"""Whether half precision pays on a device, and whether it works for a model there: tried once,
before the first step."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gfl.structures import Predictions

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

# Logits in half precision may differ by this share of their root mean square, or by as much where
# that is below 1: there a difference changes no probability. Rounding stays below (2 random images
# of 128 x 160: 0.20 for a new ResNeXt-101 in bf16, 0.02 for a new ResNet-18); hardware or layers
# that half precision breaks give NaN or something unrelated.
TOLERANCE = 0.5

CPU_INFO = Path("/proc/cpuinfo")
# Of x86 (AVX-512 and AMX) and of Arm. Without them torch computes in bf16 by detours.
BF16_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})


def fitting_precision(device: torch.device) -> tuple[str, str]:
    """bf16 where the device has instructions for it, else fp32; and why."""
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "this GPU computes in it"
        return "fp32", "this GPU does not compute in bf16 (fp16 may be faster: state it)"
    if BF16_INSTRUCTIONS & set(CPU_INFO.read_text().split() if CPU_INFO.is_file() else ()):
        return "bf16", "this CPU has instructions for it"
    return "fp32", "no bf16 instructions of this CPU are known, and without them bf16 is slow"


@torch.no_grad()
def disagreement(model: nn.Module, images: Tensor, precision: str) -> str | None:
    """Compare a forward in half precision with one in fp32, as in training.

    Batch-norm uses the batch's statistics where it does in training; what it learns and the random
    state are left as they were.

    Args:
        model: the bare network.
        images: (B, 3, H, W) normalised.
        precision: "bf16" or "fp16".

    Returns:
        What is wrong, or None. Costs two forwards.
    """
    was_training = model.training
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    learning = [norm for norm in norms if norm.training]
    model.eval()  # nothing random: the two forwards must differ in precision alone
    for norm in learning:
        norm.train()
    try:
        wanted = model(images)
        with torch.autocast(images.device.type, PRECISIONS[precision]):
            got = model(images)
    finally:
        model.train(was_training)
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
    return _compare(got, wanted, precision)


def _compare(got: Predictions, wanted: Predictions, precision: str) -> str | None:
    for name in ("cls_logits", "box_logits"):
        a, b = getattr(got, name).float(), getattr(wanted, name).float()
        if not b.isfinite().all():
            continue  # fp32 does no better: that is for the loop to say
        if not a.isfinite().all():
            return f"{name} are not finite in {precision}, but are in fp32"
        size = b.square().mean().sqrt().clamp(min=1)
        off = ((a - b).square().mean().sqrt() / size).item()
        if off > TOLERANCE:
            return f"{name} in {precision} are {off:.0%} off those in fp32"
    return None
