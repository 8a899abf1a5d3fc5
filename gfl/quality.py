"""The ways to judge how well a box lies, as rows of facts. Head and criterion read the row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QualityMode:
    """What a way of judging localisation quality consists of.

    Attributes:
        joint: a positive's class label is the IoU of its box, learned by the quality focal loss.
            Otherwise it is 1, learned by the focal loss.
        predictor: the head has a `gfl.models.quality.DistributionQuality`, whose quality
            multiplies the class score in training and testing.
        target: what else judges a positive, "iou" or "centerness" (see `gfl.boxes`), or None. It
            weighs the positive's box losses, as in FCOS and ATSS.
        branch: the head has a logit that learns the target by cross-entropy on the positives, and
            multiplies the class score in testing. With a target and no branch the target weighs
            the positive's class loss too: quality guides the training and is not predicted.

    Source: arXiv 2006.04388 table 1a and its supplement; arXiv 2011.12885.
    """

    joint: bool = False
    predictor: bool = False
    target: str | None = None
    branch: bool = False

    def __post_init__(self):
        if self.target not in (None, "iou", "centerness"):
            raise ValueError(f"target is {self.target!r}, expected 'iou', 'centerness' or None")
        if self.branch and self.target is None:
            raise ValueError("a branch learns a target: name one")
        if self.predictor and (self.branch or not self.joint):
            raise ValueError("a predictor learns from the joint score: joint, and no branch")

    @property
    def guides_class_loss(self) -> bool:
        """Whether the target weighs the class loss of positives."""
        return self.target is not None and not self.branch


QUALITY_MODES = {
    # GFL: one logit is the expected IoU of the class (arXiv 2006.04388).
    "joint": QualityMode(joint=True),
    # GFLv2: the shape of the side distributions says how good the box is (arXiv 2011.12885).
    "distribution_guided": QualityMode(joint=True, predictor=True),
    # The class score alone.
    "none": QualityMode(),
    # FCOS, ATSS, and IoU-aware detectors: a second logit, learned apart from the class score.
    "centerness_branch": QualityMode(target="centerness", branch=True),
    "iou_branch": QualityMode(target="iou", branch=True),
    # Good positives count for more, and nothing is predicted.
    "centerness_guided": QualityMode(target="centerness"),
    "iou_guided": QualityMode(target="iou"),
}
