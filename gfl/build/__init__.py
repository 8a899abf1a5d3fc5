"""Config to objects. The only place that turns names into classes.

The tables are public: add an entry to bring in a part of your own, then name it in the config.
"""

from gfl.build.augment import build_augment
from gfl.build.data import build_dataset, build_normalize, data_warnings, finding_lines
from gfl.build.loaders import build_eval_loader, build_train_loader
from gfl.build.model import (
    ASSIGNERS,
    BACKBONES,
    BOX_REPRESENTATIONS,
    HEADS,
    NECKS,
    agreed_num_classes,
    build_box_representation,
    build_criterion,
    build_model,
    build_postprocess,
)
from gfl.build.shapes import build_pad_to, shape_lines
from gfl.build.tiles import build_tiles
from gfl.build.train import build_loop_options, build_schedule, build_state

__all__ = [
    "ASSIGNERS",
    "BACKBONES",
    "BOX_REPRESENTATIONS",
    "HEADS",
    "NECKS",
    "agreed_num_classes",
    "build_augment",
    "build_box_representation",
    "build_criterion",
    "build_dataset",
    "build_eval_loader",
    "build_loop_options",
    "build_model",
    "build_normalize",
    "build_pad_to",
    "build_postprocess",
    "build_schedule",
    "build_state",
    "build_tiles",
    "build_train_loader",
    "data_warnings",
    "finding_lines",
    "shape_lines",
]
