"""Score against IoU, and background against true detections, by hand."""

from types import SimpleNamespace

import pytest
import torch
from test_matched import BOX, FAR, NAMES, RIGHT, split_of

from gfl.analysis.consistency import consistency, score_bins, wrong_pairs
from gfl.analysis.quality import QualityWatch
from gfl.grid import make_grid
from gfl.models.box_representation import DiracBox
from gfl.structures import ImageMeta, Predictions

NOWHERE, NOWHERE_ELSE = (60, 60, 80, 80), (60, 10, 90, 40)


def test_wrong_pairs_by_hand():
    # 0.9 beats both; 0.4 loses to 0.5 and ties with 0.4: 1.5 of 4 pairs.
    assert wrong_pairs([0.9, 0.4], [0.5, 0.4]) == pytest.approx(1.5 / 4)
    assert wrong_pairs([0.9], []) is None and wrong_pairs([], [0.9]) is None


def test_background_is_what_overlaps_nothing_of_any_class():
    split = split_of(
        [[(0, BOX), (0, RIGHT), (1, FAR)]],
        [
            [
                (0, 0.9, BOX),
                (0, 0.7, NOWHERE),  # background, above one of the two true ones
                (0, 0.6, (100, 10, 140, 46)),  # IoU 0.9
                (0, 0.5, FAR),  # a dog: neither
                (1, 0.4, NOWHERE_ELSE),  # background of a class without true detections
            ]
        ],
    )
    found = consistency(split.records)
    assert (found["true"], found["background"], found["other"]) == (2, 2, 1)
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["mean_score"] == pytest.approx(0.75)
    assert found["mean_iou"] == pytest.approx(0.95)
    # Pairs are those of one class: 0.7 against 0.9 and 0.6; the median of those is 0.75.
    assert found["wrong_pairs"] == pytest.approx(0.5)
    assert found["background_above_median"] == 0
    assert list(found["per_class"]) == list(NAMES)
    dog = found["per_class"]["dog"]
    assert (dog["true"], dog["background"], dog["wrong_pairs"]) == (0, 1, None)
    assert dog["rank_correlation"] is None and dog["mean_score"] is None


def test_background_above_half_of_the_true_detections():
    split = split_of([[(0, BOX)]], [[(0, 0.9, NOWHERE), (0, 0.8, NOWHERE_ELSE), (0, 0.3, BOX)]])
    found = consistency(split.records)
    assert found["background_above_median"] == 2 and found["wrong_pairs"] == 1.0


def test_score_bins_take_all_detections_but_those_in_crowds():
    split = split_of(
        [[(0, BOX), (0, (100, 0, 200, 100), "crowd")]],
        [[(0, 0.95, BOX), (0, 0.92, NOWHERE), (0, 0.9, (110, 10, 140, 40)), (0, 0.31, BOX)]],
    )
    found = consistency(split.records)
    assert (found["true"], found["background"], found["other"]) == (1, 1, 1)
    first, last = score_bins(split.records)
    assert first == pytest.approx({"score": 0.31, "iou": 1.0, "detections": 1})
    assert last == pytest.approx({"score": 0.935, "iou": 0.5, "detections": 2})


def test_nothing_found():
    found = consistency(split_of([[(0, BOX)]], [[]]).records)
    assert found["wrong_pairs"] is None and found["background_above_median"] is None
    assert score_bins(split_of([[(0, BOX)]], [[]]).records) == []


class NoDetections:
    """A postprocess of boxes of 8 strides that finds nothing."""

    box, background_channel = DiracBox(), False

    def detection_scores(self, predictions):
        raise AssertionError

    def __call__(self, predictions, metas):
        return []


@pytest.mark.parametrize("is_crowd", [0, 1])
def test_a_crowd_region_is_neither_an_object_nor_background_for_the_quality(is_crowd):
    # Locations 8 pixels apart whose boxes have 64 x 64 pixels; the box at (16, 16) is there.
    grid = make_grid(((4, 4),), (8,))
    logits = Predictions(torch.zeros(1, 16, 1), torch.zeros(1, 16, 4), grid, torch.zeros(1, 16, 1))
    entry = {"bbox": [-16.0, -16.0, 64.0, 64.0], "iscrowd": is_crowd}
    watch = QualityWatch(NoDetections(), SimpleNamespace(imgToAnns={1: [entry]}))
    watch(logits, (ImageMeta(1, (32, 32), (32, 32), (1.0, 1.0)),))
    found = watch.samples()
    # Every box overlaps it by (64 - 16)^2 / (2 * 64^2 - (64 - 16)^2) = 0.39 or more.
    assert found.on_object.all() and (len(found.iou) > 0) == (not is_crowd)


@pytest.mark.parametrize(("width", "background"), [(328.0, 0), (8.0, 12)])
def test_small_boxes_in_a_large_crowd_are_no_background(width, background):
    """Boxes of 64 x 64 around places from (0, 0) to (24, 24): their IoU with it is below 0.1.

    Of 8 pixels' width the region has an eighth of the boxes around x = 0 and nothing of the others.
    """
    grid = make_grid(((4, 4),), (8,))
    logits = Predictions(torch.zeros(1, 16, 1), torch.zeros(1, 16, 4), grid, torch.zeros(1, 16, 1))
    entry = {"bbox": [-32.0, -400.0, width, 800.0], "iscrowd": True}
    watch = QualityWatch(NoDetections(), SimpleNamespace(imgToAnns={1: [entry]}))
    watch(logits, (ImageMeta(1, (32, 32), (32, 32), (1.0, 1.0)),))
    assert len(watch.samples().iou) == background


def test_the_quality_is_looked_at_within_the_picture_in_its_own_pixels_and_classes():
    """A picture of 16 x 12 seen at twice its size; the box of (24, 16), beside it, is the object.

    Boxes are 32 x 32 pixels of the picture, 4 apart: (16, 16) overlaps by 28 * 32 / 1152, two of
    (16, 8) and (16, 24) by 28 * 28 / 1264, (8, 16) by 24 * 32 / 1280, and no other by half.
    """
    grid = make_grid(((4, 4),), (8,))
    cls_logits = torch.tensor([0.0, 5.0]).expand(1, 16, 2)  # the last is no class
    logits = Predictions(cls_logits, torch.zeros(1, 16, 4), grid, torch.zeros(1, 16, 1))
    entry = {"bbox": [-4.0, -8.0, 32.0, 32.0]}
    finds_nothing = NoDetections()
    finds_nothing.background_channel = True
    watch = QualityWatch(finds_nothing, SimpleNamespace(imgToAnns={1: [entry]}))
    watch(logits, (ImageMeta(1, (16, 12), (32, 24), (2.0, 2.0)),))
    found = watch.samples()
    want = [24 * 32 / 1280, *[28 * 28 / 1264] * 2, 28 * 32 / 1152]
    assert sorted(found.iou[found.on_object]) == pytest.approx(want)
    assert set(found.class_scores) == {0.5}
