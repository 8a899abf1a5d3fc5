"""Pictures of batches and predictions: boxes stay on their objects when pictures are enlarged."""

import pytest
import torch
from builders import tiny_config, write_coco

from gfl import build
from gfl.build.model import build_assigner
from gfl.config import parse_config
from gfl.drawing import COLORS
from gfl.structures import Detections
from gfl.visualize import draw_batch, draw_predictions, find_positives


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return tiny_config(write_coco(tmp_path_factory.mktemp("data") / "set", {"train": 4, "val": 2}))


def is_red(pixel) -> bool:
    return all(abs(int(value) - want) < 60 for value, want in zip(pixel, COLORS[0], strict=True))


def test_boxes_of_a_small_batch_are_enlarged_with_it(config):
    loader = build.build_train_loader(config, build.build_dataset(config, "train"))
    loader.batch_sampler.set_position(0)
    batch = loader.load(next(iter(loader.batch_sampler)))
    height, width = batch.images.shape[2:]
    factor = -(-400 // min(height, width))
    assert factor >= 4
    picture = draw_batch(batch, ["square", "disc"])
    assert picture.shape == (2 * height * factor, 2 * width * factor, 3)
    x1, y1, x2, y2 = (batch.targets.boxes[0][0] * factor).round().int().tolist()
    assert batch.targets.labels[0][0] == 0
    assert is_red(picture[min(y2, height * factor - 1), (x1 + x2) // 2])


def test_positives_are_dots_in_the_colour_of_their_level(config):
    dataset = build.build_dataset(config, "train")
    loader = build.build_train_loader(config, dataset)
    loader.batch_sampler.set_position(0)
    batch = loader.load(next(iter(loader.batch_sampler)))
    model, assigner = build.build_model(config, 2), build_assigner(config)
    found = find_positives(batch, model, assigner)
    predictions = model(batch.images.float())
    assignment = assigner(predictions.grid, batch.targets)
    for number, places in enumerate(found):
        rows = assignment.gt_index[number] >= 0
        assert len(places) == rows.sum() > 0
        assert torch.equal(places[:, :2], predictions.grid.centers[rows])
        assert torch.equal(8 * 2 ** places[:, 2], predictions.grid.strides[rows])
    plain, dotted = draw_batch(batch, ["a", "b"]), draw_batch(batch, ["a", "b"], found)
    x, y, level = found[0][-1].int().tolist()
    factor = -(-400 // min(batch.images.shape[2:]))
    assert plain.shape == dotted.shape
    assert tuple(dotted[y * factor, x * factor]) == COLORS[level]
    dynamic = parse_config({"assigner": {"name": "simota"}})
    assert find_positives(batch, model, build_assigner(dynamic)) is None


def test_detections_in_small_pictures_are_enlarged_with_them(config):
    dataset = build.build_dataset(config, "val")
    height, width = dataset.sizes[0]

    def postprocess(predictions, metas):
        one = torch.ones(1)
        boxes = torch.tensor([[10.0, 20.0, 50.0, 60.0]])
        return [Detections(boxes, one, one.long() * 0, boxes * 0)]

    picture = draw_predictions(
        torch.nn.Identity(),
        build.build_eval_loader(config, dataset),
        postprocess,
        build.build_normalize(config, "cpu"),
        ["square", "disc"],
    )
    factor = 5  # 96 x 128
    assert picture.shape[0] == max(dataset.sizes[:, 0]) * factor
    assert is_red(picture[60 * factor, 30 * factor]) and is_red(picture[40 * factor, 50 * factor])
    assert not is_red(picture[60, 30])
