"""COCO evaluation: detections of every process, judged as pycocotools judges."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from gfl.data.batch import Normalize
from gfl.distributed import broadcast_object, gather_objects, is_main
from gfl.engine.box_evaluation import BoxEvaluation
from gfl.engine.curves import class_curves
from gfl.engine.diagnosis import diagnose
from gfl.engine.memory import explained, worker_losses_explained
from gfl.structures import Batch, Detections

METRICS = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
# An AP below this is printed as 0.000, and explained.
NOTHING = 0.0005
# What to lower when a batch does not fit into memory.
ADVICE = "train.eval_batch_size or data.test_size"


@torch.no_grad()
def detect(
    model: nn.Module,
    loader: Iterable[Batch],
    postprocess: Callable,
    normalize: Normalize,
    stop: Callable[[], bool] = lambda: False,
    mirrored: bool = False,
) -> tuple[dict[int, Detections], float]:
    """Run the detector over this process's share of a data set, or until `stop()`.

    A loader of tiles has a `new_join` (see `gfl.tiling.TileJoin`): what that makes takes the number
    and the detections of each tile, and gives those of pictures that are complete.

    Returns:
        Detections by image id, on the CPU, and the highest score of a class at any location.

    Raises:
        TrainingFailed: memory ran out.
    """
    model.eval()
    device = normalize.mean.device
    found, highest = {}, torch.zeros((), device=device)
    new_join = getattr(loader, "new_join", None)
    join = new_join() if new_join else lambda image_id, detections: {image_id: detections}
    for given in worker_losses_explained(loader):
        if stop():
            break
        with explained([given], ADVICE):
            batch = given.to(device, non_blocking=True)
            predictions = model(normalize(batch.images, batch.input_sizes))
            highest = torch.maximum(highest, postprocess.detection_scores(predictions).max())
            of_batch = postprocess(predictions, batch.metas, device="cpu")
            for meta, detections in zip(batch.metas, of_batch, strict=True):
                if mirrored:
                    detections = detections.mirrored(meta.original_size[1])
                found |= join(meta.image_id, detections)
    return found, highest.item()


def to_coco_results(found: dict[int, Detections], category_ids: tuple[int, ...]) -> list[dict]:
    """Detections as COCO result entries: xywh, original pixels, the data set's category ids."""
    return [
        entry
        for image_id, detections in found.items()
        for entry in replace(detections, category_ids=category_ids).to_coco(image_id)
    ]


def coco_evaluation(
    truth: COCO,
    results: list[dict],
    class_names: dict[int, str],
    max_per_image: int = 100,
    iou: float | None = None,
) -> COCOeval:
    """pycocotools' evaluation, accumulated; arguments as in `coco_metrics`.

    With `iou` it judges at this IoU and for objects of all sizes alone. The matching is done for
    all images at once; every value is that of pycocotools, which judges it in
    `tests/test_box_evaluation.py`.
    """
    evaluation = BoxEvaluation(truth, results)
    evaluation.params.catIds = sorted(class_names)
    evaluation.params.maxDets = sorted({1, 10, 100, max(100, max_per_image)})
    if iou is not None:
        evaluation.params.iouThrs = np.array([iou])
        evaluation.params.areaRng = evaluation.params.areaRng[:1]
        evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation


def coco_metrics(
    truth: COCO, results: list[dict], class_names: dict[int, str], max_per_image: int = 100
) -> dict:
    """The 12 COCO numbers and AP by class.

    Args:
        truth: ground truth with index.
        results: COCO result entries; none at all gives AP 0.
        class_names: name of each category id that is evaluated.
        max_per_image: detections of an image that count, at least 100.

    Returns:
        The names of `METRICS`, fractions in 0..1 (-1 where there is no such object), and
        `per_class`: {name: AP}, None for a class without objects, and `thresholds`: {name: score of
        the best F1}, None for a class without hits.
    """
    evaluation = coco_evaluation(truth, results, class_names, max_per_image)
    # precision: (IoU threshold, recall, class, area, max detections), recall likewise without
    # the second; both -1 where there is nothing to find.
    precision, recall = evaluation.eval["precision"], evaluation.eval["recall"]
    cuts = evaluation.params.maxDets
    numbers = [
        _mean(precision[:, :, :, 0, -1]),
        _mean(precision[0, :, :, 0, -1]),
        _mean(precision[5, :, :, 0, -1]),
        *(_mean(precision[:, :, :, area, -1]) for area in (1, 2, 3)),
        *(_mean(recall[:, :, 0, cuts.index(cut)]) for cut in (1, 10, 100)),
        *(_mean(recall[:, :, area, -1]) for area in (1, 2, 3)),
    ]
    per_class = {}
    for number, category_id in enumerate(evaluation.params.catIds):
        ap = _mean(precision[:, :, number, 0, -1])
        per_class[class_names[category_id]] = None if ap == -1 else ap
    return {
        **dict(zip(METRICS, numbers, strict=True)),
        "per_class": per_class,
        "thresholds": {
            class_names[category_id]: curve.threshold
            for category_id, curve in class_curves(evaluation).items()
        },
    }


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    postprocess: Callable,
    normalize: Normalize,
    dataset,
    say: Callable[[str], None],
    stop: Callable[[], bool] = lambda: False,
    views=None,
) -> tuple[dict | None, list[dict]]:
    """Detect on all processes, judge on the first.

    Args:
        model: the network.
        loader: this process's share of the images.
        postprocess, normalize: as in `detect`.
        dataset: has `ground_truth()`, `class_names`, `category_ids`.
        say: takes a diagnosis where AP is 0.
        stop: asked before each batch, by every process; true ends the detection.
        views: a `gfl.tta.ExtraViews`, or None.

    Returns:
        The numbers of `coco_metrics`, the same on every process, and all result entries. None
        and what there is where `stop` was true on any process.
    """
    found, highest = detect(model, loader, postprocess, normalize, stop)
    if views is not None:
        more = [
            detect(model, other, postprocess, normalize, stop, mirrored)[0]
            for other, mirrored in views.loaders
        ]
        found = _merged([found, *more], views.merge)
    shares = gather_objects((to_coco_results(found, dataset.category_ids), highest, stop()))
    results = list(itertools.chain.from_iterable(share for share, _, _ in shares))
    if any(stopped for _, _, stopped in shares):
        return None, results
    results.sort(key=lambda entry: entry["image_id"])  # stable: best first within an image
    metrics = None
    if is_main():
        class_names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
        truth = dataset.ground_truth()
        metrics = coco_metrics(truth, results, class_names, postprocess.max_per_image)
        if metrics["AP"] < NOTHING:
            highest = max(score for _, score, _ in shares)
            for line in diagnose(truth, results, class_names, highest, postprocess.score_threshold):
                say(line)
    return broadcast_object(metrics), results


def _merged(
    found: list[dict[int, Detections]], merge: Callable[[list[Detections]], Detections]
) -> dict[int, Detections]:
    """All views of all processes merged, on the first process; the others keep nothing.

    Processes get other images for other sizes, so that they have to be gathered first.
    """
    shares = gather_objects(found)
    if not is_main():
        return {}
    by_image: dict[int, list[Detections]] = {}
    for view in itertools.chain.from_iterable(shares):
        for image_id, detections in view.items():
            by_image.setdefault(image_id, []).append(detections)
    return {image_id: merge(parts) for image_id, parts in by_image.items()}


def _mean(values: np.ndarray) -> float:
    """Mean of what is defined, -1 where nothing is (as pycocotools' summary has it)."""
    values = values[values > -1]
    return float(values.mean()) if values.size else -1.0
