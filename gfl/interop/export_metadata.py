"""What an exported file says about itself."""

import gfl
from gfl.analysis.temperature import KEY
from gfl.config import Config
from gfl.data.batch import PAD_MULTIPLE
from gfl.interop.export_forms import FORMS
from gfl.predictor import Detector


def output_shapes(detector: Detector, form: str) -> dict[str, tuple]:
    """Name and shape of each output; free sizes are names."""
    num_classes, kept = len(detector.class_names), detector.config.postprocess.max_per_image
    bins = detector.config.model.reg_max + 1
    rows = (kept,) if form == "nms" else ("locations",)
    inner = {"boxes": (4,), "edge_std": (4,), "distributions": (4, bins), "labels": ()}
    inner["scores"] = () if form == "nms" else (num_classes,)
    return {
        name: ("batch",) if name == "count" else ("batch", *rows, *inner[name])
        for name in FORMS[form].outputs
    }


def describe(content: dict, detector: Detector, form: str, half: bool, opset: int | None) -> dict:
    """The metadata: all that is needed to use the file."""
    config = detector.config
    metadata = {
        "gfl_version": gfl.__version__,
        "form": form,
        "half": half,
        "opset": opset,
        "inputs": _inputs(),
        "outputs": _outputs(detector, form),
        "inside": _inside(form),
        "class_names": list(detector.class_names),
        "category_ids": list(detector.category_ids),
        "mean": list(config.data.mean),
        "std": list(config.data.std),
        "color_order": config.data.color_order,
        "resize": _resize(config),
        "thresholds": _thresholds(config, content.get("thresholds")),
        "grid": {
            "strides": list(detector.model.neck.strides),
            "origin": detector.model.grid_origin,
            "anchors_per_cell": detector.model.head.anchors_per_cell,
        },
        "box": config.model.box,
        "reg_max": config.model.reg_max,
        "bin_width": config.model.bin_width,
        "config": config.to_dict(),
    }
    if content.get(KEY) is not None:  # by which users of the outputs multiply edge_std
        metadata[KEY] = content[KEY]
    if content.get("source"):
        metadata |= {"source": content["source"], "licence": content["source"]["licence"]}
    return metadata


def _inputs() -> dict[str, str]:
    return {
        "images": "(batch, 3, height, width) float32, RGB in 0..255, padded at the right and "
        f"bottom to multiples of {PAD_MULTIPLE}",
        "input_sizes": "(batch, 2) int64, height and width of each image without padding",
    }


def _outputs(detector: Detector, form: str) -> dict[str, str]:
    kinds = {"labels": "int64", "count": "int64"}
    return {
        name: f"({', '.join(map(str, shape))}{',' * (len(shape) == 1)}) "
        + kinds.get(name, "float32")
        for name, shape in output_shapes(detector, form).items()
    }


def _inside(form: str) -> dict[str, bool]:
    """What the network does itself."""
    return {
        "normalization": True,
        "padding_to_zero": True,
        "sigmoid": True,
        "softmax": True,
        "box_decoding": form != "raw",
        "clipping": form == "nms",
        "nms": form == "nms",
    }


def _resize(config: Config) -> dict:
    return {
        "short": config.data.test_size.short_range[1],
        "long": config.data.test_size.long,
        "keep_ratio": True,
        "rounding": "half up",
        "interpolation": "bilinear",
        "pad_multiple": PAD_MULTIPLE,
        "pad_value_after_normalization": 0,
    }


def _thresholds(config: Config, per_class: list[float | None] | None) -> dict:
    rules = config.postprocess
    thresholds = {
        "score": rules.score_threshold,
        "nms_iou": rules.nms_iou,
        "pre_nms_top_k": rules.pre_nms_top_k,
        "pre_nms_rule": rules.pre_nms_rule,
        "max_per_image": rules.max_per_image,
    }
    return thresholds if per_class is None else {**thresholds, "per_class": per_class}
