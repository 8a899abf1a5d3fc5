"""Judging a checkpoint: `gfl.evaluate`."""

from pathlib import Path

import torch

from gfl import build
from gfl.config import merge_overrides, parse_config
from gfl.conversion import open_checkpoint
from gfl.distributed import is_main, process_group
from gfl.engine.evaluate import evaluate as evaluate_model
from gfl.errors import UserError


def evaluate(
    checkpoint: str | Path,
    overrides: list[str] | None = None,
    split: str = "val",
    dataset=None,
    say=print,
) -> tuple[dict, list[dict]]:
    """COCO numbers of a checkpoint on a split.

    Args:
        checkpoint: a best.pt or last.pt, which carries its config and classes, or a public
            mmdetection, GFocal or GFocalV2 file.
        overrides: "key=value" changes of that config.
        split: "val" or "test" (or "train").
        dataset: in place of the config's.
        say: takes messages.

    Returns:
        The numbers of `gfl.engine.evaluate.coco_metrics` and all COCO result entries.
    """
    content = open_checkpoint(checkpoint)
    config = parse_config(merge_overrides(content["config"], overrides or []), str(checkpoint))
    names = tuple(content["class_map"]["names"])
    with process_group(config.device) as device:
        if dataset is None:
            dataset = build.build_dataset(config, split, names)
        model = build.build_model(config, len(names), load_pretrained=False)
        weights = content.get("ema") or content["model"]
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            reason = str(error)[:500]
            raise UserError(f"{checkpoint} does not fit the overridden config: {reason}") from None
        if is_main():
            kind = "ema" if content.get("ema") else content["weights"]
            say(f"{checkpoint}: {kind} weights of epoch {content['epoch']:g}, split {split}")
            for line in build.finding_lines(dataset):
                say(f"{split}: {line}")
        layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        return evaluate_model(
            model.to(device, memory_format=layout),
            build.build_eval_loader(config, dataset),
            build.build_postprocess(config),
            build.build_normalize(config, device),
            dataset,
            say,
        )
