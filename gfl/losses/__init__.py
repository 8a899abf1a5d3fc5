"""Losses: formulas in `functional`, what is done with them for a batch in `criterion`."""

from gfl.losses.criterion import GFLCriterion
from gfl.losses.functional import (
    distribution_focal_loss,
    giou_loss,
    quality_focal_loss,
    quality_focal_loss_of_scores,
)

__all__ = [
    "GFLCriterion",
    "distribution_focal_loss",
    "giou_loss",
    "quality_focal_loss",
    "quality_focal_loss_of_scores",
]
