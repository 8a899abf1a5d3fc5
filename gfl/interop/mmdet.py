"""Parameter names of mmdetection's GFL and its forks, and ours.

ResNets have torchvision's names on both sides, Res2Net's stem has timm's on ours.
"""

import re

from torch import Tensor

from gfl.errors import UserError

# (pattern, replacement), tried in order; a replacement of None drops the entry.
RENAMES: tuple[tuple[str, str | None], ...] = (
    (r"bbox_head\.(integral|distribution_project)\.project", None),  # a constant
    (r"backbone\.stem\.([01346])\.", r"backbone.conv1.\1."),  # Res2Net
    (r"backbone\.stem\.7\.", "backbone.bn1."),
    (r"(backbone\..*\.)conv2_offset\.", r"\1conv2.conv_offset."),  # the first GFocal fork
    (r"neck\.lateral_convs\.(\d)\.conv\.", r"neck.lateral.\1."),
    (r"bbox_head\.cls_convs\.(\d)\.conv\.", r"head.cls_tower.\1.conv."),
    (r"bbox_head\.reg_convs\.(\d)\.conv\.", r"head.box_tower.\1.conv."),
    (r"bbox_head\.cls_convs\.(\d)\.gn\.", r"head.cls_tower.\1.norm."),
    (r"bbox_head\.reg_convs\.(\d)\.gn\.", r"head.box_tower.\1.norm."),
    (r"bbox_head\.gfl_cls\.", "head.cls_out."),
    (r"bbox_head\.gfl_reg\.", "head.box_out."),
    (r"bbox_head\.scales\.", "head.scales."),
    (r"bbox_head\.reg_conf\.([02])\.", r"head.quality.net.\1."),  # GFocalV2
)


def rename(name: str, num_outputs: int = 3) -> str | None:
    """Our name of an mmdet parameter, None for one that we have no use for.

    Args:
        name: theirs.
        num_outputs: of the backbone that the pyramid is made of. So many of mmdet's `fpn_convs`
            belong to their levels, the others make coarser ones.
    """
    if found := re.match(r"neck\.fpn_convs\.(\d+)\.conv\.(.*)", name):
        number = int(found[1])
        if number < num_outputs:
            return f"neck.output.{number}.{found[2]}"
        return f"neck.downsample.{number - num_outputs}.{found[2]}"
    for pattern, replacement in RENAMES:
        if re.match(pattern, name):
            return None if replacement is None else re.sub(pattern, replacement, name)
    return name


def convert_state_dict(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """An mmdet GFL state dict under our names, for a strict load.

    Raises:
        UserError: two entries mean the same tensor.
    """
    laterals = {name for name in state if re.match(r"neck\.lateral_convs\.\d\.conv\.weight", name)}
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        ours = rename(name, len(laterals))
        if ours in renamed:
            raise UserError(f"two entries are {ours}; the second is {name!r}.")
        if ours is not None:
            renamed[ours] = value
    return renamed
