"""Runs in another environment, without gfl: times mmdetection's GFL, once for a line of stdin.

Answers are lines of JSON that start with "gfl-peer"; libraries print on stdout as well.
"""

import json
import sys
import time

FIXED = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]


def answer(**values) -> None:
    """Write a line for the other side."""
    print("gfl-peer " + json.dumps(values), flush=True)


def gfl_config(depth: int, classes: int) -> dict:
    """mmdetection 3's `gfl_r50_fpn_1x_coco`, without pretrained weights."""
    return {
        "type": "mmdet.GFL",
        "data_preprocessor": {
            "type": "mmdet.DetDataPreprocessor",
            "mean": FIXED[0],
            "std": FIXED[1],
            "pad_size_divisor": 32,
        },
        **backbone_and_neck(depth),
        "bbox_head": head(classes),
        "train_cfg": {
            "assigner": {"type": "mmdet.ATSSAssigner", "topk": 9},
            "allowed_border": -1,
            "pos_weight": -1,
            "debug": False,
        },
        "test_cfg": {
            "nms_pre": 1000,
            "min_bbox_size": 0,
            "score_thr": 0.05,
            "nms": {"type": "nms", "iou_threshold": 0.6},
            "max_per_img": 100,
        },
    }


def backbone_and_neck(depth: int) -> dict:
    """Their parts of the config."""
    channels = [64, 128, 256, 512] if depth < 50 else [256, 512, 1024, 2048]
    return {
        "backbone": {
            "type": "mmdet.ResNet",
            "depth": depth,
            "num_stages": 4,
            "out_indices": (0, 1, 2, 3),
            "frozen_stages": 1,
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "norm_eval": True,
            "style": "pytorch",
        },
        "neck": {
            "type": "mmdet.FPN",
            "in_channels": channels,
            "out_channels": 256,
            "start_level": 1,
            "add_extra_convs": "on_output",
            "num_outs": 5,
        },
    }


def head(classes: int) -> dict:
    """Its part of the config."""
    return {
        "type": "mmdet.GFLHead",
        "num_classes": classes,
        "in_channels": 256,
        "stacked_convs": 4,
        "feat_channels": 256,
        "anchor_generator": {
            "type": "mmdet.AnchorGenerator",
            "ratios": [1.0],
            "octave_base_scale": 8,
            "scales_per_octave": 1,
            "strides": [8, 16, 32, 64, 128],
        },
        "loss_cls": {
            "type": "mmdet.QualityFocalLoss",
            "use_sigmoid": True,
            "beta": 2.0,
            "loss_weight": 1.0,
        },
        "loss_dfl": {"type": "mmdet.DistributionFocalLoss", "loss_weight": 0.25},
        "reg_max": 16,
        "loss_bbox": {"type": "mmdet.GIoULoss", "loss_weight": 2.0},
    }


def drawn_sample(options: dict, rng):
    """Objects of one image, at random."""
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    height, width = options["size"]
    full = torch.tensor([width, height], dtype=torch.float32)
    shape = (options["objects"], 2)
    scale = 0.05 + 0.9 * torch.rand(shape[0], 1, generator=rng).square()
    sides = scale * (0.7 + 0.3 * torch.rand(shape, generator=rng)) * full
    corner = torch.rand(shape, generator=rng) * (full - sides)
    labels = torch.randint(0, options["classes"], shape[:1], generator=rng)
    size = (height, width)
    meta = {"img_shape": size, "ori_shape": size, "pad_shape": size}
    found = DetDataSample(metainfo={**meta, "batch_input_shape": size, "scale_factor": (1.0, 1.0)})
    boxes = torch.cat((corner, corner + sides), -1)
    device = options["device"]
    found.gt_instances = InstanceData(bboxes=boxes.to(device), labels=labels.to(device))
    return found


def timed(work, device: str) -> float:
    """Seconds of a work, with all that it has asked of a GPU."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def works(options: dict) -> tuple:
    """The versions, and a function for "train" and one for "infer"."""
    import mmdet
    import torch
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules

    register_all_modules(init_default_scope=True)
    torch.set_num_threads(options["threads"])
    device = options["device"]
    layout = torch.channels_last if options["channels_last"] else torch.contiguous_format
    height, width = options["size"]
    config = gfl_config(options["depth"], options["classes"])
    model = MODELS.build(config).to(device, memory_format=layout)
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    kind = kinds.get(options["precision"], torch.bfloat16)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.00001, momentum=0.9, weight_decay=0.0001, fused=True)
    rng = torch.Generator().manual_seed(0)

    def half():
        return torch.autocast(device, kind, enabled=options["precision"] != "fp32")

    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in FIXED)
    shape = (options["batch"], 3, height, width)
    pictures = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8).to(device)
    samples = [drawn_sample(options, rng) for _ in range(options["batch"])]

    def normalized(images, layout):
        return ((images - mean) / std).contiguous(memory_format=layout)

    def train():
        optimizer.zero_grad(set_to_none=True)
        with half():
            losses = model.loss(normalized(pictures, layout), samples)
        total = 0
        for value in losses.values():
            total = total + (sum(value) if isinstance(value, (list, tuple)) else value)
        total.backward()
        optimizer.step()

    one = normalized(pictures[:1], torch.channels_last)

    @torch.inference_mode()
    def infer():
        with half():
            model.bbox_head(model.extract_feat(one))

    def seconds(work, is_training, layout):
        model.train(is_training).to(memory_format=layout)
        return timed(work, device)

    versions = {"mmdet": mmdet.__version__, "torch": torch.__version__}
    return versions, {
        "train": lambda: seconds(train, True, layout),
        "infer": lambda: seconds(infer, False, torch.channels_last),
    }


def main() -> None:
    """Build, then do what stdin says."""
    try:
        versions, known = works(json.loads(sys.argv[1]))
    except Exception as error:  # whatever a foreign environment lacks
        answer(missing=f"{type(error).__name__}: {error}")
        return
    answer(versions=versions)
    for line in sys.stdin:
        answer(seconds=known[line.strip()]())


if __name__ == "__main__":
    main()
