"""Why AP is 0, for causes made by hand."""

import contextlib
import io

import pytest
from pycocotools.coco import COCO

from gfl.engine.diagnosis import diagnose

NAMES = {1: "cat", 2: "dog", 5: "cow"}
# Three images of 200 x 100, one object of each class.
OBJECTS = [(1, 1, [10, 10, 40, 40]), (2, 2, [60, 20, 50, 30]), (3, 5, [100, 50, 80, 40])]


@pytest.fixture
def truth():
    made = COCO()
    made.dataset = {
        "images": [{"id": i, "width": 200, "height": 100} for i in (1, 2, 3)],
        "categories": [{"id": i, "name": name} for i, name in NAMES.items()],
        "annotations": [
            {"id": n, "image_id": i, "category_id": c, "bbox": b, "area": b[2] * b[3], "iscrowd": 0}
            for n, (i, c, b) in enumerate(OBJECTS, 1)
        ],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        made.createIndex()
    return made


def detections(change_id=lambda i: i, change_box=lambda box: box) -> list[dict]:
    """A perfect detection of each object, changed."""
    return [
        {"image_id": i, "category_id": change_id(c), "bbox": change_box(b), "score": 0.9}
        for i, c, b in OBJECTS
    ]


def lines(truth, results, highest=0.9) -> str:
    return "\n".join(diagnose(truth, results, NAMES, highest, 0.05))


def test_scores_under_the_threshold(truth):
    text = lines(truth, [], highest=0.0123)
    assert "0 detections, highest score 0.0123, postprocess.score_threshold 0.05" in text
    assert "every score is under the threshold" in text
    assert "no box has an area" in lines(truth, [], highest=0.8)


def test_permuted_classes(truth):
    text = lines(truth, detections({1: 2, 2: 5, 5: 1}.get))
    assert "100.0% of the detections overlap an object at IoU 0.5" in text
    assert "AP with all classes taken as one: 1.0000" in text
    assert "AP with classes exchanged (cat -> cow, dog -> cat, cow -> dog): 1.0000" in text


def test_objects_of_classes_that_the_model_has_not(truth):
    known = {1: "cat", 2: "dog"}
    found = detections({5: 2}.get)[2:]  # a cow is called a dog
    text = "\n".join(diagnose(truth, found, known, 0.9, 0.05))
    assert "category ids [5] of objects are no class of the model" in text


def test_classes_that_are_right_are_not_exchanged(truth):
    text = lines(truth, detections())
    assert "taken as one: 1.0000" in text and "exchanged" not in text


@pytest.mark.parametrize(
    ("change", "side", "outside"),
    [
        (lambda box: [v * 3 for v in box], "3 times", "100%"),  # pixels of a resized image
        (lambda box: [v / 200 for v in box], "0.005 times", "0%"),  # 0 to 1
    ],
)
def test_boxes_in_another_frame(truth, change, side, outside):
    text = lines(truth, detections(change_box=change))
    assert "0.0% of the detections overlap" in text
    assert f"typical side is {side}" in text.replace("\n", " ") and "another frame" in text
    assert f"{outside} reach out of their image" in text


def test_boxes_of_the_right_size_at_wrong_places_are_not_blamed_on_the_frame(truth):
    text = lines(truth, detections(change_box=lambda box: [(box[0] + 60) % 140, *box[1:]]))
    assert "at wrong places" in text and "another frame" not in text


def test_category_ids_that_nobody_knows(truth):
    text = lines(truth, detections(lambda i: i + 90))
    assert "category ids [91, 92, 95] of detections are unknown to the ground truth" in text
    truth.dataset["annotations"][0]["category_id"] = 77
    assert "category ids [77] of objects are no class of the model" in lines(truth, detections())


def test_detections_in_images_without_objects_only(truth):
    truth.dataset["images"].append({"id": 9, "width": 200, "height": 100})
    truth.createIndex()
    [entry] = detections()[:1]
    assert "no detection lies in an image that has objects" in lines(
        truth, [{**entry, "image_id": 9}]
    )
