"""The network that a student learns from: `distill.teacher` in the config."""

import torch

from gfl.config import Config, parse_config
from gfl.conversion import open_checkpoint, restored_network
from gfl.errors import UserError
from gfl.models.folding import folded, folded_blocks

# What teacher and student must agree on: where distributions lie, and what images look like.
AGREED = (
    ("model", "box"),
    ("model", "reg_max"),
    ("model", "bin_width"),
    ("model", "grid_origin"),
    ("data", "color_order"),
    ("data", "mean"),
    ("data", "std"),
)


def load_teacher(
    config: Config, student: torch.nn.Module, device: torch.device
) -> torch.nn.Module | None:
    """Make the network that the training loop asks; None where nothing is distilled.

    Its weights do not train, have no gradient and are in no checkpoint. Its classes may be others:
    side distributions are all that is taken.

    Args:
        config: of the student; `distill.teacher` names the file.
        student: the network that is trained.
        device: where both compute.

    Raises:
        UserError: the file can not be read, or its distributions lie elsewhere.
    """
    if config.distill.teacher is None:
        return None
    path = config.distill.teacher
    content = open_checkpoint(path)
    theirs = parse_config(content["config"], path)
    model = restored_network(content, theirs, path)
    facts = [
        (f"{section}.{key}", getattr(getattr(theirs, section), key), value)
        for section, key in AGREED
        for value in [getattr(getattr(config, section), key)]
    ]
    facts.append(("strides", model.neck.strides, student.neck.strides))
    facts.append(("anchors at a place", model.head.anchors_per_cell, student.head.anchors_per_cell))
    differing = [f"{name} is {its} there and {own} here" for name, its, own in facts if its != own]
    if differing:
        raise UserError(
            f"distill.teacher {path} can not teach this network: {'; '.join(differing)}. Train "
            "with the teacher's values, or choose another teacher."
        )
    model = model.eval().requires_grad_(False)
    model.backbone = folded(model.backbone)
    model.neck, model.head = folded_blocks(model.neck), folded_blocks(model.head)
    layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
    return model.to(device, memory_format=layout)
