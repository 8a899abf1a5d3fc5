"""What a training step needs in memory, counted without computing anything."""

import torch
from torch import Tensor, nn

# Beside what autograd keeps for the backward pass: its own gradients, the loss, and gaps of the
# allocator.
OVERHEAD = 1.5
# Copies of each weight: itself and its gradient, two moments of AdamW, one average.
COPIES = 5


def image_bytes(model: nn.Module, side: tuple[int, int]) -> float:
    """Bytes that one more image in a batch costs in training, in fp32 (half precision needs less).

    Counts the distinct storages that autograd keeps of a forward pass of two images. The model is
    on the meta device, where tensors have shapes and no content.

    Args:
        model: on the meta device.
        side: (h, w) of the padded input.
    """
    owned = {id_of(value) for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if id_of(value) not in owned:
            kept[id_of(value)] = value
        return value

    images = torch.zeros(2, 3, *side, device="meta")
    was_training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        outputs = model(images)
    model.train(was_training)
    results = [value for value in vars(outputs).values() if isinstance(value, Tensor)]
    kept.update({id_of(value): value for value in results})
    return OVERHEAD * sum(value.untyped_storage().nbytes() for value in kept.values()) / 2


def weight_bytes(model: nn.Module) -> int:
    """Bytes of weights, gradients, moments and averages."""
    return COPIES * sum(value.numel() * value.element_size() for value in model.parameters())


def id_of(value: Tensor) -> int:
    """The identity of the memory behind a tensor, on any device."""
    return value.untyped_storage()._cdata
