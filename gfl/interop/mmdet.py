"""Parameter names of mmdetection's GFL, and ours. Backbones share torchvision's names."""

import re

from torch import Tensor

# (pattern, replacement), tried in order; a replacement of None drops the entry.
RENAMES: tuple[tuple[str, str | None], ...] = (
    (r"bbox_head\.integral\.project", None),  # a constant
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1."),
    (r"neck\.fpn_convs\.([012])\.conv\.", r"neck.output.\1."),
    (r"neck\.fpn_convs\.3\.conv\.", r"neck.downsample.0."),
    (r"neck\.fpn_convs\.4\.conv\.", r"neck.downsample.1."),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.", r"head.cls_tower.\1.conv."),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1.conv."),
    (r"bbox_head\.cls_convs\.(\d)\.gn\.", r"head.cls_tower.\1.norm."),
    (r"bbox_head\.reg_convs\.(\d)\.gn\.", r"head.box_tower.\1.norm."),
    (r"bbox_head\.gfl_cls\.", "head.cls_out."),
    (r"bbox_head\.gfl_reg\.", "head.box_out."),
    (r"bbox_head\.scales\.", "head.scales."),
)


def rename(name: str) -> str | None:
    """Our name of an mmdet parameter, None for one that we have no use for."""
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return None if replacement is None else re.sub(pattern, replacement, name)
    return name


def convert_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An mmdet GFL state dict under our names, for a strict load."""
    renamed = {rename(name): value for name, value in state.items()}
    renamed.pop(None, None)
    return renamed
