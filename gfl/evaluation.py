"""Judging a checkpoint: `gfl.evaluate`."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gfl import build
from gfl.automatic import choose_layout
from gfl.config import Config, merge_overrides, parse_config
from gfl.conversion import open_checkpoint, restored_network
from gfl.data.own_dataset import completed
from gfl.detections import DEFAULT_THRESHOLD
from gfl.distributed import is_main, process_group
from gfl.engine.curves import class_curves, confusion_matrix
from gfl.engine.evaluate import coco_evaluation
from gfl.engine.evaluate import evaluate as evaluate_model
from gfl.errors import UserError
from gfl.tta import extra_views


def evaluate(
    checkpoint: str | Path,
    overrides: list[str] | None = None,
    split: str = "val",
    dataset=None,
    say=print,
    flip: bool = False,
    scales: Sequence[int] = (),
    plots: str | Path | None = None,
    outputs: Sequence[str | None] = (),
) -> tuple[dict, list[dict]]:
    """COCO numbers of a checkpoint on a split.

    Args:
        checkpoint: a best.pt or last.pt, which carries its config and classes, or a public
            mmdetection, GFocal or GFocalV2 file.
        overrides: "key=value" changes of that config.
        split: "val" or "test" (or "train").
        dataset: in place of the config's, as `gfl.train` takes one.
        say: takes messages.
        flip: look at mirrored images too.
        scales: more short sides, pixels, to look at.
        plots: folder for precision_recall.png, f1.png and confusion.png.
        outputs: files that the caller will write; those of the data set are refused.

    Returns:
        The numbers of `gfl.engine.evaluate.coco_metrics` and all COCO result entries.
    """
    content = open_checkpoint(checkpoint)
    config = parse_config(merge_overrides(content["config"], overrides or []), str(checkpoint))
    config.data.spare(*outputs)
    names = tuple(content["class_map"]["names"])
    with process_group(config.device) as device:
        config, dataset = _data(config, split, names, dataset)
        model = restored_network(content, config, str(checkpoint))
        if plots is not None and is_main():
            _make_folder(Path(plots))
        views = extra_views(config, dataset, flip, scales)
        if is_main():
            count = 1 + (len(views.loaders) if views else 0)
            say(_introduction(content, str(checkpoint), split, count))
            for line in build.finding_lines(dataset):
                say(f"{split}: {line}")
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        metrics, results = evaluate_model(
            model.to(device, memory_format=layout),
            build.build_eval_loader(config, dataset),
            build.build_postprocess(config),
            build.build_normalize(config, device),
            dataset,
            say,
            views=views,
        )
        if plots is not None and is_main():
            say(_plotted(Path(plots), dataset, results, metrics["thresholds"]))
        return metrics, results


def _data(config: Config, split: str, names: tuple[str, ...], given) -> tuple:
    """The config without auto in what is read, and the data set: the config's, or the given one."""
    if given is not None:
        return config, completed(given, names, evaluated=True)
    config, _ = choose_layout(config)
    dataset = build.build_dataset(config, split, names)
    dataset.require_distinct_image_ids()
    return config, dataset


def _introduction(content: dict, name: str, split: str, views: int) -> str:
    kind = "ema" if content.get("ema") else content["weights"]
    merged = f", {views} views of each image merged" if views > 1 else ""
    return f"{name}: {kind} weights of epoch {content['epoch']:g}, split {split}{merged}"


def _plotted(folder: Path, dataset, results: list[dict], thresholds: dict) -> str:
    """Draw; what became of it, in words: numbers are not lost with their plots."""
    from gfl import plots

    names = dict(zip(dataset.category_ids, dataset.class_names, strict=True))
    truth = dataset.ground_truth()
    curves = class_curves(coco_evaluation(truth, results, names))
    cuts = {i: thresholds[name] or DEFAULT_THRESHOLD for i, name in names.items()}
    matrix, ids = confusion_matrix(truth, results, cuts)
    try:
        plots.save_curves(folder, {names[i]: curve for i, curve in curves.items()})
        plots.save_confusion(folder, matrix, [names[i] for i in ids])
    except OSError as error:
        return f"WARNING: cannot write plots to {folder}: {error.strerror or error}"
    return f"precision_recall.png, f1.png and confusion.png are in {folder}"


def _make_folder(folder: Path) -> None:
    """Before the work is done, so that a slip in the name does not cost it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
