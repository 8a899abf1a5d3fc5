"""Losses: formulas in `functional`, what is done with them for a batch in `criterion`."""

from gfl.losses.criterion import GFLCriterion
from gfl.losses.functional import (
    distribution_focal_loss,
    distribution_kl_loss,
    focal_loss,
    gaussian_nll_loss,
    giou_loss,
    quality_focal_loss,
    quality_focal_loss_of_scores,
    score_distribution_loss,
)

__all__ = [
    "GFLCriterion",
    "distribution_focal_loss",
    "distribution_kl_loss",
    "focal_loss",
    "gaussian_nll_loss",
    "giou_loss",
    "quality_focal_loss",
    "quality_focal_loss_of_scores",
    "score_distribution_loss",
]
