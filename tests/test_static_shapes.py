"""Batches in few shapes: which there are, and that what a batch says stays the same."""

import numpy as np
import pytest
import torch
from builders import (
    STRIDES,
    make_targets,
    pyramid,
    random_boxes,
    random_predictions,
    tiny_values,
    write_coco,
)
from torch.testing import assert_close

from gfl.assigner import ATSSAssigner
from gfl.build import (
    build_criterion,
    build_dataset,
    build_pad_to,
    build_train_loader,
    shape_lines,
)
from gfl.config import merge_values, parse_config
from gfl.data.batch import Normalize, padded_size
from gfl.data.sampler import TrainSampler
from gfl.data.static_shapes import (
    batch_bounds,
    smallest_holding,
    static_batch,
    static_count,
    static_targets,
)
from gfl.data.transforms import resized_size
from gfl.errors import UserError
from gfl.grid import make_grid
from gfl.structures import Batch, ImageMeta


@pytest.mark.parametrize(("count", "padded"), [(0, 8), (8, 8), (9, 32), (33, 128), (512, 512)])
def test_numbers_of_objects_are_few(count, padded):
    assert static_count(count) == padded


def test_the_smallest_size_that_holds_a_batch():
    sizes = [(64, 96), (96, 64), (96, 96), (64, 128)]
    assert smallest_holding((64, 64), sizes) == (64, 96)
    assert smallest_holding((96, 32), sizes) == (96, 64)
    assert smallest_holding((32, 128), sizes) == (64, 128)
    assert smallest_holding((128, 32), sizes) is None


COMPILED = {"train": {"compile": True}}


def batch_of(size: tuple[int, int], objects: int) -> Batch:
    boxes = [random_boxes(objects, *size), random_boxes(1, *size)]
    targets = make_targets(boxes, [[0] * objects, [0]], size=size)
    images = torch.randint(1, 256, (2, 3, *size), dtype=torch.uint8)
    metas = tuple(ImageMeta(i, size, size, (1.0, 1.0)) for i in range(2))
    return Batch(images, torch.tensor([size] * 2), targets, metas)


def test_a_batch_is_padded_at_the_right_and_bottom():
    batch = batch_of((64, 96), 3)
    static = static_batch(batch, [(96, 128), (256, 256)])
    assert static.images.shape == (2, 3, 96, 128)
    assert torch.equal(static.images[..., :64, :96], batch.images)
    assert static.images[..., 64:, :].sum() == static.images[..., 96:].sum() == 0
    assert torch.equal(static.input_sizes, batch.input_sizes)
    assert torch.equal(static.targets.valid_size, batch.targets.valid_size)
    targets = static.targets
    assert targets.boxes.shape == (2, 8, 4) and targets.labels.dtype == torch.int64
    assert targets.present.sum(1).tolist() == [3, 1]
    assert torch.equal(targets.boxes[:, :3], batch.targets.boxes)
    assert targets.ignore_boxes.shape == (2, 8, 4) and not targets.ignore_present.any()
    normalized = Normalize((120.0,) * 3, (60.0,) * 3)(static.images, static.input_sizes)
    assert normalized[..., 64:, :].abs().sum() == 0


def test_a_batch_that_no_size_holds_keeps_its_own():
    assert static_batch(batch_of((64, 96), 1), [(32, 1024)]).images.shape == (2, 3, 64, 96)


MODES = [
    {},
    {"assigner": {"ignore_crowd": True}},
    {"assigner": {"name": "fcos"}, "model": {"quality": "centerness_branch"}},
    {"assigner": {"name": "retinanet"}},
    {"assigner": {"name": "tal", "soft_label": "aligned"}},
    {"assigner": {"name": "simota"}},
]


@pytest.mark.parametrize("mode", MODES, ids=str)
@pytest.mark.parametrize("count", [0, 3])
def test_losses_do_not_depend_on_rows_that_are_not_present(mode, count):
    torch.manual_seed(0)
    config = parse_config(merge_values(tiny_values("unused"), mode))
    criterion = build_criterion(config)
    grid, anchors = pyramid(96, 128), criterion.assigner.anchors_per_cell
    grid = make_grid(grid.level_sizes, STRIDES, "corner", "cpu", anchors)
    predictions = random_predictions(grid, reg_max=8)
    if "branch" in str(mode):
        quality = torch.randn(*predictions.cls_logits.shape[:2], 1)
        predictions = type(predictions)(
            predictions.cls_logits, predictions.box_logits, predictions.grid, quality
        )
    boxes = [random_boxes(count, 96, 128), random_boxes(min(count, 1), 96, 128, seed=1)]
    targets = make_targets(boxes, [[i % 3 for i in range(len(b))] for b in boxes], size=(96, 128))
    plain, static = criterion(predictions, targets), criterion(predictions, static_targets(targets))
    assert plain.keys() == static.keys()
    for name in plain:
        assert_close(static[name], plain[name], rtol=1e-6, atol=1e-7)
    assert count == 0 or plain["loss_box"] > 0


def test_no_location_changes_its_object():
    grid, targets = pyramid(96, 128), make_targets([random_boxes(5, 96, 128)])
    a, b = (ATSSAssigner()(grid, t) for t in (targets, static_targets(targets)))
    assert (a.gt_index >= 0).any()
    assert torch.equal(a.gt_index, b.gt_index) and torch.equal(a.weight, b.weight)


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("grouped", [True, False])
def test_bounds_hold_every_batch_of_the_sampler(grouped, images):
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 900, (61, 2))
    bounds = batch_bounds(sizes, 320, 512, grouped, images)
    assert len(bounds) <= 3
    sampler = TrainSampler(sizes, images, (256, 320), grouped)
    needed = set()
    for epoch in range(3):
        sampler.set_position(epoch)
        for keys in sampler:
            own = [padded_size(resized_size(tuple(sizes[k.index]), k.short, 512)) for k in keys]
            height, width = (max(sides) for sides in zip(*own, strict=True))
            needed.add(smallest_holding((height, width), bounds))
    assert None not in needed and len(needed) == len(bounds)


def test_bounds_of_pictures_of_one_size():
    sizes = np.array([[480, 640]] * 3)
    assert batch_bounds(sizes, 800, 1333, True, 2) == ((800, 1088),)
    both = np.array([[480, 640], [640, 480]])
    assert batch_bounds(both, 800, 1333, True, 2) == ((800, 1088), (1088, 800), (1088, 1088))
    assert batch_bounds(both, 800, 1333, False, 2) == ((1088, 1088),)
    assert batch_bounds(both, 800, 1333, False, 1) == ((800, 1088), (1088, 800))


def config_with(pad_to=None, compile=False):
    values = merge_values(tiny_values("unused"), {"data": {"pad_to": pad_to}})
    return parse_config(merge_values(values, {"train": {"compile": compile}}))


def test_sizes_come_from_the_config_or_from_the_images():
    sizes = np.array([[96, 128], [128, 96]])
    assert build_pad_to(config_with(), sizes) == () == tuple(shape_lines((), config_with()))
    found = build_pad_to(config_with(compile=True), sizes)
    assert found == ((96, 128), (128, 96), (128, 128))
    [line, more] = shape_lines(found, config_with(compile=True))
    assert "96 x 128, 128 x 96, 128 x 128" in line and "chosen from the images" in line
    assert "compiled" in more
    given = config_with([[128, 128]])
    assert build_pad_to(given, sizes) == ((128, 128),)
    assert "data.pad_to" in shape_lines(((128, 128),), given)[0]


def test_a_missing_size_is_told_at_the_start():
    sizes = np.array([[96, 128], [128, 96]])
    with pytest.raises(UserError, match=r"96 x 128 holds no batch of 128 x 96, 128 x 128.*Add th"):
        build_pad_to(config_with([[96, 128]]), sizes)


def test_random_crops_have_one_size_that_holds_any(tmp_path):
    """Of a wide picture a tall part may be taken."""
    folder = write_coco(tmp_path / "set", {"train": 8}, (96, 160))
    values = merge_values(tiny_values(folder, batch_size=2), {"data": {"augment": {"crop": 1.0}}})
    given, chosen = (merge_values(values, v) for v in ({"data": {"pad_to": [[96, 128]]}}, COMPILED))
    config = parse_config(chosen)
    dataset = build_dataset(config, "train")
    with pytest.raises(UserError, match="holds no batch of 128 x 128.*random crops"):
        build_pad_to(parse_config(given), dataset.sizes)
    [size] = build_pad_to(config, dataset.sizes)
    loader = build_train_loader(config, dataset)
    shapes = set()
    for epoch in range(6):
        loader.batch_sampler.set_position(epoch)
        shapes |= {static_batch(batch, [size]).padded_size for batch in loader}
    assert shapes == {size} == {(128, 128)}


@pytest.mark.parametrize("size", [[96, 100], [0, 96]])
def test_sizes_are_multiples_of_32(size):
    with pytest.raises(UserError, match="multiples of 32"):
        config_with([size])
