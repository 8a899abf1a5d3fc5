"""pycocotools' evaluation of boxes, all images at once: the same values in every digit, sooner.

pycocotools looks at each image, class, area range and threshold by itself, in Python. Here the
detections of all images are matched together, the k-th of each image and class in one step. IoUs
are pycocotools' own.
"""

import copy
from collections.abc import Sequence

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl.engine.box_matching import Matches, Rows


class BoxEvaluation(COCOeval):
    """A `COCOeval` of "bbox" with classes that gives what pycocotools gives.

    `params`, `eval` and `evalImgs` are as there, after `evaluate()` and `accumulate()`; `evalImgs`
    makes its entries when they are asked for. There is no `cocoDt` and `ious`.

    Args:
        truth: ground truth with index; it is not changed.
        results: COCO result entries, which are not changed; none at all is fine.
    """

    def __init__(self, truth: COCO, results: list[dict]):
        super().__init__(truth, None, "bbox")
        unknown = {entry["image_id"] for entry in results} - set(truth.imgs)
        assert not unknown, f"results of images that the ground truth lacks: {sorted(unknown)[:5]}"
        self._results = results

    def evaluate(self) -> None:
        """Match detections and objects."""
        params = self.params
        params.imgIds = list(np.unique(params.imgIds))
        params.catIds = list(np.unique(params.catIds))
        params.maxDets = sorted(params.maxDets)
        self._paramsEval = copy.deepcopy(params)
        objects = [item for i in params.imgIds for item in self.cocoGt.imgToAnns.get(i, ())]
        self.found = Rows(self._results, params, scored=True)
        self.objects = Rows(objects, params, scored=False)
        self.matches = Matches(self.found, self.objects, params)
        self.evalImgs = _Images(self)

    def accumulate(self, p=None) -> None:
        """Precision, recall and scores, as pycocotools has them, with the parameters of before."""
        params = self.params
        thresholds, recalls = params.iouThrs, params.recThrs
        shape = (len(thresholds), len(recalls), len(params.catIds))
        shape += (len(params.areaRng), len(params.maxDets))
        precision, scores = -np.ones(shape), -np.ones(shape)
        recall = -np.ones(shape[:1] + shape[2:])
        for number in range(len(params.catIds)):
            rows = self.found.of_class(number)
            own_scores, rank = self.found.scores[rows], self.found.rank[rows]
            orders = [_order(own_scores, rank, cut) for cut in params.maxDets]
            for area in range(len(params.areaRng)):
                ignored = self.matches.ignored[area][self.objects.of_class(number)]
                wanted = np.count_nonzero(~ignored)
                if not wanted:
                    continue
                right, wrong = self.matches.outcome(area, rows)
                for cut, order in enumerate(orders):
                    place = (number, area, cut)
                    if cut and len(order) == len(orders[cut - 1]):  # the same detections
                        for values in (precision, recall, scores):
                            values[(..., *place)] = values[(..., *place[:2], cut - 1)]
                        continue
                    ordered = own_scores[order]
                    hits = np.cumsum(right[:, order], axis=1).astype(float)
                    misses = np.cumsum(wrong[:, order], axis=1).astype(float)
                    for step in range(len(thresholds)):
                        values = _curve(hits[step], misses[step], wanted, recalls, ordered)
                        recall[(step, *place)] = values[0]
                        precision[(step, slice(None), *place)] = values[1]
                        scores[(step, slice(None), *place)] = values[2]
        self.eval = {"params": params, "counts": list(shape), "precision": precision}
        self.eval |= {"recall": recall, "scores": scores}


def _order(scores: np.ndarray, rank: np.ndarray, cut: int) -> np.ndarray:
    """A class's detections that count, best first; equal ones stay in order."""
    rows = np.flatnonzero(rank < cut)
    return rows[np.argsort(-scores[rows], kind="stable")]


def _curve(hits, misses, wanted: int, recalls, scores) -> tuple[float, np.ndarray, np.ndarray]:
    """Last recall; precision and score at each recall that is asked for, 0 beyond the last."""
    precision, score = np.zeros(len(recalls)), np.zeros(len(recalls))
    if not len(hits):
        return 0.0, precision, score
    recall = hits / wanted
    envelope = np.maximum.accumulate((hits / (misses + hits + np.spacing(1)))[::-1])[::-1]
    places = np.searchsorted(recall, recalls, side="left")
    reached = places < len(hits)
    precision[reached] = envelope[places[reached]]
    score[reached] = scores[places[reached]]
    return recall[-1], precision, score


class _Images(Sequence):
    """pycocotools' `evalImgs`: an entry for each class, area range and image, made when asked."""

    def __init__(self, evaluation: BoxEvaluation):
        self._found, self._objects = evaluation.found, evaluation.objects
        self._matches, self._params = evaluation.matches, evaluation.params

    def __len__(self) -> int:
        params = self._params
        return len(params.catIds) * len(params.areaRng) * len(params.imgIds)

    def __getitem__(self, number):
        if isinstance(number, slice):
            return [self._entry(n) for n in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self._entry(number % len(self))

    def _entry(self, number: int) -> dict | None:
        images, areas = len(self._params.imgIds), len(self._params.areaRng)
        rest, image = divmod(number, images)
        class_number, area = divmod(rest, areas)
        pair = class_number * images + image
        nothing = slice(0, 0)
        mine = self._found.slices.get(pair, nothing)
        theirs = self._objects.slices.get(pair, nothing)
        if mine is nothing and theirs is nothing:
            return None
        ignored = self._matches.ignored[area, theirs]
        order = np.argsort(ignored, kind="stable")  # pycocotools puts ignored objects last
        ids, not_counted = self._matches.of_detections(area, mine)
        return {
            "image_id": self._params.imgIds[image],
            "category_id": self._params.catIds[class_number],
            "aRng": self._params.areaRng[area],
            "maxDet": self._params.maxDets[-1],
            "dtIds": self._found.ids[mine].tolist(),
            "gtIds": self._objects.ids[theirs][order].tolist(),
            "dtMatches": ids.astype(float),
            "gtMatches": self._matches.found_by[theirs, area].T[:, order].astype(float),
            "dtScores": self._found.scores[mine].tolist(),
            "gtIgnore": ignored[order].astype(int),
            "dtIgnore": not_counted,
        }
