"""Our COCO evaluation beside pycocotools alone, on drawn detections."""

import contextlib
import io

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from gfl.benchmark.coco_sample import CLASSES, coco_detections, coco_truth
from gfl.benchmark.record import Record, record
from gfl.benchmark.setting import Setting
from gfl.benchmark.timing import interleaved
from gfl.engine.evaluate import METRICS, coco_metrics

FIGURE = "eval"
GOAL = 0.2


def coco_speed(setting: Setting) -> list[Record]:
    """Seconds of `coco_metrics` and of pycocotools, from the same result entries.

    Ours gives the AP and the recommended score of each class too.
    """
    truth = coco_truth(setting.eval_images)
    results = coco_detections(truth)
    names = {number: f"class {number}" for number in range(1, CLASSES + 1)}
    given: dict = {}

    def ours() -> None:
        metrics = coco_metrics(truth, results, names)
        given["gfl"] = [metrics[name] for name in METRICS]

    def theirs() -> None:
        given["pycocotools"] = pycocotools_numbers(truth, results)

    works = {"gfl": ours, "pycocotools": theirs}
    spreads = interleaved(works, setting.eval_repeats, warmup=0)
    return [
        record(
            FIGURE,
            f"COCO evaluation of {setting.eval_images} images, {len(results)} detections",
            "s",
            spreads["gfl"],
            spreads["pycocotools"],
            "pycocotools alone",
            GOAL if given["gfl"] == given["pycocotools"] else 0.0,  # no time is short enough then
            note=agreement(given["gfl"], given["pycocotools"]),
        )
    ]


def pycocotools_numbers(truth: COCO, results: list[dict]) -> list[float]:
    """The twelve numbers by pycocotools itself."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(truth, truth.loadRes([dict(entry) for entry in results]), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats.tolist()


def agreement(ours: list[float], theirs: list[float]) -> str:
    """Whether the twelve numbers are the same, in words."""
    if ours == theirs:
        return "all 12 numbers equal pycocotools' in every digit"
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return f"NUMBERS DIFFER from pycocotools' by up to {worst:.3g}"
