"""Detections and objects of all images as columns, and who takes whom, as pycocotools matches."""

import numpy as np
from pycocotools import mask as rectangles

# Numbers of one array of a matching step.
PIECE = 2**20


class Rows:
    """Detections or objects as columns, sorted by class, image and, if scored, falling score.

    Attributes:
        pair: (n,) class number times images plus image number.
        boxes: (n, 4) xywh.
        ids, areas, crowd: (n,).
        scores, rank: (n,) of detections; the rank counts from 0 in each pair.
    """

    def __init__(self, entries: list[dict], params, scored: bool):
        classes = {int(value): number for number, value in enumerate(params.catIds)}
        images = {int(value): number for number, value in enumerate(params.imgIds)}
        self.num_images = len(images)
        pair = np.array(
            [
                -1
                if (c := classes.get(e["category_id"])) is None
                or (i := images.get(e["image_id"])) is None
                else c * self.num_images + i
                for e in entries
            ],
            np.int64,
        )
        boxes = np.array([e["bbox"] for e in entries], float).reshape(-1, 4)
        if scored:
            scores = np.array([e["score"] for e in entries], float)
            order = np.lexsort((-scores, pair))
            self.scores = scores[order]
            self.ids = order + 1  # as `loadRes` numbers them
            self.areas = boxes[order, 2] * boxes[order, 3]
            self.crowd = np.zeros(len(order), bool)
        else:
            order = np.argsort(pair, kind="stable")
            self.ids = np.array([e["id"] for e in entries], np.int64)[order]
            self.areas = np.array([e["area"] for e in entries], float)[order]
            self.crowd = np.array([bool(e.get("iscrowd", 0)) for e in entries], bool)[order]
            self.scores = np.zeros(len(order))
        self.pair, self.boxes = pair[order], boxes[order]
        is_first = np.diff(self.pair, prepend=-2) != 0
        rank = np.arange(len(order)) - np.maximum.accumulate(
            np.where(is_first, np.arange(len(order)), 0)
        )
        self.rank = rank
        keep = self.pair >= 0
        if scored:
            keep &= rank < params.maxDets[-1]
        for name in ("pair", "boxes", "ids", "areas", "crowd", "scores", "rank"):
            setattr(self, name, getattr(self, name)[keep])
        firsts = np.flatnonzero(np.diff(self.pair, prepend=-2) != 0)
        ends = np.append(firsts, len(self.pair))[1:].tolist()
        # Pair to the slice of its rows.
        self.slices = {
            number: slice(first, end)
            for number, first, end in zip(
                self.pair[firsts].tolist(), firsts.tolist(), ends, strict=True
            )
        }

    def of_class(self, number: int) -> slice:
        """The rows of a class."""
        bounds = (number * self.num_images, (number + 1) * self.num_images)
        return slice(*np.searchsorted(self.pair, bounds).tolist())


class Matches:
    """Which detection takes which object, at each area range and IoU threshold.

    Attributes:
        out: (areas, detections) bool, whether the own area is out of range.
        ignored: (areas, objects) bool, crowd or out of range.
        rows: detections that overlap an object of their image and class enough, rising.
        objects_of: (len(rows), areas, thresholds) row of the object taken, or -1.
        found_by: (objects, areas, thresholds) id of the (last) detection that took it, or 0.
    """

    def __init__(self, found: Rows, objects: Rows, params):
        self.object_ids = objects.ids
        self.thresholds = np.minimum(params.iouThrs, 1 - 1e-10)
        low, high = (
            np.array(bounds, float)[:, None] for bounds in zip(*params.areaRng, strict=True)
        )
        self.out = (found.areas < low) | (found.areas > high)
        self.ignored = objects.crowd | (objects.areas < low) | (objects.areas > high)
        groups, near = self._overlapping(found, objects)
        self.rows = np.flatnonzero(near)
        self._number = np.cumsum(near) - 1  # of a detection in `rows`
        counts = (len(low), len(self.thresholds))
        self.objects_of = np.full((len(self.rows), *counts), -1, np.int32)
        self.found_by = np.zeros((len(objects.pair), *counts), np.int64)
        for (_, width), members in groups.items():
            size = max(PIECE // (counts[0] * counts[1] * width), 1)
            for first in range(0, len(members), size):
                self._match(members[first : first + size], width, found, objects)

    def _overlapping(self, found: Rows, objects: Rows) -> tuple[dict, np.ndarray]:
        """Pairs in groups of similar (detections, objects), and which detections take part.

        A member is (detections' rows, first object's row, (detections, objects) IoU).
        """
        groups: dict[tuple[int, int], list] = {}
        near = np.zeros(len(found.pair), bool)
        for pair, mine in found.slices.items():
            theirs = objects.slices.get(pair)
            if theirs is None:
                continue
            iou = rectangles.iou(found.boxes[mine], objects.boxes[theirs], objects.crowd[theirs])
            rows = np.flatnonzero((iou >= self.thresholds.min()).any(1))
            if len(rows):
                near[mine.start + rows] = True
                sides = (1 << (size - 1).bit_length() for size in (len(rows), iou.shape[1]))
                member = (mine.start + rows, theirs.start, iou[rows])
                groups.setdefault(tuple(sides), []).append(member)
        return groups, near

    def _match(self, members: list, width: int, found: Rows, objects: Rows) -> None:
        """Match the detections of some pairs, best score first, all pairs in step.

        A detection takes, of the objects still free (crowd always is) and near enough, the one of
        highest IoU, the last of equals; ignored objects only where no other is.
        """
        depth = max(len(rows) for rows, _, _ in members)
        iou = np.full((len(members), depth, width), -1.0)
        row = np.full((len(members), depth), -1)
        start = np.array([first for _, first, _ in members])
        crowd = np.zeros((len(members), width), bool)
        regular = np.zeros((len(members), len(self.out), width), bool)
        for number, (rows, first, values) in enumerate(members):
            count = values.shape[1]
            iou[number, : len(rows), :count] = values
            row[number, : len(rows)] = rows
            crowd[number, :count] = objects.crowd[first : first + count]
            regular[number, :, :count] = ~self.ignored[:, first : first + count]
        taken = np.zeros((len(members), len(self.out), len(self.thresholds), width), np.int64)
        columns = np.arange(width)
        for step in range(depth):
            here = iou[:, step]
            near = here[:, None] >= self.thresholds[:, None]
            order = np.argsort(here, axis=1, kind="stable")
            rank = np.empty_like(order)
            np.put_along_axis(rank, order, columns[None], axis=1)
            value = 1 + rank[:, None] + width * regular
            free = (taken == 0) | crowd[:, None, None]
            choice = np.where(near[:, None] & free, value[:, :, None], 0)
            best = choice.argmax(-1)
            hit = np.take_along_axis(choice, best[..., None], -1) > 0
            ids = found.ids[row[:, step]][:, None, None, None]
            taken = np.where(hit & (columns == best[..., None]), ids, taken)
            real = row[:, step] >= 0
            owner = np.where(hit[..., 0], start[:, None, None] + best, -1)
            self.objects_of[self._number[row[real, step]]] = owner[real]
        for number, (_, first, values) in enumerate(members):
            count = values.shape[1]
            self.found_by[first : first + count] = taken[number, ..., :count].transpose(2, 0, 1)

    def of_detections(self, area: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(thresholds, n) ids of the objects taken, 0 for none, and bool, whether not counted."""
        first, end = np.searchsorted(self.rows, (rows.start, rows.stop)).tolist()
        taken = self.objects_of[first:end, area].T
        shape = (len(self.thresholds), rows.stop - rows.start)
        ids, ignored = np.zeros(shape, np.int64), np.zeros(shape, bool)
        if end > first:
            places = self.rows[first:end] - rows.start
            ids[:, places] = np.where(taken >= 0, self.object_ids[taken], 0)
            ignored[:, places] = (taken >= 0) & self.ignored[area][taken]
        return ids, ignored | ((ids == 0) & self.out[area, rows])

    def outcome(self, area: int, rows: slice) -> tuple[np.ndarray, np.ndarray]:
        """(thresholds, n) bools of detections: right, wrong; neither where not counted."""
        ids, ignored = self.of_detections(area, rows)
        return (ids != 0) & ~ignored, (ids == 0) & ~ignored
