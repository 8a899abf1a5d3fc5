"""Collating, normalising, and the checks of the values that travel."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
import torch
from conftest import assert_close

from gfl.data.batch import Normalize, collate, padded_size
from gfl.data.dataset import Sample
from gfl.structures import Assignment, Batch, Detections, Grid, ImageMeta, Predictions, Targets


def item(height: int, width: int, boxes=(), labels=(), ignore=(), value=1, image_id=0):
    """A sample of one colour in the frame of the network input, with its meta."""
    sample = Sample(
        np.full((height, width, 3), value, np.uint8),
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(ignore, np.float32).reshape(-1, 4),
        image_id,
    )
    meta = ImageMeta(image_id, (height * 2, width * 2), (height, width), (0.5, 0.5))
    return sample, meta


# Collating


@pytest.mark.parametrize(
    ("size", "want"),
    [
        ((1, 32), (32, 32)),
        ((33, 64), (64, 64)),
        ((800, 1333), (800, 1344)),
        ((750, 1199), (768, 1216)),
    ],
)
def test_padded_size(size, want):
    assert padded_size(size) == want


def test_two_images_by_hand():
    first = item(40, 30, [[1, 2, 3, 4], [5, 6, 7, 8]], [2, 1], [[0, 0, 9, 9]], 10, image_id=7)
    second = item(20, 70, [[0, 1, 2, 3]], [5], value=20, image_id=8)
    batch = collate([first, second])
    # 40 x 30 alone is padded to 64 x 32, 20 x 70 to 32 x 96; together 64 x 96.
    assert batch.images.shape == (2, 3, 64, 96)
    assert batch.images.dtype == torch.uint8
    want = torch.zeros(2, 3, 64, 96, dtype=torch.uint8)
    want[0, :, :40, :30] = 10
    want[1, :, :20, :70] = 20
    assert batch.images.equal(want)
    assert batch.input_sizes.tolist() == [[40, 30], [20, 70]]
    targets = batch.targets
    assert targets.valid_size.tolist() == [[64, 32], [32, 96]]
    assert targets.boxes.tolist() == [[[1, 2, 3, 4], [5, 6, 7, 8]], [[0, 1, 2, 3], [0, 0, 0, 0]]]
    assert targets.labels.tolist() == [[2, 1], [5, 0]]
    assert targets.present.tolist() == [[True, True], [True, False]]
    assert targets.ignore_boxes.tolist() == [[[0, 0, 9, 9]], [[0, 0, 0, 0]]]
    assert targets.ignore_present.tolist() == [[True], [False]]
    assert (targets.boxes.dtype, targets.labels.dtype) == (torch.float32, torch.int64)
    assert (targets.valid_size.dtype, batch.input_sizes.dtype) == (torch.int64, torch.int64)
    assert batch.metas == (first[1], second[1])


def test_channels_and_rows_keep_their_places():
    sample, meta = item(32, 32)
    sample.image[3, 5] = (10, 20, 30)
    mirrored = replace(sample, image=sample.image[:, ::-1])  # negative strides, as flips leave
    batch = collate([(sample, meta), (mirrored, meta)])
    assert batch.images[0, :, 3, 5].tolist() == [10, 20, 30]
    assert batch.images[1, :, 3, 26].tolist() == [10, 20, 30]
    assert batch.images[1, :, 3, 5].tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (5, 1), (37, 53), (64, 96)])
def test_pixels_of_any_size_are_those_of_a_permuted_copy(size):
    pixels = np.random.default_rng(0).integers(1, 256, (*size, 3)).astype(np.uint8)
    sample, meta = item(*size)
    mirrored = pixels[:, ::-1]  # as a flip gives it: not contiguous
    batch = collate([(replace(sample, image=mirrored), meta), item(64, 96, value=7)])
    want = torch.zeros(3, 64, 96, dtype=torch.uint8)
    want[:, : size[0], : size[1]] = torch.from_numpy(mirrored.copy()).permute(2, 0, 1)
    assert torch.equal(batch.images[0], want)
    assert (batch.images[1] == 7).all()


def test_images_of_another_type_are_not_black():
    sample, meta = item(4, 4)
    batch = collate([(replace(sample, image=np.full((4, 4, 3), 9.0)), meta)])
    assert (batch.images[0, :, :4, :4] == 9).all()


def test_images_of_other_channels_are_refused():
    sample, meta = item(4, 4)
    for shape in ((4, 4), (4, 4, 4), (4, 4, 1)):
        with pytest.raises(ValueError, match=r"expected \(H, W, 3\)"):
            collate([(replace(sample, image=np.zeros(shape, np.uint8)), meta)])


def test_batch_without_objects():
    batch = collate([item(32, 32), item(32, 64)])
    targets = batch.targets
    assert targets.boxes.shape == targets.ignore_boxes.shape == (2, 0, 4)
    assert targets.labels.shape == targets.present.shape == targets.ignore_present.shape == (2, 0)
    assert targets.boxes.dtype == torch.float32
    assert targets.present.dtype == torch.bool
    assert targets.valid_size.tolist() == [[32, 32], [32, 64]]


def test_one_image_without_objects_beside_one_with():
    targets = collate([item(32, 32), item(32, 32, [[1, 2, 3, 4]], [6])]).targets
    assert targets.present.tolist() == [[False], [True]]
    assert targets.boxes[0].abs().sum() == 0
    assert targets.labels.tolist() == [[0], [6]]


# Normalising


def test_normalize_by_hand():
    images = torch.zeros(2, 3, 2, 3, dtype=torch.uint8)
    images[0] = torch.tensor([20, 16, 35]).view(3, 1, 1)
    images[1, :, :1, :2] = 255
    got = Normalize((10, 20, 30), (2, 4, 5))(images, torch.tensor([[2, 3], [1, 2]]))
    # (20 - 10) / 2, (16 - 20) / 4, (35 - 30) / 5; (255 - 10) / 2 and so on.
    want = torch.zeros(2, 3, 2, 3)
    want[0] = torch.tensor([5.0, -1.0, 1.0]).view(3, 1, 1)
    want[1, :, :1, :2] = torch.tensor([122.5, 58.75, 45.0]).view(3, 1, 1)
    assert got.dtype == torch.float32
    assert_close(got, want)


def test_padding_is_exactly_0_and_black_pixels_are_not():
    batch = collate([item(40, 30, value=0), item(20, 70, value=0)])
    got = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))(
        batch.images, batch.input_sizes
    )
    for row, (height, width) in enumerate(batch.input_sizes.tolist()):
        inside = got[row, :, :height, :width]
        black = torch.tensor([-2.117904, -2.035714, -1.804444]).view(3, 1, 1)
        assert_close(inside, black.expand_as(inside))
        assert got[row, :, height:].abs().max() == 0
        assert got[row, :, :, width:].abs().max() == 0


def test_normalize_undoes_itself():
    images = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    normalize = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    got = normalize(images, torch.tensor([[32, 32]])) * normalize.std + normalize.mean
    assert_close(got, images.float(), atol=1e-4)


# Moving


def test_to_moves_every_tensor_and_keeps_the_rest():
    batch = collate([item(32, 32, [[1, 2, 3, 4]], [6], image_id=9)])
    there = batch.to("meta")
    assert type(there) is Batch
    assert there.images.device.type == there.input_sizes.device.type == "meta"
    for name, value in vars(there.targets).items():
        assert value.device.type == "meta", name
        assert value.shape == getattr(batch.targets, name).shape
    assert there.metas is batch.metas
    assert batch.images.device.type == batch.targets.boxes.device.type == "cpu"
    here = batch.to("cpu", non_blocking=True)
    assert here.images.equal(batch.images)
    assert here.targets.labels.tolist() == [[6]]


def test_optional_tensors_stay_none():
    nothing = torch.zeros(0)
    found = Detections(torch.zeros(0, 4), nothing, nothing.long(), torch.zeros(0, 4))
    assert found.to("meta").distributions is None
    assert len(found) == 0


# Shape checks


def valid_values() -> dict:
    """One of each value: B = 2, G = 3, I = 1, N = 5, C = 4, K = 8, M = 2, D = 3."""
    targets = Targets(
        torch.zeros(2, 3, 4),
        torch.zeros(2, 3, dtype=torch.int64),
        torch.zeros(2, 3, dtype=torch.bool),
        torch.zeros(2, 2, dtype=torch.int64),
        torch.zeros(2, 1, 4),
        torch.zeros(2, 1, dtype=torch.bool),
    )
    metas = (ImageMeta(1, (32, 32), (32, 32), (1.0, 1.0)),) * 2
    grid = Grid(torch.zeros(5, 2), torch.zeros(5), ((2, 2), (1, 1)), (8, 16), "corner")
    assigned = torch.zeros(2, 5, dtype=torch.int64)
    slots = torch.zeros(2, 2, dtype=torch.int64)
    return {
        "targets": targets,
        "batch": Batch(torch.zeros(2, 3, 32, 32), torch.zeros(2, 2), targets, metas),
        "grid": grid,
        "predictions": Predictions(torch.zeros(2, 5, 4), torch.zeros(2, 5, 8), grid),
        "assignment": Assignment(assigned, torch.zeros(2, 5), slots, slots.bool()),
        "detections": Detections(
            torch.zeros(3, 4),
            torch.zeros(3),
            torch.zeros(3, dtype=torch.int64),
            torch.zeros(3, 4),
            torch.zeros(3, 4, 9),
        ),
    }


@pytest.mark.parametrize(
    ("value", "field", "shape", "want"),
    [
        ("targets", "boxes", (2, 3, 5), "(2, 3, 4)"),
        ("targets", "labels", (2, 2), "(2, 3)"),
        ("targets", "labels", (2, 3, 1), "(2, 3)"),
        ("targets", "present", (3, 3), "(2, 3)"),
        ("targets", "valid_size", (2, 3), "(2, 2)"),
        ("targets", "valid_size", (2,), "(2, 2)"),
        ("targets", "ignore_boxes", (1, 1, 4), "(2, 'any', 4)"),
        ("targets", "ignore_present", (2, 2), "(2, 1)"),
        ("batch", "images", (3, 3, 32, 32), "(2, 3, 'any', 'any')"),
        ("batch", "images", (2, 32, 32, 3), "(2, 3, 'any', 'any')"),
        ("batch", "input_sizes", (2, 4), "(2, 2)"),
        ("grid", "centers", (4, 2), "(5, 2)"),
        ("grid", "strides", (5, 1), "(5,)"),
        ("predictions", "cls_logits", (2, 4, 4), "(2, 5, 'any')"),
        ("predictions", "box_logits", (1, 5, 8), "(2, 5, 'any')"),
        ("predictions", "box_logits", (2, 8, 5), "(2, 5, 'any')"),
        ("assignment", "weight", (2, 4), "(2, 5)"),
        ("assignment", "slots", (1, 2), "(2, 'any')"),
        ("assignment", "slot_positive", (2, 3), "(2, 2)"),
        ("detections", "boxes", (2, 4), "(3, 4)"),
        ("detections", "labels", (3, 1), "(3,)"),
        ("detections", "edge_std", (3, 2), "(3, 4)"),
        ("detections", "distributions", (3, 9, 4), "(3, 4, 'any')"),
    ],
)
def test_wrong_shape_is_named(value, field, shape, want):
    right = valid_values()[value]
    with pytest.raises(ValueError) as caught:
        replace(right, **{field: torch.zeros(shape)})
    assert str(caught.value) == f"{field} has shape {shape}, expected {want}"


def test_targets_and_images_of_different_batches_do_not_mix():
    values = valid_values()
    with pytest.raises(ValueError, match="targets"):
        replace(values["batch"], targets=collate([item(32, 32)]).targets)


def test_values_are_frozen():
    for value in valid_values().values():
        with pytest.raises(FrozenInstanceError):
            value.boxes = None
