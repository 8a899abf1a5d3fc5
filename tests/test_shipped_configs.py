"""Every config in configs/ builds and trains a step."""

import pytest
import torch
from builders import make_targets, without_auto
from conftest import REPOSITORY

from gfl.build import build_criterion, build_model, build_postprocess, build_schedule
from gfl.config import load_config
from gfl.data.batch import Normalize
from gfl.engine.checkpoint import TrainState
from gfl.engine.optim import make_optimizer
from gfl.engine.train import LoopOptions, train_step
from gfl.structures import Batch, ImageMeta

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
SIZE = (128, 160)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_builds_and_runs_a_step(path):
    config = without_auto(load_config(path))
    model = build_model(config, num_classes=3, load_pretrained=False).train()
    train = config.train
    optimizer = make_optimizer(model, train.optimizer, train.momentum, train.weight_decay)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, optimizer, build_schedule(config, 100), scaler)
    boxes = [[[10.0, 12.0, 70.0, 90.0], [100.0, 20.0, 150.0, 60.0]], [[0.0, 0.0, 160.0, 128.0]]]
    targets = make_targets(boxes, [[0, 2], [1]], size=SIZE)
    metas = tuple(ImageMeta(i, SIZE, SIZE, (1.0, 1.0)) for i in range(2))
    images = torch.randint(0, 256, (2, 3, *SIZE), dtype=torch.uint8)
    batch = Batch(images, torch.tensor([SIZE, SIZE]), targets, metas)
    normalize = Normalize(config.data.mean, config.data.std)
    options = LoopOptions(epochs=1, steps_per_epoch=100, grad_clip=train.grad_clip)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses, grad_norm = train_step(
        state, model, [batch], build_criterion(config), normalize, options
    )
    assert all(loss.isfinite() for loss in losses.values()) and grad_norm.isfinite()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    model.eval()
    with torch.no_grad():
        predictions = model(normalize(batch.images, batch.input_sizes))
    detections = build_postprocess(config)(predictions, metas)
    assert len(detections) == 2
    assert all(found.edge_std.shape == (len(found), 4) for found in detections)


def test_frozen_parts_are_those_of_the_recipe():
    config = load_config(REPOSITORY / "configs/gfl_r50_fpn_1x.yaml")
    model = build_model(config, 80, load_pretrained=False).train()
    frozen = {name.split(".")[1] for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {"conv1", "bn1", "layer1"}
    norms = [m for m in model.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not any(norm.training for norm in norms)
    assert model.backbone.layer2[0].bn1.weight.requires_grad


def test_from_scratch_nothing_is_frozen_and_statistics_are_learned():
    model = build_model(load_config(REPOSITORY / "configs/quickstart.yaml"), 3).train()
    assert all(p.requires_grad for p in model.parameters())
    assert model.backbone.bn1.training
