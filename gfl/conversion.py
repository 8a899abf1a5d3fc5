"""Public mmdetection, GFocal and GFocalV2 checkpoints as ours: `convert`, `open_checkpoint`."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import gfl
from gfl.build import build_model
from gfl.config import CONFIG_FOLDER, Config, load_config, merge_values, parse_config
from gfl.data.coco_classes import COCO_CLASSES
from gfl.engine.checkpoint import is_checkpoint, load_checkpoint, require_usable
from gfl.errors import UserError
from gfl.interop.mmdet import convert_state_dict
from gfl.interop.public_file import PublicFile, read_public_file
from gfl.interop.recognise import conventions, recognise_model, recognise_source
from gfl.work_dir import differences

# Names of each kind that a comparison prints.
SHOWN = 20


@dataclass(frozen=True)
class Comparison:
    """Names and shapes of a file's tensors against a network's.

    Attributes:
        matched: names that both have, in one shape.
        missing: names that only the network has.
        unexpected: names that only the file has.
        mismatched: name, the file's shape, the network's shape.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple, tuple], ...]

    def __str__(self) -> str:
        mismatched = [f"{n} (file {got}, network {want})" for n, got, want in self.mismatched]
        rows = [f"matched     {len(self.matched)}"]
        for title, names in (
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("mismatched", mismatched),
        ):
            rows.append(f"{title:11s} {len(names)}" + "".join(f"\n    {n}" for n in names[:SHOWN]))
            if len(names) > SHOWN:
                rows.append(f"    ... and {len(names) - SHOWN} more")
        return "\n".join(rows)


def compare(state: dict[str, Tensor], network: dict[str, Tensor]) -> Comparison:
    """Compare a state dict with a network's, name by name."""
    shared = [name for name in network if name in state]
    return Comparison(
        matched=tuple(n for n in shared if state[n].shape == network[n].shape),
        missing=tuple(name for name in network if name not in state),
        unexpected=tuple(name for name in state if name not in network),
        mismatched=tuple(
            (n, tuple(state[n].shape), tuple(network[n].shape))
            for n in shared
            if state[n].shape != network[n].shape
        ),
    )


def open_checkpoint(path: str | Path) -> dict:
    """The content of a checkpoint of ours, or of a public one, converted in memory.

    Raises:
        UserError: see `load_checkpoint` and `convert`.
    """
    exported = Path(path).suffix in (".onnx", ".pt2")
    if exported and os.path.isfile(path) and not is_checkpoint(path):
        use = ": gfl.load and gfl predict take it" if Path(path).suffix == ".onnx" else ""
        raise UserError(
            f"{path} is an exported network{use}; expected the checkpoint that it was made of "
            "(best.pt, last.pt or a public .pth)."
        )
    if not is_checkpoint(path):
        return convert(path)[0]
    return require_usable(load_checkpoint(path), path)


def restored_network(content: dict, config: Config, name: str) -> nn.Module:
    """The network of an opened checkpoint, with the weights to use: averages where there are some.

    Args:
        content: of the checkpoint.
        config: its own, or as overridden.
        name: of the file, for the message.

    Raises:
        UserError: weights and config do not fit.
    """
    with torch.random.fork_rng(devices=[]):  # the user's random numbers stay those that follow
        model = build_model(config, len(content["class_map"]["names"]), load_pretrained=False)
    try:
        model.load_state_dict(content.get("ema") or content["model"])
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:500]
        own = parse_config(content["config"], name).to_dict()["model"]
        changes = differences(own, config.to_dict()["model"], "model.")
        if changes:
            raise UserError(
                f"the weights of {name} do not fit the network that the overrides ask for "
                f"({'; '.join(changes)}): leave out what changes it. {reason}"
            ) from None
        raise UserError(
            f"{name} is damaged, or does not fit its config (with the overrides, if there are "
            f"any): {reason}"
        ) from None
    return model


def convert(path: str | Path, config: str | Path | None = None) -> tuple[dict, Comparison]:
    """Make a checkpoint of ours of a public one.

    Args:
        path: .pth of mmdetection, GFocal or GFocalV2.
        config: a config whose `model` section says the architecture, in place of recognising it;
            its conventions are then taken as they stand.

    Returns:
        What `save_checkpoint` takes (its `source` says where the weights come from), and the
        comparison, in which nothing is missing, unexpected or mismatched.

    Raises:
        UserError: the file is unsafe or none of ours to read, or does not fit; the message holds
            the comparison.
    """
    file = read_public_file(path)
    state = convert_state_dict(file.state)
    if config is None:
        try:
            chosen, name = _recognised_config(file, state)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    else:
        chosen, name = load_config(config), Path(config).stem
        chosen.require_chosen("data.test_size", "model.reg_max")
    channels = state["head.cls_out.bias"].shape[0] if "head.cls_out.bias" in state else None
    names, background = _classes(file, channels, chosen)
    if background:
        head = {"model": {"head": {"background_channel": True}}}
        chosen = parse_config(merge_values(chosen.to_dict(), head), name)
    with torch.device("meta"):
        network = build_model(chosen, len(names), load_pretrained=False).state_dict()
    for counter in (key for key in network if key.endswith(".num_batches_tracked")):
        state.setdefault(counter, torch.zeros((), dtype=torch.int64))  # absent before torch 1.1
    comparison = compare(state, network)
    if len(comparison.matched) != len(network) or comparison.unexpected:
        how = "which it looks like" if config is None else "which was given"
        raise UserError(
            f"{path} does not fit {name}, {how}:\n{comparison}\nIf it is another network, write a "
            "config whose model section is that network's and give it with --config FILE.yaml."
        )
    state = {key: _as_kind_of(network[key], state[key], f"{path}: {key}") for key in network}
    content = {
        "model": state,
        "weights": "converted",
        "class_map": {"names": list(names), "category_ids": _category_ids(names)},
        "config": chosen.to_dict(),
        "step": 0,
        "epoch": 0,
        "versions": {"gfl": gfl.__version__},
        "source": _source(file, name),
    }
    return content, comparison


def _source(file: PublicFile, config_name: str) -> dict:
    """Where the weights come from."""
    return {
        "file": file.path.name,
        "sha256": file.sha256,
        "project": recognise_source(file),
        "project_version": file.version,
        "licence": "Apache-2.0",
        "config": config_name,
        "left_out": list(file.dropped),
        "name_says_hash": _name_says_hash(file),
    }


def _as_kind_of(own: Tensor, theirs: Tensor, what: str) -> Tensor:
    """Their values in our precision; raises UserError unless they are finite, of our kind."""
    if own.is_floating_point() != theirs.is_floating_point() or theirs.is_complex():
        raise UserError(f"{what} is {theirs.dtype}, expected {own.dtype}: a damaged file?")
    values = theirs.detach().to(own.dtype).contiguous()
    if not values.isfinite().all():
        raise UserError(f"{what} holds values that are not finite: a damaged file?")
    return values


def _name_says_hash(file: PublicFile) -> bool | None:
    """Whether the hash in a name like x-25944287.pth is the file's; None without one.

    mmdetection's files carry the first eight digits of their sha256.
    """
    stated = re.search(r"-([0-9a-f]{8})\.pth$", file.path.name)
    return None if stated is None else file.sha256.startswith(stated[1])


def _recognised_config(file: PublicFile, state: dict[str, Tensor]) -> tuple[Config, str]:
    """The shipped config of the file's architecture, with the file's own conventions."""
    model = recognise_model(state)
    shipped = _shipped_name(model, file)
    name = shipped or f"a GFL detector on {model['backbone']['name']} (no shipped config has it)"
    values = merge_values(load_config(shipped or "gfl_r50_fpn_1x").to_dict(), {"model": model})
    return parse_config(merge_values(values, conventions(file)), name), name


def _shipped_name(model: dict, file: PublicFile) -> str | None:
    """The shipped config with this backbone and quality; of two, the schedule the file names."""

    def key(section: dict) -> tuple:
        backbone = section["backbone"]
        stages = tuple(backbone.get("deformable_stages", ()))
        return backbone["name"], stages, section.get("quality", "joint")

    fitting = []
    for path in sorted(CONFIG_FOLDER.glob("gfl*_fpn_*x.yaml")):
        shipped = load_config(path).model.model_dump()
        if key(shipped) == key(model):
            fitting.append(path.stem)
    if not fitting:
        return None
    longer = any(mark in file.path.name for mark in ("2x", "mstrain", "ms2x"))
    return fitting[-1] if longer else fitting[0]


def _classes(file: PublicFile, channels: int | None, config: Config) -> tuple[tuple, bool]:
    """Class names, and whether the last class channel is no class.

    Public GFLv2 files have one channel more than classes, since their loss is said to be no
    sigmoid's.
    """
    names = file.class_names or tuple(COCO_CLASSES.values())
    if channels in (None, len(names)):
        return names, config.model.head.background_channel
    if config.model.quality == "distribution_guided" and channels == len(names) + 1:
        return names, True
    if file.class_names is None:
        raise UserError(
            f"{file.path} has {channels} class channels and no class names in its meta: COCO's 80 "
            "do not fit. Put the names there: meta['CLASSES'] = (...)."
        )
    raise UserError(
        f"{file.path} names {len(names)} classes ({json.dumps(list(names)[:5])} ...), but its "
        f"class output has {channels} channels."
    )


def _category_ids(names: tuple[str, ...]) -> list[int]:
    """COCO's official ids if these are COCO's classes, else 1, 2, ..."""
    if names == tuple(COCO_CLASSES.values()):
        return list(COCO_CLASSES)
    return list(range(1, len(names) + 1))
