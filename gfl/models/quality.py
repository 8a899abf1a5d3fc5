"""How classification and localisation quality become one score."""

from torch import Tensor

from gfl.structures import Predictions


def joint_scores(predictions: Predictions) -> Tensor:
    """(B, N, C) scores in [0, 1]. The logit is the joint one, so nothing is multiplied in.

    Source: arXiv 2006.04388 section 3.2; mmdet `GFLHead` (use_sigmoid).
    """
    return predictions.cls_logits.sigmoid()
