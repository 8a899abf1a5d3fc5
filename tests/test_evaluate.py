"""AP against pycocotools itself, and the cases that trip evaluators."""

import contextlib
import io

import numpy as np
import pytest
import torch
from builders import tiny_config, write_coco
from pycocotools.cocoeval import COCOeval

from gfl import build
from gfl.data.dataset import CocoDataset
from gfl.engine.evaluate import METRICS, coco_metrics, detect, to_coco_results
from gfl.structures import Detections


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_coco(tmp_path_factory.mktemp("coco") / "set", {"val": 12}, empty_every=5)
    return CocoDataset([(folder / "images", folder / "annotations" / "val.json")])


def noisy_results(truth, per_object: int = 3, spread: float = 6.0) -> list[dict]:
    rng = np.random.default_rng(0)
    results = []
    for annotation in truth.dataset["annotations"]:
        for _ in range(per_object):
            results.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if rng.random() < 0.9 else 3,
                    "bbox": (np.array(annotation["bbox"]) + rng.normal(0, spread, 4)).tolist(),
                    "score": float(rng.random()),
                }
            )
    return results


def pycocotools_summary(truth, results) -> list[float]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes([dict(r) for r in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def names_of(dataset) -> dict:
    return dict(zip(dataset.category_ids, dataset.class_names, strict=True))


def test_the_twelve_numbers_are_those_of_pycocotools(dataset):
    truth = dataset.ground_truth()
    results = noisy_results(truth)
    metrics = coco_metrics(truth, results, names_of(dataset))
    want = pycocotools_summary(truth, results)
    assert 0.05 < want[0] < 0.95
    assert [metrics[name] for name in METRICS] == pytest.approx(want, abs=1e-12)
    assert list(metrics["per_class"]) == ["square", "disc"]
    assert np.mean(list(metrics["per_class"].values())) == pytest.approx(metrics["AP"])


def test_perfect_detections_have_ap_one(dataset):
    truth = dataset.ground_truth()
    results = noisy_results(truth, per_object=1, spread=0.0)
    for entry, annotation in zip(results, truth.dataset["annotations"], strict=True):
        entry["category_id"] = annotation["category_id"]
    assert coco_metrics(truth, results, names_of(dataset))["AP"] == pytest.approx(1.0)


def test_no_detection_at_all_is_ap_zero(dataset):
    metrics = coco_metrics(dataset.ground_truth(), [], names_of(dataset))
    assert metrics["AP"] == 0 and metrics["AR100"] == 0
    assert metrics["APl"] == -1  # the set has no large object


def test_a_class_without_objects_has_no_ap_and_leaves_the_mean_alone(dataset):
    truth = dataset.ground_truth()
    results = noisy_results(truth)
    before = coco_metrics(truth, results, names_of(dataset))
    truth.dataset["categories"].append({"id": 11, "name": "absent"})
    truth.createIndex()
    after = coco_metrics(truth, results, {**names_of(dataset), 11: "absent"})
    assert after["per_class"]["absent"] is None
    assert after["AP"] == before["AP"]


def test_more_than_100_detections_count_when_asked(dataset):
    truth = dataset.ground_truth()
    image = truth.dataset["annotations"][0]["image_id"]
    good = [r for r in noisy_results(truth, 1, 0.0) if r["image_id"] == image]
    for entry, annotation in zip(
        good, [a for a in truth.dataset["annotations"] if a["image_id"] == image], strict=True
    ):
        entry.update(category_id=annotation["category_id"], score=0.1)
    noise = [
        {"image_id": image, "category_id": c, "bbox": [0, 0, 3, 3], "score": 0.9}
        for c in dataset.category_ids
        for _ in range(120)
    ]
    capped = coco_metrics(truth, noise + good, names_of(dataset), max_per_image=100)
    full = coco_metrics(truth, noise + good, names_of(dataset), max_per_image=300)
    assert capped["AP"] == 0
    assert full["AP"] > 0 and full["AR100"] == 0


def test_results_have_original_ids_and_xywh():
    detections = Detections(
        torch.tensor([[10.0, 20.0, 40.0, 60.0]]),
        torch.tensor([0.75]),
        torch.tensor([1]),
        torch.zeros(1, 4),
    )
    assert to_coco_results({77: detections}, (3, 90)) == [
        {"image_id": 77, "category_id": 90, "bbox": [10.0, 20.0, 30.0, 40.0], "score": 0.75}
    ]


def test_the_highest_score_told_is_a_class_ones_not_the_backgrounds(tmp_path):
    folder = write_coco(tmp_path / "set", {"val": 2})
    config = tiny_config(folder).with_values({"model.head.background_channel": True})
    dataset = build.build_dataset(config, "val")
    model = build.build_model(config, len(dataset.class_names))
    torch.nn.init.zeros_(model.head.cls_out.weight)
    model.head.cls_out.bias.data = torch.tensor([-3.0] * len(dataset.class_names) + [9.0])
    loader, postprocess = build.build_eval_loader(config, dataset), build.build_postprocess(config)
    normalize = build.build_normalize(config, torch.device("cpu"))
    _, highest = detect(model, loader, postprocess, normalize)
    assert highest == pytest.approx(torch.tensor(-3.0).sigmoid().item())
