"""What a user's program looks like to a type checker; `test_typing.py` gives it to mypy."""

from pathlib import Path

import numpy as np
from torch import Tensor

import gfl
from gfl.config import Config, load_config
from gfl.detections import Detections
from gfl.losses import distribution_focal_loss, giou_loss, quality_focal_loss
from gfl.predictor import Detector, load
from gfl.training import train


def use(checkpoint: Path, picture: np.ndarray) -> list[dict]:
    detector: Detector = load(checkpoint, device="cpu", half=False)
    found: list[Detections] = detector.predict([picture], score_threshold=0.3)
    boxes: Tensor = found[0].boxes
    names: list[str] = found[0].class_names
    drawn: np.ndarray = found[0].filter(0.4, names[:1]).draw(picture)
    assert drawn.shape == picture.shape and len(boxes) == len(found[0])
    whole: Detections = detector.predict_tiled(picture, tile=512, overlap=0.2)
    return whole.to_coco(image_id=1)


def learn(folder: str) -> dict:
    config: Config = load_config("bccd_r18", [f"data.path={folder}"])
    return train(config, work_dir="runs/typed", resume=True)


def losses(logits: Tensor, target: Tensor) -> Tensor:
    total: Tensor = quality_focal_loss(logits, target, beta=2.0).sum()
    total = total + distribution_focal_loss(logits, target[..., 0]).sum()
    return total + giou_loss(target, target).sum()


version: str = gfl.__version__
