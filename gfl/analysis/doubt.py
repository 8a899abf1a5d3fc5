"""Does doubt mean error? `edge_std` beside what the sides were off by, and beside true blur.

- *rank correlation*: Spearman's, of `edge_std` and |error|, over the sides of correctly found
  objects that were not clipped at the image's border.
- *size held fixed*: the partial rank correlation given the square root of the box's area. Large
  objects have larger deviations and larger errors; this is what is left without that.
- *rms error, rms deviation*: roots of the mean squares, pixels of the original image. A standard
  deviation that means what it says has them equal, in each group of sides.
"""

import numpy as np

from gfl.analysis.matching import partial_spearman, spearman
from gfl.analysis.records import Records

SIDES = ("left", "top", "right", "bottom")
GROUPS = 10


def doubt_and_error(records: Records) -> dict:
    """For each of `SIDES` and "all": the numbers above, and their count."""
    errors, kept, size = correct_sides(records)
    found = {}
    for name, mine in _by_side(kept):
        found[name] = {
            "sides": int(mine.sum()),
            **_agreement(records.edge_std[mine], errors[mine], size[mine]),
        }
    clipped = records.is_true[:, None] & records.is_clipped
    return {**found, "clipped_left_out": int(clipped.sum())}


def doubt_and_blur(records: Records) -> dict | None:
    """For each of `SIDES` and "all": rank correlation of `edge_std` with the true blur of the edge.

    Returns:
        None where the annotations say nothing about blur.
    """
    if records.objects.blur is None:
        return None
    _, kept, size = correct_sides(records)
    blur = true_blur(records)
    found = {}
    for name, mine in _by_side(kept & np.isfinite(blur)):
        std = records.edge_std[mine]
        found[name] = {
            "sides": int(mine.sum()),
            "rank_correlation": spearman(std, blur[mine]),
            "size_held_fixed": partial_spearman(std, blur[mine], size[mine]),
        }
    return found


def true_blur(records: Records) -> np.ndarray:
    """(n, 4) true blur of the edges of the matched objects, NaN where there is none known."""
    blur = np.full(records.boxes.shape, np.nan)
    blur[records.is_true] = records.objects.blur[records.match[records.is_true]]
    return blur


def groups(by: np.ndarray, values: np.ndarray, count: int = GROUPS) -> list[dict]:
    """Sides in groups of equal size by one of two quantities; both as roots of mean squares.

    Args:
        by, values: (n,) pixels.

    Returns:
        Up to `count` groups, {"by", "value", "sides"}, in rising order of `by`.
    """
    order = np.argsort(by, kind="stable")
    return [
        {"by": _rms(by[part]), "value": _rms(values[part]), "sides": len(part)}
        for part in np.array_split(order, count)
        if len(part)
    ]


def correct_sides(records: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """|error|, whether a side counts, and the size of its box: (n, 4) each."""
    spans = records.boxes[:, 2:] - records.boxes[:, :2]
    size = np.repeat(np.sqrt(spans.prod(1))[:, None], 4, 1)
    return records.errors(), records.is_true[:, None] & ~records.is_clipped, size


def _by_side(kept: np.ndarray):
    for number, name in enumerate(SIDES):
        mine = np.zeros_like(kept)
        mine[:, number] = kept[:, number]
        yield name, mine
    yield "all", kept


def _agreement(std: np.ndarray, error: np.ndarray, size: np.ndarray) -> dict:
    return {
        "rank_correlation": spearman(std, error),
        "size_held_fixed": partial_spearman(std, error, size),
        "rms_deviation": _rms(std),
        "rms_error": _rms(error),
        "mean_error": float(error.mean()) if len(error) else None,
    }


def _rms(values: np.ndarray) -> float | None:
    return float(np.sqrt(np.square(values).mean())) if len(values) else None
