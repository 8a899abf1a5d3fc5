"""A convolution whose output has a gradient at few places: its backward looks at those alone.

Box losses say something of positives only: of a few dozen places among thousands, and of none on
the levels for which no object has the size. All else that a backward multiplies there is 0.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

# A larger share of places with a gradient is left to the plain backward.
FEW = 1 / 8


def conv_of_few_gradients(conv: nn.Conv2d, x: Tensor, may_have_none: bool) -> Tensor:
    """`conv(x)`, with the same gradients but for rounding.

    On a CPU in fp32; elsewhere it is the plain convolution: a GPU would have to be waited for.

    Args:
        conv: has a bias and an odd kernel that keeps the size.
        x: (B, C, h, w).
        may_have_none: where the whole gradient is 0, there is none at all, and autograd does
            nothing for what comes before. Parameters of the convolution and before it then need
            another use that always has one.
    """
    is_plain = (
        x.device.type != "cpu"
        or not torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
        or torch.compiler.is_compiling()
    )
    if is_plain:
        return conv(x)
    return _FewGradients.apply(x, conv.weight, conv.bias, may_have_none)


class _FewGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor, may_have_none: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.may_have_none = may_have_none
        return F.conv2d(x, weight, bias, padding=weight.shape[-1] // 2)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient: Tensor):
        x, weight = ctx.saved_tensors
        places = (gradient != 0).any(1).nonzero(as_tuple=True)  # image, row, column
        count = len(places[0])
        if count == 0 and ctx.may_have_none:
            return None, None, None, None
        if count > FEW * gradient[:, 0].numel():
            return *_everywhere(gradient, x, weight), None
        return *_at(places, gradient, x, weight), None


def _everywhere(gradient: Tensor, x: Tensor, weight: Tensor) -> tuple:
    """Gradients of input, weight and bias."""
    pad, all_three = weight.shape[-1] // 2, [True, True, True]
    shape = ([1, 1], [pad, pad], [1, 1], False, [0, 0], 1)  # stride, padding, dilation, ...
    return torch.ops.aten.convolution_backward(
        gradient, x, weight, [len(weight)], *shape, all_three
    )


def _at(places: tuple, gradient: Tensor, x: Tensor, weight: Tensor) -> tuple:
    """The same from n places: each output there is a product of a patch of x and the weight."""
    image, row, column = places
    channels, kernel = weight.shape[1:3]
    pad = kernel // 2
    rows = gradient[image, :, row, column]  # (n, K)
    patches = F.pad(x, [pad] * 4).unfold(2, kernel, 1).unfold(3, kernel, 1)
    patches = patches[image, :, row, column].flatten(1)  # (n, C * kernel * kernel)
    of_weight = (rows.T @ patches).view_as(weight)
    of_patches = (rows @ weight.flatten(1)).view(-1, channels, kernel, kernel)

    height, width = x.shape[2] + 2 * pad, x.shape[3] + 2 * pad
    padded = rows.new_zeros(len(x) * height * width, channels)
    corner = (image * height + row) * width + column
    for i in range(kernel):
        for j in range(kernel):
            padded.index_add_(0, corner + i * width + j, of_patches[:, :, i, j])
    inner = padded.view(len(x), height, width, channels)
    inner = inner[:, pad : height - pad, pad : width - pad].permute(0, 3, 1, 2)
    return torch.empty_like(x).copy_(inner), of_weight, rows.sum(0)
