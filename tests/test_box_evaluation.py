"""Our matching against pycocotools', value by value."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl.benchmark.coco_sample import coco_detections, coco_truth
from gfl.engine.box_evaluation import BoxEvaluation


def quietly(work, *args):
    with contextlib.redirect_stdout(io.StringIO()):
        return work(*args)


def coco(images: int, annotations: list[dict], classes: int) -> COCO:
    truth = COCO()
    truth.dataset = {
        "images": [{"id": 5 * i, "width": 400, "height": 400} for i in range(images)],
        "annotations": annotations,
        "categories": [{"id": 3 * c + 1, "name": f"c{c}"} for c in range(classes)],
    }
    quietly(truth.createIndex)
    return truth


def crowded(seed: int, first_id: int = 1) -> tuple[COCO, list[dict]]:
    """Small whole-number boxes in few places: equal IoUs, equal scores, crowds, many matches."""
    rng = np.random.default_rng(seed)
    images, classes = 6, 3

    def box():
        corner, sides = rng.integers(0, 12, 2) * 4, rng.choice([8, 30, 40, 100, 200], 2)
        return [float(v) for v in (*corner, *sides)]

    annotations = []
    for image in range(images):
        for _ in range(rng.integers(0, 12)):
            x, y, w, h = box()
            annotations.append(
                {
                    "id": len(annotations) + first_id,
                    "image_id": 5 * image,
                    "category_id": 3 * int(rng.integers(classes)) + 1,
                    "bbox": [x, y, w, h],
                    "area": w * h * rng.choice([1.0, 0.5]),
                    "iscrowd": int(rng.random() < 0.2),
                }
            )
    results = []
    for _ in range(300):
        known = annotations and rng.random() < 0.6
        near = annotations[rng.integers(len(annotations))] if known else None
        results.append(
            {
                "image_id": near["image_id"] if near else 5 * int(rng.integers(images)),
                "category_id": near["category_id"] if near else 3 * int(rng.integers(classes)) + 1,
                "bbox": [v + float(rng.integers(0, 3)) for v in near["bbox"]] if near else box(),
                "score": round(float(rng.random()), 1),
            }
        )
    return coco(images, annotations, classes), results


def both(truth: COCO, results: list[dict], change=lambda params: None):
    """The evaluation of pycocotools and ours, accumulated."""
    want = COCOeval(truth, quietly(truth.loadRes, copy.deepcopy(results)), "bbox")
    got = BoxEvaluation(truth, results)
    for evaluation in (want, got):
        change(evaluation.params)
        quietly(evaluation.evaluate)
        quietly(evaluation.accumulate)
    return want, got


def assert_same(want: COCOeval, got: BoxEvaluation) -> None:
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(got.eval[name], want.eval[name], err_msg=name)
    assert got.eval["counts"] == want.eval["counts"]
    assert len(got.evalImgs) == len(want.evalImgs)
    for mine, theirs in zip(got.evalImgs, want.evalImgs, strict=True):
        assert (mine is None) == (theirs is None)
        for key in theirs or ():
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)
    quietly(want.summarize)
    quietly(got.summarize)
    assert got.stats.tolist() == want.stats.tolist()


@pytest.mark.parametrize("seed", range(6))
def test_every_value_is_that_of_pycocotools(seed):
    want, got = both(*crowded(seed))
    assert_same(want, got)
    assert 0 < want.stats[0] < 1


def test_a_sample_of_cocos_proportions():
    truth = coco_truth(40)
    want, got = both(truth, coco_detections(truth))
    assert_same(want, got)
    assert 0.1 < want.stats[0] < 0.9


def test_other_parameters():
    def change(params):
        params.imgIds = [0, 10, 20]
        params.catIds = [7, 1]
        params.maxDets = [300, 1, 10, 100]
        params.iouThrs = np.array([0.3, 0.5, 1.0])

    truth, results = crowded(7)
    want, got = both(truth, results, change)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(got.eval[name], want.eval[name], err_msg=name)
    assert got.params.maxDets == [1, 10, 100, 300]


def test_one_iou_and_all_sizes_alone():
    def change(params):
        params.iouThrs = np.array([0.5])
        params.areaRng, params.areaRngLbl = params.areaRng[:1], params.areaRngLbl[:1]

    want, got = both(*crowded(15), change)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(got.eval[name], want.eval[name], err_msg=name)
    for mine, theirs in zip(got.evalImgs, want.evalImgs, strict=True):
        assert (mine is None) == (theirs is None)
        for key in theirs or ():
            np.testing.assert_array_equal(mine[key], theirs[key], err_msg=key)


def test_small_limits_cut_the_same_detections():
    def change(params):
        params.maxDets = [1, 2, 5]

    truth, results = crowded(8)
    want, got = both(truth, results, change)
    for name in ("precision", "recall", "scores"):
        np.testing.assert_array_equal(got.eval[name], want.eval[name], err_msg=name)


def test_an_object_of_id_0_is_never_found_as_in_pycocotools():
    want, got = both(*crowded(9, first_id=0))
    assert_same(want, got)


def test_images_without_objects_and_objects_without_detections():
    truth, results = crowded(10)
    results = [entry for entry in results if entry["image_id"] == 5]
    assert_same(*both(truth, results))
    nobody = coco(6, [], 3)
    want, got = both(nobody, results)
    assert_same(want, got)
    assert got.stats[0] == -1


def test_no_detection_at_all():
    truth, _ = crowded(11)
    got = BoxEvaluation(truth, [])
    got.evaluate()
    got.accumulate()
    precision = got.eval["precision"]
    assert set(np.unique(precision)) == {-1.0, 0.0}
    assert [item["dtIds"] for item in got.evalImgs if item] == [[]] * sum(
        item is not None for item in got.evalImgs
    )


def test_nothing_that_is_given_is_changed():
    truth, results = crowded(12)
    before = copy.deepcopy((truth.dataset, results))
    got = BoxEvaluation(truth, results)
    got.evaluate()
    got.accumulate()
    assert (truth.dataset, results) == before


def test_results_of_an_unknown_image_are_no_oversight():
    truth, results = crowded(13)
    with pytest.raises(AssertionError, match=r"lacks: \[3\]"):
        BoxEvaluation(truth, [*results, {**results[0], "image_id": 3}])


def test_entries_are_found_by_number_and_by_slice():
    _, got = both(*crowded(14))
    images = got.evalImgs
    assert len(images[2:7]) == 5
    assert images[-1] is None or images[-1]["image_id"] == 25
    with pytest.raises(IndexError):
        images[len(images)]


@pytest.mark.parametrize("seed", range(4))
def test_hostile_boxes_classes_and_scores_are_judged_alike(seed):
    """Boxes without area, beyond the picture and huge; unknown classes; float32; a lone image."""
    rng = np.random.default_rng(seed)
    odd = [[8.0, 8, 0, 12], [0.0, 0, 0, 0], [-5.0, -7, 30, 40], [5e8, 0, 1e9, 3e8]]

    def box():
        if rng.random() < 0.5:
            return odd[rng.integers(4)]
        return [float(np.float32(v)) for v in (*rng.random(2) * 9, *(20 + rng.random(2) * 60))]

    annotations = [
        {
            "id": n + 1,
            "image_id": 5 * int(rng.choice([0, 1, 2, 4])),  # nothing is in the fourth
            "category_id": int(rng.choice([1, 4])),  # and nothing is of the third class
            "bbox": (own := box()),
            "area": own[2] * own[3] * float(rng.choice([0, 0.5, 1])),
            "iscrowd": int(rng.random() < 0.3),
            "ignore": int(rng.random() < 0.3),
        }
        for n in range(40)
    ]
    results = [
        {
            "image_id": 5 * int(rng.integers(5)),
            "category_id": int(rng.choice([1, 4, 7, 99])),
            "bbox": box() if rng.random() < 0.4 else annotations[rng.integers(40)]["bbox"],
            "score": np.float32(rng.integers(1, 11) / 10),
        }
        for _ in range(300)
    ]
    want, got = both(coco(5, annotations, 3), results)
    assert_same(want, got)
    assert 0 < want.stats[0] < 1
