"""Detections beside the truth, matched by pycocotools, on splits small enough to do by hand."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from gfl.analysis.matched import MatchedSplit, match_split
from gfl.detections import Detections

NAMES, IDS = ("cat", "dog"), (3, 7)
SIZE = (100, 200)


def truth_of(images: list[list[tuple]]) -> COCO:
    """Objects (label, xyxy) or (label, xyxy, "crowd") of each image, whose ids are 10, 20, ..."""
    annotations = []
    for number, objects in enumerate(images, start=1):
        for label, (x1, y1, x2, y2), *crowd in objects:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 10 * number,
                    "category_id": IDS[label],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(bool(crowd)),
                }
            )
    truth = COCO()
    truth.dataset = {
        "images": [
            {"id": 10 * n, "height": SIZE[0], "width": SIZE[1]} for n in range(1, len(images) + 1)
        ],
        "annotations": annotations,
        "categories": [{"id": i, "name": name} for i, name in zip(IDS, NAMES, strict=True)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
    return truth


def found_of(rows: list[tuple], std=1.0, distributions: bool = False) -> Detections:
    """Detections (label, score, xyxy), best first; distributions half a bin of 4 px wide."""
    count = len(rows)
    boxes = torch.tensor([row[2] for row in rows], dtype=torch.float32).reshape(-1, 4)
    positions = boxes[..., None] + torch.tensor([-6.0, -2, 2, 6])
    return Detections(
        boxes=boxes,
        scores=torch.tensor([float(row[1]) for row in rows]),
        labels=torch.tensor([row[0] for row in rows], dtype=torch.long),
        edge_std=torch.as_tensor(std, dtype=torch.float32).expand(count, 4),
        distributions=torch.tensor([0, 0.5, 0.5, 0]).repeat(count, 4, 1) if distributions else None,
        edge_positions=positions if distributions else None,
    )


def split_of(objects: list[list[tuple]], found: list, **options) -> MatchedSplit:
    """A split of images of objects, and of rows or Detections found in each."""
    found = [one if isinstance(one, Detections) else found_of(one) for one in found]
    by_id = {10 * number: one for number, one in enumerate(found, start=1)}
    return match_split(truth_of(objects), by_id, NAMES, IDS, **options)


BOX, RIGHT, FAR = (10, 10, 50, 50), (100, 10, 140, 50), (150, 60, 190, 95)


def test_each_object_is_matched_once_to_the_best_score():
    split = split_of(
        [[(0, BOX), (1, RIGHT)], [(0, FAR)]],
        [
            [(0, 0.9, (10, 10, 50, 46)), (0, 0.8, BOX), (0, 0.7, RIGHT)],
            [(0, 0.6, FAR), (1, 0.5, FAR)],
        ],
    )
    r = split.records
    assert r.image_ids == (10, 20) and r.images.tolist() == [0, 0, 0, 1, 1]
    assert r.match.tolist() == [0, -1, -1, 2, -1]
    assert r.objects.found.tolist() == [True, False, True]
    # The duplicate lies on the object all the same; the wrong class on none of its own.
    assert r.iou.tolist() == pytest.approx([0.9, 1.0, 0, 1.0, 0])
    assert r.iou_any.tolist() == pytest.approx([0.9, 1.0, 1.0, 1.0, 1.0])
    assert r.is_background.tolist() == [False] * 5
    assert split.evaluation.params.iouThrs.tolist() == [0.5]


def test_the_iou_of_a_true_detection_is_that_of_its_own_object():
    # The second detection overlaps the first object most, which the first one has.
    one, two = (0, 0, 100, 50), (0, 30, 100, 80)
    split = split_of(
        [[(0, one), (0, two)]],
        [[(0, 0.9, one), (0, 0.8, (0, 14, 100, 64))]],
    )
    r = split.records
    assert r.match.tolist() == [0, 1]
    assert r.iou.tolist() == pytest.approx([1.0, 34 / 66])


def test_crowds_are_neither_objects_nor_mistakes():
    split = split_of(
        [[(0, BOX), (0, (100, 0, 200, 100), "crowd")]],
        [[(0, 0.9, BOX), (0, 0.8, (110, 10, 140, 40)), (0, 0.7, (60, 60, 90, 90))]],
    )
    r = split.records
    assert len(r.objects.labels) == 1 and r.match.tolist() == [0, -1, -1]
    assert r.ignored.tolist() == [False, True, False]
    assert r.is_background.tolist() == [False, False, True]


def test_errors_and_clipped_sides():
    # The left side lies on the image's border, the right one is 2 pixels off.
    split = split_of([[(0, (0, 10, 50, 50))]], [found_of([(0, 0.9, (0, 10, 52, 50))], 1.0, True)])
    r = split.records
    assert r.errors().tolist() == [[0, 0, 2, 0]]
    assert r.is_clipped.tolist() == [[True, False, False, False]]
    sides = r.sides()
    assert sides.truth.tolist() == [10, 50, 50] and sides.images.tolist() == [0, 0, 0]
    assert (sides.probabilities * sides.positions).sum(1).tolist() == pytest.approx([10, 52, 50])
    assert split_of([[(0, BOX)]], [[(0, 0.9, BOX)]]).records.sides() is None


def test_true_blur_belongs_to_the_object_of_that_box():
    blur = {(10, 10, 10, 40, 40): [1.0, 2, 3, 4], (20, 10, 10, 40, 40): [9.0] * 4}
    split = split_of([[(0, RIGHT), (1, BOX)]], [[(1, 0.9, BOX)]], blur=blur)
    got = split.records.objects.blur
    assert np.isnan(got[0]).all() and got[1].tolist() == [1, 2, 3, 4]
    assert split_of([[(0, BOX)]], [[]]).records.objects.blur is None


@pytest.mark.parametrize("distributions", [True, False])
@pytest.mark.parametrize("objects", [[[]], [[(0, BOX)]], [[], [(0, BOX)]]])
def test_nothing_found_or_nothing_there(objects, distributions):
    nothing = [found_of([], 1.0, distributions) for _ in objects]
    r = split_of(objects, nothing).records
    assert len(r) == 0 and r.boxes.shape == (0, 4) and r.errors().shape == (0, 4)
    assert len(r.objects.labels) == sum(map(len, objects))
    r = split_of([[]], [found_of([(0, 0.9, BOX)], 1.0, distributions)]).records
    assert r.is_background.tolist() == [True] and r.iou.tolist() == [0]
