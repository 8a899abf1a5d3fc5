"""Does the score know how good the box is, and does background stay below what is true?

- *true detection*: matched one to one to an object of its class, as COCO does, at IoU 0.5.
- *background box*: overlaps no object of any class by IoU 0.1 or more.
- *rank correlation*: Spearman's, of score and IoU over the true detections.
- *mean score, mean IoU* of the true detections: GFL's score is trained to be the expected IoU, so
  that the two would be equal if every location knew its class for sure.
- *background above the median*: background boxes that score higher than half of the true
  detections of their class.
- *wrong pairs*: of all pairs of a true detection and a background box of one class, the share in
  which the background box scores higher; equal scores count half (1 - AUC).
"""

import numpy as np

from gfl.analysis.matching import spearman
from gfl.analysis.records import Records


def consistency(records: Records) -> dict:
    """The numbers above over all classes, and `per_class`; None where there is nothing to count."""
    whole = _numbers(records, np.ones(len(records), bool))
    pairs = wrong = above = 0.0
    per_class = {}
    for label, name in enumerate(records.class_names):
        mine = _numbers(records, records.labels == label)
        per_class[name] = mine
        pairs += mine["true"] * mine["background"]
        wrong += (mine["wrong_pairs"] or 0.0) * mine["true"] * mine["background"]
        above += mine["background_above_median"] or 0
    whole["wrong_pairs"] = wrong / pairs if pairs else None
    whole["background_above_median"] = int(above) if whole["true"] else None
    return {**whole, "per_class": per_class}


def _numbers(records: Records, rows: np.ndarray) -> dict:
    true, background = records.is_true & rows, records.is_background & rows
    other = rows & ~true & ~background & ~records.ignored
    scores, iou, low = records.scores[true], records.iou[true], records.scores[background]
    return {
        "true": int(true.sum()),
        "background": int(background.sum()),
        "other": int(other.sum()),
        "rank_correlation": spearman(scores, iou),
        "mean_score": float(scores.mean()) if len(scores) else None,
        "mean_iou": float(iou.mean()) if len(scores) else None,
        "background_above_median": int((low > np.median(scores)).sum()) if len(scores) else None,
        "wrong_pairs": wrong_pairs(scores, low),
    }


def wrong_pairs(true: np.ndarray, background: np.ndarray) -> float | None:
    """Share of pairs in which the background score is higher; equal ones count half.

    Args:
        true, background: scores, (n,) and (m,).

    Returns:
        In [0, 1]; None where either is empty.
    """
    if not len(true) or not len(background):
        return None
    ordered = np.sort(background)
    higher = len(ordered) - np.searchsorted(ordered, true, side="right")
    equal = len(ordered) - np.searchsorted(ordered, true, side="left") - higher
    return float((higher + equal / 2).sum() / (len(true) * len(background)))


def score_bins(records: Records, count: int = 10) -> list[dict]:
    """Mean IoU of the detections in equal stretches of the score; empty stretches are left out.

    The score is the expected IoU of the class, so all detections count here, true or not.
    """
    kept = ~records.ignored
    number = np.clip((records.scores[kept] * count).astype(int), 0, count - 1)
    bins = []
    for k in np.unique(number):
        mine = number == k
        bins.append(
            {
                "score": float(records.scores[kept][mine].mean()),
                "iou": float(records.iou[kept][mine].mean()),
                "detections": int(mine.sum()),
            }
        )
    return bins
