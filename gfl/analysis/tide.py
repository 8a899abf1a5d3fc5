"""Which kinds of mistakes cost AP, in the manner of TIDE.

A detection that was matched to no object is, by the first of these that fits:

    localisation    overlaps an object of its class by IoU 0.1 or more, less than 0.5
    classification  overlaps an object of another class by 0.5 or more
    duplicate       overlaps an object of its class by 0.5 or more, which another detection has
    background      overlaps no object by more than 0.1
    both            the rest: overlaps an object of another class by more than 0.1, less than 0.5

An object that no detection was matched to is *missed*, unless a localisation or classification
mistake above points at it. What AP50 gains by mending a kind (dAP): a localisation or
classification mistake becomes right if its object is still free and no better mistake of the kind
has taken it, else it is removed; other detections are removed; missed objects are removed from the
truth. Gains do not add up: the mistakes hide each other.

Source: arXiv 2008.08115 sections 2.2 and 2.3; tidecv `quantify.py` for the order of the tests.
"""

from dataclasses import dataclass

import numpy as np

KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
FOREGROUND, BACKGROUND = 0.5, 0.1


@dataclass(frozen=True)
class Mistakes:
    """Which detections and objects of a split are mistakes.

    Attributes:
        kind: (n,) row of `KINDS` of each detection, -1 for right and ignored ones.
        target: (n,) row of the object that a localisation or classification mistake points at, -1.
        missed: (m,) bool of the objects.
    """

    kind: np.ndarray
    target: np.ndarray
    missed: np.ndarray

    def counts(self) -> dict[str, int]:
        """How many there are of each of `KINDS`."""
        found = {name: int((self.kind == k).sum()) for k, name in enumerate(KINDS)}
        return {**found, "missed": int(self.missed.sum())}


def find_mistakes(
    overlaps: list[np.ndarray],
    detections: list[np.ndarray],
    objects: list[np.ndarray],
    labels: np.ndarray,
    object_labels: np.ndarray,
    match: np.ndarray,
    ignored: np.ndarray,
) -> Mistakes:
    """Sort the wrong detections of a split into kinds.

    Args:
        overlaps: for each image, (D, G) IoU of its detections and objects.
        detections, objects: for each image, the rows of those in the arrays below.
        labels, object_labels: (n,) and (m,).
        match: (n,) row of the object that a detection was matched to, or -1.
        ignored: (n,) bool: neither right nor wrong.
    """
    kind, target = np.full(len(labels), -1), np.full(len(labels), -1)
    taken = np.zeros(len(object_labels), bool)
    taken[match[match >= 0]] = True
    for iou, rows, there in zip(overlaps, detections, objects, strict=True):
        for place, row in enumerate(rows):
            if match[row] < 0 and not ignored[row]:
                own = object_labels[there] == labels[row]
                kind[row], at = _kind(iou[place], own, taken[there])
                target[row] = there[at] if at >= 0 else -1
    missed = ~taken
    missed[target[target >= 0]] = False
    return Mistakes(kind, target, missed)


def _kind(iou: np.ndarray, own: np.ndarray, taken: np.ndarray) -> tuple[int, int]:
    """Kind of one wrong detection, and the column of the object that it points at or -1."""
    if not len(iou):
        return KINDS.index("background"), -1
    same, other = iou * own, iou * ~own
    if BACKGROUND <= same.max() < FOREGROUND:
        return KINDS.index("localisation"), int(same.argmax())
    if other.max() >= FOREGROUND:
        return KINDS.index("classification"), int(other.argmax())
    if (same * taken).max() >= FOREGROUND:
        return KINDS.index("duplicate"), -1
    if iou.max() <= BACKGROUND:
        return KINDS.index("background"), -1
    return KINDS.index("both"), -1


def mended(
    name: str, mistakes: Mistakes, scores: np.ndarray, match: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What mending a kind of mistake does.

    Args:
        name: one of `KINDS`.
        mistakes: of the split.
        scores: (n,).
        match: (n,), as in `find_mistakes`.

    Returns:
        (n,) bool, detections that stay; (n,) row of the object whose box and class a detection
        takes, or -1; (m,) bool, objects that stay.
    """
    stay, become = np.ones(len(scores), bool), np.full(len(scores), -1)
    if name == "missed":
        return stay, become, ~mistakes.missed
    wrong = np.flatnonzero(mistakes.kind == KINDS.index(name))
    stay[wrong] = False
    taken = set(match[match >= 0].tolist())
    for row in wrong[np.argsort(-scores[wrong], kind="stable")]:
        target = int(mistakes.target[row])
        if target >= 0 and target not in taken:
            taken.add(target)
            stay[row], become[row] = True, target
    return stay, become, np.ones(len(mistakes.missed), bool)
