"""Curves over the score, recommended thresholds and the confusion matrix, worked by hand."""

import contextlib
import io

import cv2
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

import gfl.plots
from gfl.engine.curves import class_curves, confusion_matrix
from gfl.plots import save_confusion, save_curves


def truth_of(rows, images=(1, 2)) -> COCO:
    """Rows of (image, category, box xywh, crowd)."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": i, "width": 100, "height": 100} for i in images],
            "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
            "annotations": [
                {
                    "id": n + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": crowd,
                }
                for n, (image, category, box, crowd) in enumerate(rows)
            ],
        }
        coco.createIndex()
    return coco


def result(image, category, box, score) -> dict:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def curves_of(truth, results):
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluation.params.catIds = [3, 8]
        evaluation.evaluate()
    return class_curves(evaluation)


A, B, C = [10, 10, 20, 20], [50, 50, 20, 20], [10, 60, 20, 20]
TRUTH = [(1, 3, A, 0), (1, 3, B, 0), (2, 3, A, 0), (2, 8, B, 0)]


def test_curves_hand_worked():
    """cat: right 0.9, wrong 0.8, right 0.7, wrong 0.2 of three objects."""
    results = [
        result(1, 3, A, 0.9), result(1, 3, C, 0.8), result(1, 3, B, 0.7), result(2, 3, C, 0.2),
        result(2, 8, B, 0.6),
    ]  # fmt: skip
    curves = curves_of(truth_of(TRUTH), results)
    cat = curves[3]
    assert cat.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.2])
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2])
    assert cat.recall.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert cat.f1.tolist() == pytest.approx([0.5, 0.4, 2 / 3, 4 / 7])
    assert cat.threshold == pytest.approx(0.7)
    assert curves[8].threshold == pytest.approx(0.6)


def test_a_class_without_hits_or_objects_has_no_threshold():
    curves = curves_of(truth_of(TRUTH[:3]), [result(1, 3, C, 0.9), result(1, 8, A, 0.5)])
    assert curves[3].threshold is None and curves[8].threshold is None
    assert curves[8].recall.tolist() == [0.0]


def test_detections_in_a_crowd_count_neither_way():
    truth = truth_of([(1, 3, A, 0), (1, 3, [40, 40, 50, 50], 1)])
    cat = curves_of(truth, [result(1, 3, A, 0.6), result(1, 3, B, 0.9)])[3]
    assert cat.scores.tolist() == pytest.approx([0.6]) and cat.precision.tolist() == [1.0]


def test_confusion_hand_worked():
    results = [
        result(1, 3, A, 0.9),  # right
        result(1, 8, B, 0.8),  # a cat taken for a dog
        result(1, 3, C, 0.7),  # nothing there
        result(2, 3, A, 0.1),  # below the threshold: its object is missed
    ]
    matrix, ids = confusion_matrix(truth_of(TRUTH), results, {3: 0.5, 8: 0.5})
    assert ids == [3, 8]
    assert matrix.tolist() == [[1, 1, 1], [0, 0, 1], [1, 0, 0]]


def test_each_object_is_matched_once_and_crowds_excuse():
    truth = truth_of([(1, 3, A, 0), (1, 3, [40, 40, 50, 50], 1)])
    results = [result(1, 3, A, 0.9), result(1, 3, A, 0.8), result(1, 8, B, 0.7)]
    matrix, _ = confusion_matrix(truth, results, {3: 0.5, 8: 0.5})
    assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_no_detections_and_no_objects():
    matrix, _ = confusion_matrix(truth_of(TRUTH), [], {3: 0.5, 8: 0.5})
    assert matrix.tolist() == [[0, 0, 3], [0, 0, 1], [0, 0, 0]]
    matrix, _ = confusion_matrix(truth_of([]), [result(1, 3, A, 0.9)], {3: 0.5, 8: 0.5})
    assert matrix.tolist() == [[0, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_plots_are_pictures(tmp_path):
    curves = curves_of(truth_of(TRUTH), [result(1, 3, A, 0.9), result(2, 8, B, 0.6)])
    files = save_curves(tmp_path, {"cat": curves[3], "dog": curves[8]})
    files.append(
        save_confusion(tmp_path, np.array([[3, 1, 0], [0, 2, 1], [1, 0, 0]]), ["cat", "dog"])
    )
    assert {f.name for f in files} == {"precision_recall.png", "f1.png", "confusion.png"}
    for file in files:
        assert cv2.imread(str(file)).std() > 5
    save_curves(tmp_path, {})


@pytest.mark.parametrize("name", ["$%$", "coin_$1$_$2_$", "$5_$10", "_hidden"])
def test_class_names_are_no_formulas(name, tmp_path, monkeypatch):
    kept = []
    real = gfl.plots._save
    monkeypatch.setattr(gfl.plots, "_save", lambda *a: kept.append(a[0]) or real(*a))
    curves = curves_of(truth_of(TRUTH), [result(1, 3, A, 0.9)])
    save_curves(tmp_path, {name: curves[3]})
    save_confusion(tmp_path, np.array([[3, 1], [2, 0]]), [name])
    [text] = kept[0].axes[0].get_legend().get_texts()
    assert text.get_text() == name


def test_confusion_says_what_rows_and_columns_are(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(gfl.plots, "_save", lambda figure, path: kept.append(figure))
    save_confusion(tmp_path, np.array([[3, 1], [2, 0]]), ["cat"])
    [axes], note = kept[0].axes, kept[0].get_supxlabel()
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "detected as")
    assert axes.get_title() == "What became of each object"
    assert "Last column: objects that were missed. Last row: detections of nothing." in note
    figure = kept[0]
    figure.canvas.draw()
    inside = figure._supxlabel.get_window_extent()
    assert inside.x0 >= 0 and inside.x1 <= figure.bbox.x1  # nothing is cut off
