"""The formulas, unreduced. Logits in, one number a row out; inputs are float32."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.boxes import EPSILON, aligned_giou
from gfl.structures import expected_score

# Below this distance from the target the modulating factor has no gradient: for 0 < beta < 1 the
# derivative of |x|^beta at 0 is infinite.
MIN_DISTANCE = 1e-12
HALF_LOG_2PI = math.log(2 * math.pi) / 2


def quality_focal_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss: cross-entropy with a continuous label, focused on large errors.

        QFL(s) = -|y - s|^beta * ((1 - y) log(1 - s) + y log(s)),  s = sigmoid(logits)

    Args:
        logits: (..., C) joint classification-IoU logits.
        target: (..., C) labels y in [0, 1]: the IoU at the true class of a positive, else 0.
        beta: focusing power, any value >= 0.

    Returns:
        (..., C) loss, unreduced. Gradient flows through the modulating factor too.

    Raises:
        ValueError: beta is negative; in debug mode, `torch.autograd.set_detect_anomaly(True)`, also
            a label outside of [0, 1], for which the device is waited for.

    Source: arXiv 2006.04388 equation 3; mmdet `quality_focal_loss`. The authors' code takes no
    absolute value and is NaN for a fractional beta.
    """
    _check_quality(beta, target)
    distance = (target - logits.sigmoid()).abs().clamp(min=MIN_DISTANCE)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return cross_entropy * distance.pow(beta)


def _check_quality(beta: float, target: Tensor) -> None:
    if beta < 0:
        raise ValueError(f"beta is {beta}, expected a value >= 0")
    if torch.compiler.is_compiling() or not torch.is_anomaly_enabled():
        return
    if ((target < 0) | (target > 1)).any():
        low, high = target.min().item(), target.max().item()
        raise ValueError(f"labels are {low:.9g} to {high:.9g}, expected a quality in [0, 1]")


def quality_focal_loss_of_scores(scores: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss of scores that are products of probabilities, as GFLv2 has them.

    The same formula as `quality_focal_loss`; a sigmoid that is 0 or 1 in float32 can not give an
    infinite loss or gradient, since logarithms end at -100 and denominators at 1e-12.

    Args:
        scores: (..., C) in [0, 1].
        target: (..., C) labels in [0, 1].
        beta: focusing power, any value >= 0.

    Returns:
        (..., C) loss, unreduced; NaN where a score or a label is.

    Source: arXiv 2011.12885; GFocalV2 `quality_focal_loss` (use_sigmoid=False).
    """
    _check_quality(beta, target)
    distance = (target - scores).abs().clamp(min=MIN_DISTANCE)
    # torch's cross-entropy stops the program at a NaN, on a GPU for good.
    is_number = ~(scores + target).isnan()
    cross_entropy = F.binary_cross_entropy(
        scores.where(is_number, 0.0), target.where(is_number, 0.0), reduction="none"
    )
    return (cross_entropy * distance.pow(beta)).where(is_number, torch.nan)


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss: cross-entropy with a label of 0 or 1, focused on what is judged wrongly.

        FL(p) = -alpha (1 - p)^gamma log(p) for y = 1, -(1 - alpha) p^gamma log(1 - p) for y = 0

    Args:
        logits: (..., C), p = sigmoid(logits).
        target: (..., C) labels, 0 or 1.
        alpha: weight of positives; 1 - alpha is that of negatives.
        gamma: focusing power, any value >= 0.

    Returns:
        (..., C) loss, unreduced. Gradient flows through the modulating factor too.

    Source: arXiv 1708.02002 equation 5; mmdet `py_sigmoid_focal_loss`.
    """
    if gamma < 0:
        raise ValueError(f"gamma is {gamma}, expected a value >= 0")
    score = logits.sigmoid()
    wrong = (1 - score) * target + score * (1 - target)
    weight = alpha * target + (1 - alpha) * (1 - target)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return weight * wrong.clamp(min=MIN_DISTANCE).pow(gamma) * cross_entropy


def gaussian_nll_loss(mean: Tensor, std: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood of a target under a normal distribution.

        NLL = log(std) + ((y - mean) / std)^2 / 2 + log(2 pi) / 2

    Args:
        mean, std: (...), std > 0.
        target: (...), same unit.

    Returns:
        (...) unreduced. At a given error its minimum lies at std = |y - mean|.

    Source: arXiv 1809.08545 (KL loss) equation 5, without its approximation for large errors.
    """
    return std.log() + ((target - mean) / std).square() / 2 + HALF_LOG_2PI


def distribution_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Distribution focal loss: raises the two bins beside a continuous target.

        DFL = -((i + 1 - y) log S_i + (y - i) log S_{i+1}),  i = floor(y), S = softmax(logits)

    Args:
        logits: (..., n + 1) logits of bins 0 ... n.
        target: (...) in [0, n], in bins.

    Returns:
        (...) loss, unreduced. Its minimum is reached where the expectation is the target. NaN
        where the target is.

    Source: arXiv 2006.04388 equation 6; mmdet `distribution_focal_loss`.
    """
    left = target.floor().clamp(max=logits.shape[-1] - 2)  # n itself is all on its right
    right_weight = (target - left)[..., None]
    # The loss of a NaN is NaN by its weights; as an index it would read outside of the bins.
    left_index = left.where(left >= 0, 0.0).long()[..., None]
    log_probability = F.log_softmax(logits, dim=-1)
    log_left = log_probability.gather(-1, left_index)
    log_right = log_probability.gather(-1, left_index + 1)
    return -(log_left * (1 - right_weight) + log_right * right_weight).squeeze(-1)


def score_distribution_loss(logits: Tensor, target: Tensor, beta: float = 2.0) -> Tensor:
    """Quality focal loss of a score that is the expectation of a distribution.

        L = |y - s|^beta * DFL(S, y (n - 1)),  S = softmax(logits),  s = sum_i S_i i / (n - 1)

    With two bins, the scores 0 and 1, DFL is the cross-entropy and this is `quality_focal_loss`
    of the difference of the two logits. More bins let the network say "0 or 1, I can not tell"
    apart from "one half".

    Args:
        logits: (..., n) logits of the scores 0, 1 / (n - 1) ... 1.
        target: (...) labels y in [0, 1].
        beta: focusing power, any value >= 0.

    Returns:
        (...) loss, unreduced.
    """
    _check_quality(beta, target)
    distance = (target - expected_score(logits)).abs().clamp(min=MIN_DISTANCE)
    cross_entropy = distribution_focal_loss(logits, target * (logits.shape[-1] - 1))
    return cross_entropy * distance.pow(beta)


def distribution_kl_loss(logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """How far a distribution is from a teacher's, both softened.

        KL = T^2 / (n + 1) * sum_i P_i log(P_i / S_i),  P, S = softmax(logits / T)

    Args:
        logits: (..., n + 1) of the student.
        teacher_logits: (..., n + 1); no gradient flows to them.
        temperature: T > 0.

    Returns:
        (...) loss, unreduced, 0 for equal distributions. The mean over bins in place of the sum
        is that of the public code, whose weights we keep.

    Source: arXiv 2102.12252 equation 4; mmdet `knowledge_distillation_kl_div_loss`.
    """
    wanted = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    found = F.log_softmax(logits / temperature, dim=-1)
    return F.kl_div(found, wanted, reduction="none", log_target=True).mean(-1) * temperature**2


def giou_loss(boxes: Tensor, target: Tensor, epsilon: float = EPSILON) -> Tensor:
    """1 - GIoU of each box with its target.

    Args:
        boxes: (..., 4) xyxy.
        target: (..., 4) xyxy, same unit.
        epsilon: see `gfl.boxes.aligned_giou`.

    Returns:
        (...) in [0, 2], unreduced.

    Source: arXiv 1902.09630; mmdet `giou_loss`.
    """
    return 1 - aligned_giou(boxes, target, epsilon)


def expectation(logits: Tensor) -> Tensor:
    """Mean of a discrete distribution over bins 0 ... n: (..., n + 1) logits to (...) bins.

    Source: arXiv 2006.04388 equation 5; mmdet `Integral`.
    """
    bins = torch.arange(logits.shape[-1], device=logits.device, dtype=logits.dtype)
    return F.softmax(logits, dim=-1) @ bins
