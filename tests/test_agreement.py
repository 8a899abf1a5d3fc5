"""When two lists of detections are the same, nearly the same, and not."""

import pytest
import torch

from gfl.interop.agreement import Differences, Tolerance
from gfl.models.box_representation import GeneralBox
from gfl.postprocess import Postprocess
from gfl.structures import Detections

RULES = Postprocess(GeneralBox(8), score_threshold=0.05, nms_iou=0.6, max_per_image=4)
SQUARE = [0.0, 0.0, 100.0, 100.0]


def found(*rows) -> Detections:
    """Rows of box, score, label."""
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4)
    return Detections(
        boxes=boxes,
        scores=torch.tensor([float(row[1]) for row in rows]),
        labels=torch.tensor([row[2] for row in rows], dtype=torch.int64),
        edge_std=torch.ones(len(rows), 4),
    )


def compare(one, other, tolerance=None) -> Differences:
    differences = Differences()
    differences.add_detections(one, other, RULES, tolerance or Tolerance())
    return differences


def counts(differences) -> tuple[int, int, int]:
    return differences.same, differences.near, differences.wrong


def test_nothing_is_the_same_as_nothing():
    differences = compare(found(), found())
    assert counts(differences) == (0, 0, 0) and differences.within(Tolerance())


def test_pairs_are_found_whatever_their_order():
    far = [200.0, 200.0, 300.0, 300.02]
    one = found((SQUARE, 0.9, 0), ([200.0, 200.0, 300.0, 300.0], 0.9, 0))
    other = found((far, 0.90005, 0), (SQUARE, 0.9, 0))
    differences = compare(one, other)
    assert counts(differences) == (2, 0, 0) and differences.within(Tolerance())
    assert differences.largest["boxes"] == pytest.approx(0.02, abs=1e-4)
    assert differences.largest["scores"] == pytest.approx(5e-5, abs=1e-6)
    assert not differences.within(Tolerance(box=0.01))
    assert not differences.within(Tolerance(score=1e-5))


def test_another_class_another_place_and_one_too_many_are_wrong():
    one = found((SQUARE, 0.9, 0))
    assert counts(compare(one, found((SQUARE, 0.9, 1)))) == (0, 0, 2)
    assert counts(compare(one, found(([0.0, 0.0, 100.0, 97.0], 0.9, 0)))) == (0, 2, 0)  # a tie
    assert counts(compare(one, found(([0.0, 0.0, 100.0, 97.0], 0.8, 0)))) == (0, 0, 2)
    twice = found((SQUARE, 0.9, 0), ([200.0, 0.0, 260.0, 60.0], 0.5, 0))
    assert counts(compare(one, twice)) == (1, 0, 1)
    assert not compare(one, twice).within(Tolerance())


def test_a_score_at_the_threshold_is_forgiven():
    faint = [200.0, 0.0, 260.0, 60.0]
    one = found((SQUARE, 0.9, 0))
    assert counts(compare(one, found((SQUARE, 0.9, 0), (faint, 0.05005, 0)))) == (1, 1, 0)
    assert counts(compare(one, found((SQUARE, 0.9, 0), (faint, 0.0502, 0)))) == (1, 0, 1)


def test_an_overlap_at_the_limit_is_forgiven():
    # 60 of 100 columns: an IoU of 0.6.
    one = found((SQUARE, 0.9, 0))
    at_it = found((SQUARE, 0.9, 0), ([0.0, 0.0, 60.005, 100.0], 0.5, 0))
    assert counts(compare(one, at_it)) == (1, 1, 0)
    below = found((SQUARE, 0.9, 0), ([0.0, 0.0, 59.5, 100.0], 0.5, 0))
    assert counts(compare(one, below)) == (1, 0, 1)


def test_what_a_forgiven_one_suppresses_is_forgiven():
    # Second and third overlap by 0.8; the second is at the limit against the first.
    second, third = [0.0, 0.0, 60.005, 100.0], [0.0, 0.0, 48.0, 100.0]
    one = found((SQUARE, 0.9, 0), (second, 0.5, 0))
    other = found((SQUARE, 0.9, 0), (third, 0.4, 0))
    assert counts(compare(one, other)) == (1, 2, 0)


def test_a_rival_in_anothers_place_is_held_against_the_decisions():
    # The limit between the first and the second decides whether the third, which the second
    # suppresses, is in the list; second and third are a pair by their overlap of 0.995.
    second, third = [0.0, 0.0, 60.005, 100.0], [0.0, 0.0, 59.705, 100.0]
    one = found((SQUARE, 0.9, 0), (third, 0.4, 0))
    other = found((SQUARE, 0.9, 0), (second, 0.5, 0))
    candidates = found((SQUARE, 0.9, 0), (second, 0.5, 0), (third, 0.4, 0))
    rivals = Differences()
    rivals.add_detections(one, other, RULES, Tolerance(), candidates)
    assert counts(rivals) == (1, 2, 0) and rivals.within(Tolerance())
    # No candidate is like the third: then it is the second, computed wrongly.
    wrong = Differences()
    wrong.add_detections(one, other, RULES, Tolerance(), other)
    assert counts(wrong) == (2, 0, 0) and not wrong.within(Tolerance())
    # Far from a decision a rival has no excuse.
    second, third = [0.0, 0.0, 50.0, 100.0], [0.0, 0.0, 49.7, 100.0]
    one, other = found((SQUARE, 0.9, 0), (third, 0.4, 0)), found((SQUARE, 0.9, 0), (second, 0.5, 0))
    candidates = found((SQUARE, 0.9, 0), (second, 0.5, 0), (third, 0.4, 0))
    none = Differences()
    none.add_detections(one, other, RULES, Tolerance(), candidates)
    assert counts(none) == (1, 0, 2)


def test_the_end_of_a_full_list_is_forgiven():
    places = [[200.0 * n, 0.0, 200.0 * n + 60, 60.0] for n in range(6)]
    full = found(*((places[n], 0.9 - 0.1 * n, 0) for n in range(4)))
    shifted = found(*((places[n], 0.9 - 0.1 * n, 0) for n in (0, 1, 2, 4)))
    assert counts(compare(full, shifted)) == (3, 1, 1)
    tied = found(*((places[n], 0.9 - 0.1 * n, 0) for n in (0, 1, 2)), (places[5], 0.6, 0))
    assert counts(compare(full, tied)) == (3, 2, 0)


def test_a_nan_is_no_agreement():
    differences = Differences()
    differences.add("scores", torch.tensor([0.5, float("nan")]), torch.tensor([0.5, 0.5]))
    assert not differences.within(Tolerance(score=1e9))
