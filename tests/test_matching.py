"""Detections beside the true objects."""

import pytest
import torch

from gfl.analysis.matching import best_overlap, spearman


def test_each_detection_gets_the_object_of_its_class_it_overlaps_most():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 60]])
    true = torch.tensor([[0.0, 0, 10, 5], [0, 0, 10, 8], [0, 0, 10, 10]])
    iou = best_overlap(boxes, torch.tensor([0, 1, 0]), true, torch.tensor([0, 0, 1]))
    assert iou.tolist() == pytest.approx([0.8, 1.0, 0.0])


@pytest.mark.parametrize(("detections", "objects"), [(0, 2), (2, 0), (0, 0)])
def test_no_detections_or_no_objects(detections, objects):
    iou = best_overlap(
        torch.ones(detections, 4),
        torch.zeros(detections, dtype=torch.long),
        torch.ones(objects, 4),
        torch.zeros(objects, dtype=torch.long),
    )
    assert iou.tolist() == [0.0] * detections


def test_spearman_by_hand():
    # Ranks 0 1 2 3 against 0 2 1 3: 1 - 6 * (0 + 1 + 1 + 0) / (4 * 15) = 0.8
    assert spearman([1, 2, 3, 4], [10, 30, 20, 99]) == pytest.approx(0.8)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1.0)


def test_spearman_shares_the_rank_of_equal_values():
    # Ranks 0, 1.5, 1.5, 3 against 0 1 2 3.
    assert spearman([1, 5, 5, 9], [1, 2, 3, 4]) == pytest.approx(0.9486833)


@pytest.mark.parametrize("sample", [[], [1.0], [2.0, 2.0, 2.0]])
def test_spearman_of_nothing_to_rank(sample):
    assert spearman(sample, sample) is None
