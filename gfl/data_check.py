"""The data set check: everything that is found in a config's data, as one table."""

from collections.abc import Callable

import numpy as np

from gfl import build
from gfl.automatic import Choices, choose_layout, choose_sizes, network_without_content
from gfl.build.data import coverage, has_split
from gfl.build.tiles import cut_advice
from gfl.config import SPLITS
from gfl.data.findings import KINDS, Findings
from gfl.data.overlap import shared_line
from gfl.distributed import local_device
from gfl.errors import UserError
from gfl.schema import Config

COLUMNS = ("split", "kind", "count", "policy", "where")
# What comes of a split that can not be used.
CONSEQUENCE, CONSEQUENCES = "no training", {"test": "no test"}


def check_data(
    config: Config, split: str = "all", show: Callable[[dict], None] = lambda report: None
) -> dict:
    """Read the data of a config as training does, without stopping at the first defect.

    Args:
        config: as for training.
        split: "train", "val", "test", or "all": what a training reads, and test if there is one.
        show: takes what is returned, also before an error is raised.

    Returns:
        {"splits": {split: {"counts", "classes", "findings", "reg_max", "tiles", "refused"}},
        "chosen": [...], "errors": [...], "warnings": [...]}; findings name every item, `refused`
        says why the split can not be used. `chosen` has key, value and reason of what is auto.
        `warnings` are about a test split, which no training reads, and images of both train and
        val.

    Raises:
        UserError: a training with this data would be refused (or the one split that was asked
            for can not be used); all reasons in one message.
    """
    config, chosen = choose_layout(config)
    splits = [split] if split != "all" else _splits(config)
    report: dict = {"splits": {}, "chosen": chosen, "errors": [], "warnings": []}
    names = strides = None
    datasets: dict = {}
    for name in splits:
        findings = Findings(config.data.policy.model_dump(), fail=False)
        dataset, refused = None, []
        try:
            dataset = build.build_dataset(config, name, names, findings)
            names = names or dataset.class_names
            build.agreed_num_classes(config, len(names))
            strides = strides or network_without_content(config, len(names)).neck.strides
            datasets[name] = dataset
            if name == "train":
                config, more = _choose_as_a_training(config, dataset)
                chosen += more
        except UserError as error:
            refused.append(str(error))
        refused += _failures(findings)
        is_trained_on = name != "test" or split == "test"
        if is_trained_on:
            report["errors"] += [f"{name}: {why}" for why in refused]
        else:
            report["warnings"] += [f"{name}: {why} A training reads no test." for why in refused]
        part = _describe(config, dataset, findings, strides)
        if name == "train" and dataset is not None and config.data.tiles is not None:
            tiles = build.build_tiles(config, dataset)
            part["tiles"] = {"counts": tiles.counts, "advice": cut_advice(config, tiles)}
        report["splits"][name] = part | {"refused": refused}
    if {"train", "val"} <= set(datasets) and config.data.overfit is None:
        shared = shared_line(datasets["train"], datasets["val"])
        report["warnings"] += [shared] if shared else []
    report["chosen"] = [choice._asdict() | {"shown": choice.shown} for choice in chosen]
    show(report)
    if report["errors"]:
        raise UserError("\n".join(report["errors"]))
    return report


def _choose_as_a_training(config: Config, dataset) -> Choices:
    """What a training chooses for its data; raises UserError for pictures that it refuses."""
    tiles = build.build_tiles(config, dataset)
    config, chosen = choose_sizes(config, tiles, local_device(config.device))
    build.build_augment(config, tiles)
    build.build_pad_to(config, tiles.sizes)
    return config, chosen


def _failures(findings: Findings) -> list[str]:
    """The refusal of what was found and must not be, if there is any."""
    failing = Findings(findings.policy)
    for finding in findings.all():
        if finding.policy == "fail":
            for item in finding.items:
                failing.add(finding.kind, item)
    try:
        failing.raise_failures()
    except UserError as error:
        return [str(error)]
    return []


def table(report: dict, width: int = 100) -> str:
    """What `check_data` returns as aligned text; the last column is cut to `width` characters."""
    rows = [
        ("auto", choice["key"], choice["shown"], "", choice["reason"])
        for choice in report["chosen"]
    ]
    rows += [row for name, part in report["splits"].items() for row in _rows(name, part)]
    rows += [
        (name, "refused", len(part["refused"]), CONSEQUENCES.get(name, CONSEQUENCE), why)
        for name, part in report["splits"].items()
        for why in part["refused"][:1]
    ]
    cells = [COLUMNS, *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(COLUMNS) - 1)]
    lines = []
    for row in cells:
        where = row[-1] if len(row[-1]) <= width else row[-1][: width - 3] + "..."
        lines.append("  ".join([*map(str.ljust, row, widths), where]).rstrip())
    return "\n".join(lines)


def _splits(config: Config) -> list[str]:
    """What a training reads, and test if there is one."""
    return [name for name in SPLITS if name != "test" or has_split(config.data, name)]


def _describe(config: Config, dataset, findings: Findings, strides: tuple | None) -> dict:
    part = {
        "findings": [
            {**finding._asdict(), "what": KINDS[finding.kind].what, "items": list(finding.items)}
            for finding in findings.all()
        ],
        "counts": {},
        "classes": {},
        "reg_max": [],
        "tiles": {},
    }
    if dataset is None:
        return part
    _, labels, index = dataset.objects()
    for label, name in enumerate(dataset.class_names):
        here = labels == label
        part["classes"][name] = {
            "category_id": int(dataset.category_ids[label]),
            "objects": int(here.sum()),
            "images": len(np.unique(index[here])),
        }
    counts = {key: dataset.report[key] for key in list(dataset.report)[:4]}
    if strides is None or {"data.train_size", "model.reg_max"} & set(config.auto_keys):
        return part | {"counts": counts}
    levels = coverage(config, dataset, strides)
    advice = [level._asdict() | {"advice": level.advice} for level in levels if level.edges]
    return part | {"counts": counts, "reg_max": advice}


def _rows(split: str, part: dict) -> list[tuple]:
    """The rows of a split, as `COLUMNS` names them."""
    rows = [(key, count, "", "") for key, count in part["counts"].items()]
    rows += [(key, count, "", "") for key, count in part["tiles"].get("counts", {}).items()]
    if part["tiles"].get("advice"):
        rows[-1] = (*rows[-1][:3], part["tiles"]["advice"])
    rows += [
        (f"class {name}", found["objects"], "", f"in {found['images']} images")
        for name, found in part["classes"].items()
    ]
    rows += [
        (finding["kind"], finding["count"], finding["policy"], ", ".join(finding["items"][:3]))
        for finding in part["findings"]
    ]
    rows += [
        ("beyond_reg_max", level["exceeding"], "", level["advice"])
        for level in part["reg_max"]
        if level["exceeding"]
    ]
    return [(split, *row) for row in rows]
