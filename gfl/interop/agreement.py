"""Whether two computations of one detector agree: numbers, and detections after suppression."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from gfl.boxes import pairwise_iou
from gfl.postprocess import Postprocess
from gfl.structures import Detections


@dataclass(frozen=True)
class Tolerance:
    """Largest differences that pass.

    Attributes:
        box: of a box side or its deviation, pixels of the network input.
        score: of a score or a probability.
        decision: a detection that one side lacks is forgiven where a decision about it was this
            close: score against threshold or rival, IoU against the limit of suppression.
        iou: detections of one class that overlap by more are the same.
    """

    box: float = 0.05
    score: float = 1e-4
    decision: float = 1e-4
    iou: float = 0.99


@dataclass
class Differences:
    """What was found in any number of comparisons.

    Attributes:
        largest: largest absolute difference by name; "boxes" and "edge_std" in pixels of the
            network input.
        same: detections that both have.
        near: detections that one lacks, within `Tolerance.decision` of a decision.
        wrong: detections that one lacks, without such an excuse.
    """

    largest: dict[str, float] = field(default_factory=dict)
    same: int = 0
    near: int = 0
    wrong: int = 0

    def add(self, name: str, one: Tensor, other: Tensor) -> None:
        """Take in two tensors of one shape; a NaN counts as infinitely far."""
        gap = (one.float() - other.float()).abs().nan_to_num(nan=float("inf"))
        gap = gap.max().item() if gap.numel() else 0.0
        self.largest[name] = max(self.largest.get(name, 0.0), gap)

    def add_detections(
        self,
        one: Detections,
        other: Detections,
        rules: Postprocess,
        tolerance: Tolerance,
        candidates: Detections | None = None,
    ) -> None:
        """Take in two lists of one image; boxes in pixels of the network input.

        Args:
            one, other: the lists.
            rules: that made them.
            tolerance: see there.
            candidates: what `other` was chosen from. A rival may stand in one list where the other
                has a neighbour of it. With them, such a pair is known not to be the same detection
                computed wrongly, but two, and is held against the decisions.
        """
        first, second = match(one, other, tolerance.iou)
        if candidates is not None:
            two = _differ(one, other, first, second, tolerance)
            two &= _are_among(one.select(first), candidates, tolerance)
            first, second = first[~two], second[~two]
        for name in ("boxes", "scores", "edge_std"):
            self.add(name, getattr(one, name)[first], getattr(other, name)[second])
        alone = _rest(one, first), _rest(other, second)
        near = near_decisions(one, other, *alone, rules, tolerance.decision)
        self.same += len(first)
        for mine, excused in zip(alone, near, strict=True):
            self.near += int((mine & excused).sum())
            self.wrong += int((mine & ~excused).sum())

    def within(self, tolerance: Tolerance) -> bool:
        """Whether nothing differs by more."""
        limits = {"boxes": tolerance.box, "edge_std": tolerance.box}
        return self.wrong == 0 and all(
            value <= limits.get(name, tolerance.score) for name, value in self.largest.items()
        )


def match(one: Detections, other: Detections, iou: float) -> tuple[Tensor, Tensor]:
    """Indices of the pairs of one class that overlap by more than `iou`, each used once."""
    overlap = _overlap(one, other)
    pairs = []
    for row in range(len(one)):  # best first
        if len(other) and overlap[row].max() > iou:
            column = overlap[row].argmax().item()
            overlap[:, column] = -1
            pairs.append((row, column))
    rows, columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return rows, columns


def _differ(one, other, first: Tensor, second: Tensor, tolerance: Tolerance) -> Tensor:
    """(n,) whether the two of a pair differ by more than the tolerance."""
    box = (one.boxes[first] - other.boxes[second]).abs().amax(1)
    score = (one.scores[first] - other.scores[second]).abs()
    return (box > tolerance.box) | (score > tolerance.score)


def _are_among(found: Detections, candidates: Detections, tolerance: Tolerance) -> Tensor:
    """(n,) whether a candidate is the same within the tolerance."""
    box = (found.boxes[:, None] - candidates.boxes).abs().amax(-1) <= tolerance.box
    score = (found.scores[:, None] - candidates.scores).abs() <= tolerance.score
    return (box & score & (found.labels[:, None] == candidates.labels)).any(1)


def _rest(found: Detections, matched: Tensor) -> Tensor:
    alone = torch.ones(len(found), dtype=torch.bool)
    alone[matched] = False
    return alone


def near_decisions(
    one: Detections,
    other: Detections,
    alone_one: Tensor,
    alone_other: Tensor,
    rules: Postprocess,
    margin: float,
) -> tuple[Tensor, Tensor]:
    """Which detections hang on a decision that rounding may turn, of each side.

    Those are: a score at the threshold; a score below all of theirs when their list is full; an
    overlap at the limit of suppression; a rival of the same score on the other side; and an
    overlap with one of the other side's that stands alone for one of these reasons, since it may
    suppress or not.

    Args:
        one, other: of one image.
        alone_one, alone_other: (n,) bool, without a partner.
        rules: thresholds.
        margin: how near is near.

    Returns:
        (n,) bool of `one` and of `other`.
    """
    near_one = _near(one, other, rules, margin)
    near_other = _near(other, one, rules, margin)
    suppresses = _overlap(one, other) > rules.nms_iou - margin
    for _ in range(len(one) + len(other)):  # ends sooner: each round but the last adds some
        before = near_one.sum() + near_other.sum()
        near_one = near_one | (suppresses & (near_other & alone_other)).any(1)
        near_other = near_other | (suppresses.T & (near_one & alone_one)).any(1)
        if near_one.sum() + near_other.sum() == before:
            break
    return near_one, near_other


def _near(mine: Detections, theirs: Detections, rules: Postprocess, margin: float) -> Tensor:
    near = (mine.scores - rules.score_threshold).abs() < margin
    if len(theirs) == rules.max_per_image:
        near |= mine.scores < theirs.scores.min() + margin
    overlap = _overlap(mine, theirs)
    same_score = (mine.scores[:, None] - theirs.scores).abs() < margin
    near |= (same_score & (overlap > rules.nms_iou)).any(1)
    for limit in (overlap, _overlap(mine, mine)):
        near |= ((limit - rules.nms_iou).abs() < margin).any(1)
    return near


def _overlap(one: Detections, other: Detections) -> Tensor:
    """(n, m) IoU, -1 between classes."""
    overlap = pairwise_iou(one.boxes.double(), other.boxes.double())
    return torch.where(one.labels[:, None] == other.labels, overlap, -1.0)
