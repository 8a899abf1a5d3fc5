"""Kinds of mistakes and what mending them gains, on splits small enough to do by hand."""

import pytest
from test_matched import BOX, FAR, RIGHT, split_of

from gfl.analysis.mending import error_analysis
from gfl.analysis.tide import KINDS

# IoU with BOX (40 x 40): 0.25, by half of its width and height.
CORNER = (10, 10, 30, 30)
NOWHERE = (60, 60, 80, 80)


def counts(errors: dict) -> dict[str, int]:
    return {name: one["count"] for name, one in errors["kinds"].items() if one["count"]}


def gains(errors: dict) -> dict[str, float]:
    return {name: one["gain"] for name, one in errors["kinds"].items() if abs(one["gain"]) > 1e-9}


def test_one_mistake_of_each_kind():
    errors = error_analysis(
        split_of(
            [[(0, BOX), (1, RIGHT), (0, FAR)], [(0, BOX), (0, RIGHT)]],
            [
                [
                    (0, 0.9, BOX),  # right
                    (0, 0.8, (10, 10, 50, 45)),  # duplicate
                    (0, 0.7, RIGHT),  # a dog
                    (1, 0.6, CORNER),  # a cat, badly placed
                    (0, 0.5, NOWHERE),  # background
                ],
                [(0, 0.4, CORNER)],
            ],
        )
    )
    assert (errors["right"], errors["ignored"]) == (1, 0)
    # FAR and RIGHT of the second image are missed; RIGHT of the first is a classification's.
    assert counts(errors) == {
        "classification": 1, "localisation": 1, "both": 1, "duplicate": 1, "background": 1,
        "missed": 2,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("objects", "found", "kind", "before", "after"),
    [
        # A wrong detection above the only right one: precision 1/2 at all recalls.
        ([(0, BOX)], [(0, 0.9, NOWHERE), (0, 0.8, BOX)], "background", 0.5, 1.0),
        ([(0, BOX), (1, RIGHT)], [(0, 0.9, (102, 32, 138, 66)), (0, 0.8, BOX), (1, 0.7, RIGHT)],
         "both", 0.75, 1.0),
        # The class is all that is wrong.
        ([(0, BOX)], [(1, 0.9, BOX)], "classification", 0.0, 1.0),
        # The place is all that is wrong.
        ([(0, BOX)], [(0, 0.9, CORNER)], "localisation", 0.0, 1.0),
        # Of two objects one is missed: AP50 is 51 of pycocotools' 101 recalls.
        ([(0, BOX), (0, FAR)], [(0, 0.9, BOX)], "missed", 51 / 101, 1.0),
    ],
)  # fmt: skip
def test_what_mending_gains(objects, found, kind, before, after):
    errors = error_analysis(split_of([objects], [found]))
    assert errors["AP50"] == pytest.approx(before)
    assert gains(errors) == {kind: pytest.approx(after - before)}


def test_a_duplicate_between_two_right_ones():
    # Right, wrong, right: precision 1 up to recall 0.5 (51 recalls), then 2/3 (50 recalls).
    objects = [(0, BOX), (0, FAR)]
    found = [(0, 0.9, BOX), (0, 0.8, (10, 10, 50, 48)), (0, 0.7, FAR)]
    errors = error_analysis(split_of([objects], [found]))
    assert errors["AP50"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert gains(errors) == {"duplicate": pytest.approx(1 - errors["AP50"])}


def test_of_two_mistakes_about_one_object_the_better_becomes_right():
    found = [(0, 0.9, CORNER), (0, 0.8, (30, 30, 50, 50))]
    errors = error_analysis(split_of([[(0, BOX)]], [found]))
    assert counts(errors) == {"localisation": 2}
    assert gains(errors) == {"localisation": pytest.approx(1.0)}


def test_a_mistake_about_an_object_that_is_found_is_left_out():
    found = [(0, 0.9, CORNER), (0, 0.8, BOX)]
    errors = error_analysis(split_of([[(0, BOX)]], [found]))
    assert errors["AP50"] == pytest.approx(0.5)
    assert gains(errors) == {"localisation": pytest.approx(0.5)}


def test_a_class_of_which_all_is_missed_keeps_its_place_in_the_mean():
    objects = [(0, BOX), (1, FAR)]
    errors = error_analysis(split_of([objects], [[(0, 0.9, BOX)]]))
    assert errors["AP50"] == pytest.approx(0.5)
    assert counts(errors) == {"missed": 1} and gains(errors) == {"missed": pytest.approx(0.5)}
    # A false detection of the class stays false when there is nothing of it left to find.
    errors = error_analysis(split_of([objects], [[(0, 0.9, BOX), (1, 0.8, NOWHERE)]]))
    assert errors["kinds"]["missed"] == {"count": 1, "gain": pytest.approx(0.0)}


def test_the_first_test_that_fits_decides():
    # Overlaps a cat badly (0.25) and a dog well (0.5 and more): localisation comes first.
    dog = (10, 10, 30, 34)
    errors = error_analysis(split_of([[(0, BOX), (1, dog)]], [[(0, 0.9, CORNER)]]))
    assert counts(errors) == {"localisation": 1, "missed": 1}


def test_detections_in_crowds_are_no_mistakes():
    objects = [(0, BOX), (0, (100, 0, 200, 100), "crowd")]
    found = [(0, 0.9, BOX), (0, 0.8, (110, 10, 140, 40))]
    errors = error_analysis(split_of([objects], [found]))
    assert counts(errors) == {} and errors["ignored"] == 1
    assert errors["AP50"] == pytest.approx(1.0)


@pytest.mark.parametrize("found", [[], [(0, 0.9, BOX)]])
def test_nothing_there(found):
    errors = error_analysis(split_of([[]], [found]))
    assert errors["AP50"] is None
    assert {one["gain"] for one in errors["kinds"].values()} == {None}
    assert counts(errors) == ({"background": 1} if found else {})


def test_nothing_found():
    errors = error_analysis(split_of([[(0, BOX), (1, FAR)]], [[]]))
    assert errors["AP50"] == 0.0 and counts(errors) == {"missed": 2}
    assert list(errors["kinds"]) == list(KINDS) and errors["kinds"]["missed"]["gain"] == 1.0
