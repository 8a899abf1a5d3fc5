"""What a public checkpoint is: architecture from names and shapes, conventions from the rest."""

import re

from torch import Tensor

from gfl.errors import UserError
from gfl.interop.public_file import PublicFile

# Blocks of the four stages, and whether a block has three convolutions.
_RESNETS = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
}
_MMDET, _GFOCAL, _GFOCAL_V2 = "mmdetection", "GFocal", "GFocalV2"


def recognise_model(state: dict[str, Tensor]) -> dict:
    """The config's `model` section of a state dict that has our names.

    A single tensor that lacks or has another shape does not change the outcome: the strict
    comparison that follows names it.

    Raises:
        UserError: the backbone is none that public GFL files have.
    """

    def size(name: str, axis: int, default: int) -> int:
        """Of a convolution's weight; the default where it lacks or is something else."""
        tensor = state.get(name)
        return tensor.shape[axis] if tensor is not None and tensor.dim() == 4 else default

    backbone: dict = {"name": _backbone_name(state), "norm": "frozen", "frozen_stages": 1}
    offsets = {
        (int(match[1]) + 1, tensor.shape[0] // 9 - 1)
        for name, tensor in state.items()
        if (match := re.match(r"backbone\.layer(\d)\..*conv_offset\.bias", name)) and tensor.ndim
    }
    if offsets:
        backbone["deformable_stages"] = sorted({stage for stage, _ in offsets})
        backbone["deformable_version"] = max(version for _, version in offsets)
    head = {
        "channels": size("head.cls_out.weight", 1, 256),
        "stacked_convs": max(_count(state, "head.cls_tower"), 1),
    }
    model = {
        "backbone": backbone,
        "neck": {"channels": size("neck.lateral.0.weight", 0, 256)},
        "head": head,
        "reg_max": size("head.box_out.weight", 0, 68) // 4 - 1,
    }
    if any(name.startswith("head.quality.") for name in state):
        model["quality"] = "distribution_guided"
        head["quality_channels"] = size("head.quality.net.0.weight", 0, 64)
        inputs = size("head.quality.net.0.weight", 1, 20)
        head["quality_top_k"] = inputs // 4 - 1
    return model


def _count(state: dict[str, Tensor], prefix: str) -> int:
    """How many numbered parts `prefix.0.`, `prefix.1.` ... there are."""
    numbered = re.compile(re.escape(prefix) + r"\.(\d+)\.")
    return 1 + max((int(m[1]) for name in state if (m := numbered.match(name))), default=-1)


def _backbone_name(state: dict[str, Tensor]) -> str:
    blocks = tuple(_count(state, f"backbone.layer{stage}") for stage in (1, 2, 3, 4))
    if any(re.match(r"backbone\.layer\d\.\d+\.convs\.", name) for name in state):
        if blocks == (3, 4, 23, 3):
            return "res2net101_v1d"
    three_convs = any(re.match(r"backbone\.layer\d\.\d+\.conv3\.", name) for name in state)
    name = _RESNETS.get((blocks, three_convs))
    widths = {
        tensor.shape[1]
        for key, tensor in state.items()
        if re.match(r"backbone\.layer1\.\d+\.conv2\.weight", key) and tensor.ndim == 4
    }
    if name == "resnet101" and 4 in widths:
        return "resnext101_32x4d"
    if name is None or not any(key.startswith("head.box_out.") for key in state):
        first = ", ".join(list(state)[:4])
        raise UserError(
            f"this is no GFL detector on ResNet, ResNeXt-101-32x4d or Res2Net-101: its stages have "
            f"{blocks} blocks, its first tensors are {first}. If it is one of another shape, "
            "give its config with --config."
        )
    return name


def recognise_source(file: PublicFile) -> str:
    """Which project wrote a file: mmdetection, GFocal (a fork of mmdet 1) or GFocalV2 (of 2)."""
    if any(name.startswith("bbox_head.reg_conf.") for name in file.state):
        return _GFOCAL_V2
    marks = ("distribution_project", "conv2_offset")
    if file.version.startswith(("0.", "1.")) or any(
        mark in name for name in file.state for mark in marks
    ):
        return _GFOCAL
    return _MMDET


def conventions(file: PublicFile) -> dict:
    """Config values that no tensor shows: grid origin, pre-NMS rule, pixels, test size.

    The projects' own defaults, overridden by what the file's config text says.
    """
    source, text = recognise_source(file), file.config_text
    values: dict = {
        "model": {"grid_origin": "pixel_center" if source == _GFOCAL else "corner"},
        "postprocess": {"pre_nms_rule": "pairs" if source == _MMDET else "locations"},
        "data": {},
    }
    pixels = values["data"]
    number = r"\d{1,6}(?:\.\d{0,9})?"
    for key in ("mean", "std"):
        triple = rf"\b{key}=\[\s*({number}),\s*({number}),\s*({number}),?\s*\]"
        if found := re.search(triple, text):
            pixels[key] = [float(found[i]) for i in (1, 2, 3)]
    if found := re.search(r"\b(?:bgr_)?to_rgb=(True|False)", text):
        pixels["color_order"] = "rgb" if found[1] == "True" else "bgr"
    test = text[text.find("test_pipeline") :] if "test_pipeline" in text else ""
    if found := re.search(r"\b(?:img_)?scale=\((\d{2,5}), *(\d{2,5})\)", test):
        long, short = sorted((int(found[1]), int(found[2])), reverse=True)
        pixels["test_size"] = {"short": short, "long": long}
    for key, pattern, kind in (
        ("score_threshold", rf"\bscore_thr=({number})\b", float),
        ("nms_iou", rf"type='nms',\s*iou_thr(?:eshold)?=({number})\b", float),
        ("pre_nms_top_k", r"\bnms_pre=(\d{1,6})\b", int),
        ("max_per_image", r"\bmax_per_img=(\d{1,6})\b", int),
    ):
        if found := re.search(pattern, text):
            values["postprocess"][key] = kind(found[1])
    return values
