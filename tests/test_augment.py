"""Mosaic, mix-up, copy-paste, scale jitter, crop: pixels, boxes and labels stay together."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import write_coco
from conftest import assert_close
from pycocotools import mask as coco_mask

import gfl.data.augment
from gfl import build
from gfl.build.augment import augment_line, build_augment, build_factors, repeat_line
from gfl.config import parse_config
from gfl.data.augment import Augment
from gfl.data.batch import collate
from gfl.data.copy_paste import copy_pasted
from gfl.data.dataset import CocoDataset, Sample
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.masks import Masks
from gfl.data.mixup import mixed
from gfl.data.mosaic import mosaic
from gfl.data.random_crop import random_crop
from gfl.data.sampler import SampleKey, TrainSampler
from gfl.data.transforms import Transform, resized_size
from gfl.data.window import FILL, clip_boxes, lay, lay_sample
from gfl.data_check import check_data
from gfl.engine.bad_batch import BadBatches
from gfl.errors import UserError

SHORT, LONG = 96, 150
EACH = {
    "mosaic": {"mosaic": 1.0},
    "mixup": {"mixup": 1.0},
    "copy_paste": {"copy_paste": 1.0},
    "scale_jitter": {"scale_jitter": (0.3, 2.0)},
    "crop": {"crop": 1.0},
}
ALL = {name: value for part in EACH.values() for name, value in part.items()}
SOME = {**ALL, "mosaic": 0.5, "mixup": 0.5, "crop": 0.5}
SETTINGS = [*EACH.values(), ALL, SOME, {**SOME, "copy_paste": 0}]
NAMES = [*EACH, "all", "some", "not pasted"]
# Of a colour of 250: blended with another picture it is 125 or more, and FILL is less.
PRESENT = 118


def make_sample(image, boxes=(), labels=None, ignore=(), image_id=0) -> Sample:
    """A sample from lists."""
    return Sample(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.zeros(len(boxes), np.int64) if labels is None else np.array(labels, np.int64),
        np.array(ignore, np.float32).reshape(-1, 4),
        image_id,
    )


class Coloured:
    """Black pictures of several sizes; the channel of a rectangle is its label, 2 is a crowd."""

    def __init__(self, sizes=((90, 120), (120, 90), (61, 97), (200, 310), (64, 64)), seed=0):
        rng = np.random.default_rng(seed)
        self.samples = []
        for number, (height, width) in enumerate(sizes):
            image, boxes, labels = np.zeros((height, width, 3), np.uint8), [], []
            for cell in range(4 if number != 4 else 0):  # the fifth picture is empty
                h, w = rng.integers(height // 6, height // 2), rng.integers(width // 6, width // 2)
                y = height // 2 * (cell // 2) + int(rng.integers(height // 2 - h + 1))
                x = width // 2 * (cell % 2) + int(rng.integers(width // 2 - w + 1))
                label = 2 if cell == 3 else int(rng.integers(2))
                image[y : y + h, x : x + w, label] = 250
                boxes.append([x, y, x + w, y + h])
                labels.append(label)
            sample = make_sample(image, boxes[:3], labels[:3], boxes[3:], 10 * number)
            self.samples.append(sample)
        self.sizes = np.array(sizes)

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]

    def mask_of(self, index, row):
        sample = self.samples[index]
        return rectangle(sample.image.shape[:2], *sample.boxes[row].astype(int))


def rectangle(size, x1, y1, x2, y2) -> np.ndarray:
    """A mask."""
    mask = np.zeros(size, np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def view_of(dataset, **settings) -> TransformedDataset:
    """A data set as training sees it."""
    return TransformedDataset(dataset, Transform(LONG), Augment(LONG, **settings))


def off_by(image: np.ndarray, box: np.ndarray, channel: int) -> float:
    """Pixels between a box and what is inside it of the colour of its label."""
    x1, y1 = np.floor(box[:2]).astype(int)
    x2, y2 = np.ceil(box[2:]).astype(int)
    inside = image[y1:y2, x1:x2, channel] >= PRESENT
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    assert len(columns), "nothing of its colour"
    found = [x1 + columns[0], y1 + rows[0], x1 + columns[-1] + 1, y1 + rows[-1] + 1]
    return np.abs(np.array(found) - box).max()


# All of them: boxes, sizes, randomness


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
def test_each_box_holds_the_colour_of_its_label(settings):
    dataset, boxes, regions = Coloured(), 0, 0
    view = view_of(dataset, **settings)
    view.transform = Transform(LONG, flip_horizontal=0.5, flip_vertical=0.5)
    for epoch in range(12):
        for index in range(len(dataset)):
            sample, meta = view[SampleKey(index, epoch, SHORT)]
            height, width = sample.image.shape[:2]
            assert sample.image.dtype == np.uint8
            assert len(sample.boxes) == len(sample.labels)
            assert sample.boxes.dtype == sample.ignore_boxes.dtype == np.float32
            both = np.concatenate((sample.boxes, sample.ignore_boxes))
            assert (both >= 0).all()
            assert (both[:, [0, 2]] <= width).all()
            assert (both[:, [1, 3]] <= height).all()
            channels = [*sample.labels.tolist(), *[2] * len(sample.ignore_boxes)]
            for box, channel in zip(both, channels, strict=True):
                if settings.get("copy_paste") and (channel == 2 or len(settings) > 1):
                    # Regions do not shrink with what hides them, and of an object that is hidden
                    # in part a window may show the other part.
                    continue
                # A pixel, and half of one more where the picture was enlarged.
                assert off_by(sample.image, box, channel) <= 1.5, (epoch, index, box)
            boxes, regions = boxes + len(sample.boxes), regions + len(sample.ignore_boxes)
            # The frame of the network, and a meta that agrees with the picture.
            assert (height, width) == meta.input_size
            assert min(height, width) <= SHORT
            assert max(height, width) <= LONG
            assert_close(np.array(meta.original_size[::-1]) * meta.scale, (width, height))
            if settings != EACH["crop"]:
                own = resized_size(tuple(dataset.sizes[index]), SHORT, LONG)
                assert settings.get("crop", 0) or (height, width) == own
            known = {other.image_id for other in dataset.samples}
            assert meta.image_id == dataset.samples[index].image_id
            assert set(meta.others) <= known
    assert boxes > 100
    assert regions > 20


def test_where_nothing_overlaps_no_colour_is_without_its_box():
    """What is left in a mosaic without a box is less than a quarter of its object."""
    dataset = Coloured()
    view = view_of(dataset, mosaic=1.0, scale_jitter=(1.0, 1.0001))
    for epoch in range(10):
        sample, meta = view[SampleKey(0, epoch, SHORT)]
        left = sample.image.copy()
        for box in np.concatenate((sample.boxes, sample.ignore_boxes)):
            x1, y1 = np.floor(box[:2]).astype(int) - 1
            x2, y2 = np.ceil(box[2:]).astype(int) + 1
            left[max(y1, 0) : y2, max(x1, 0) : x2] = 0
        unlabelled = ((left >= PRESENT) & (left != FILL)).sum()
        labelled = ((sample.image >= PRESENT) & (sample.image != FILL)).sum()
        assert unlabelled < 0.25 * labelled
        assert len(meta.others) == 3


def content(item) -> tuple:
    sample, meta = item
    arrays = (sample.image, sample.boxes, sample.labels, sample.ignore_boxes)
    return (*(array.tobytes() for array in arrays), meta)


def test_seed_epoch_and_index_decide_and_nothing_else():
    dataset, keys = Coloured(), [SampleKey(i, e, SHORT) for e in range(3) for i in range(5)]
    first = view_of(dataset, **ALL)
    want = [content(first[key]) for key in keys]
    np.random.seed(5)
    again = view_of(Coloured(), **ALL)
    assert [content(again[key]) for key in reversed(keys)][::-1] == want
    assert len({pixels for pixels, *_ in want}) == len(keys)
    other = view_of(dataset, **ALL, seed=1)
    assert all(
        content(other[key])[0] != one[0] for key, one in zip(keys, want, strict=True) if one[1]
    )


@pytest.mark.parametrize("name", ["mosaic", "scale_jitter"])
def test_a_change_draws_the_same_whether_others_are_on_or_not(name):
    dataset, key = Coloured(), SampleKey(1, 2, SHORT)
    alone = content(view_of(dataset, **EACH[name])[key])
    rarely = {other: 1e-12 for other in ("mixup", "copy_paste", "crop")}
    assert content(view_of(dataset, **EACH[name], **rarely)[key]) == alone


def loaded(workers: int, first_step: int = 0) -> list:
    """The pixels and boxes of an epoch's batches, from a step on."""
    dataset = Coloured()
    sampler = TrainSampler(dataset.sizes, 2, (SHORT, SHORT))
    sampler.set_position(1, first_step)
    loader = BatchLoader(view_of(dataset, **ALL), sampler, workers)
    batches = [(b.images.tolist(), b.targets.boxes.tolist(), b.metas) for b in loader]
    loader.close()
    return batches


def test_workers_and_resuming_change_nothing():
    want = loaded(0)
    assert len(want) == 3
    assert loaded(2) == want
    assert loaded(0, first_step=2) == want[2:]


def test_mosaic_mixup_and_copy_paste_end_before_the_last_epochs():
    view = view_of(Coloured(), mosaic=1.0, mixup=1.0, copy_paste=1.0, strong_epochs=3)
    for epoch in range(5):
        sample, meta = view[SampleKey(0, epoch, SHORT)]
        assert len(meta.others) == (5 if epoch < 3 else 0)
    plain, plain_meta = TransformedDataset(Coloured(), Transform(LONG))[SampleKey(0, 4, SHORT)]
    assert content((sample, meta)) == content((plain, plain_meta))


def test_scale_jitter_and_crop_go_on_to_the_end():
    view = view_of(Coloured(), scale_jitter=(0.3, 0.5), strong_epochs=0)
    assert (view[SampleKey(0, 9, SHORT)][0].image == FILL).mean() > 0.5
    key = SampleKey(0, 9, SHORT)
    cut, _ = view_of(Coloured(), crop=1.0, strong_epochs=0)[key]
    whole, _ = TransformedDataset(Coloured(), Transform(LONG))[key]
    assert cut.image.shape != whole.image.shape


def test_probabilities():
    view = view_of(Coloured(), mosaic=0.3)
    drawn = [len(view[SampleKey(i % 5, i // 5, 32)][1].others) for i in range(1000)]
    assert set(drawn) == {0, 3}
    # 6 % of 1,000 draws are 4.1 standard deviations.
    assert np.mean(np.array(drawn) == 3) == pytest.approx(0.3, abs=0.06)


@pytest.mark.parametrize("settings", SETTINGS, ids=NAMES)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (3, 2), (50, 60)])
def test_one_picture_without_objects_or_of_a_pixel(settings, size):
    dataset = Coloured(())
    dataset.samples = [make_sample(np.full((*size, 3), 200, np.uint8))]
    view = view_of(dataset, **settings)
    for epoch in range(4):
        sample, meta = view[SampleKey(0, epoch, SHORT)]
        assert sample.boxes.shape == (0, 4)
        assert sample.labels.shape == (0,)
        assert sample.labels.dtype == np.int64
        assert sample.image.shape == (*meta.input_size, 3)


# The parts, by hand


def test_lay_cuts_and_fills():
    image = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    assert lay(image, (2, 3), (3, 4), (1, 1), 0).tolist() == [
        [0, 0, 0, 0],
        [0, 1, 2, 3],
        [0, 4, 5, 6],
    ]
    assert lay(image, (2, 3), (1, 2), (-1, -1), 0).tolist() == [[5, 6]]
    assert lay(image, (2, 3), (2, 2), (-2, 1), 0).tolist() == [[0, 0], [3, 0]]
    assert lay(image, (2, 3), (2, 2), (5, 0), 9).tolist() == [[9, 9], [9, 9]]
    assert lay(image, (2, 3), (2, 2), (0, -4), 9).tolist() == [[9, 9], [9, 9]]


def test_boxes_of_a_laid_sample():
    # Doubled and moved by (-8, 4): x becomes 2 x - 8 and y becomes 2 y + 4, within 20 x 20.
    boxes = [[6, 1, 10, 5], [0, 0, 8, 4], [0, 0, 5, 4], [10, 2, 10.9, 8]]
    sample = make_sample(np.zeros((10, 16, 3), np.uint8), boxes, [3, 1, 2, 5], [[0, 0, 5, 4]], 7)
    got = lay_sample(sample, (20, 32), (20, 20), (-8, 4))
    # The second keeps half, the third a fifth, the last is 1.8 pixels wide.
    assert_close(got.boxes, [[4, 6, 12, 14], [0, 4, 8, 12]])
    assert got.labels.tolist() == [3, 1]
    assert_close(got.ignore_boxes, [[0, 4, 2, 12]])
    assert got.image_id == 7


def test_share_and_side_from_which_a_box_stays():
    boxes = np.array([[-30, 0, 10, 10], [-31, 0, 10, 10], [0, 0, 2, 2], [0, 0, 1.9, 9]], np.float32)
    clipped, kept = clip_boxes(boxes, (20, 20))
    assert kept.tolist() == [True, False, True, False]
    assert_close(clipped[:2], [[0, 0, 10, 10]] * 2)
    assert clip_boxes(boxes, (20, 20), 0.0)[1].tolist() == [True, True, True, False]


def test_mosaic_of_four_flat_pictures():
    flat = [
        make_sample(np.full((40, 40, 3), n + 1, np.uint8), [[0, 0, 40, 40]], [n]) for n in range(4)
    ]
    got = mosaic(flat, (40, 60), (2.0, 2.0), np.random.default_rng(0))
    # Twice as large as the picture that fits, each covers its part: four flat rectangles.
    values, counts = np.unique(got.image[..., 0], return_counts=True)
    assert values.tolist() == [1, 2, 3, 4]
    assert counts.sum() == 40 * 60
    y = int((got.image[:, 0, 0] == 1).sum())
    x = int((got.image[0, :, 0] == 1).sum())
    assert 10 <= y <= 30
    assert 15 <= x <= 45


def test_mixup_is_the_mean_with_the_objects_of_both():
    first = make_sample(np.full((4, 5, 3), 100, np.uint8), [[0, 0, 2, 2]], [3], [[1, 1, 2, 2]], 1)
    second = make_sample(np.full((4, 5, 3), 50, np.uint8), [[1, 1, 4, 4]], [5], (), 2)
    got = mixed(first, second)
    assert (got.image == 75).all()
    assert got.boxes.tolist() == [[0, 0, 2, 2], [1, 1, 4, 4]]
    assert got.labels.tolist() == [3, 5]
    assert got.ignore_boxes.tolist() == [[1, 1, 2, 2]]
    assert got.image_id == 1


def test_crop_keeps_all_boxes_and_varies():
    image = np.random.default_rng(0).integers(0, 255, (80, 100, 3)).astype(np.uint8)
    sample = make_sample(image, [[20.4, 30.6, 40.2, 50]], [2], [[35, 25, 60.5, 41]])
    shapes = set()
    for seed in range(100):
        got = random_crop(sample, np.random.default_rng(seed))
        height, width = got.image.shape[:2]
        shapes.add((height, width))
        left, top = (sample.boxes - got.boxes)[0, :2].round().astype(int)
        assert (got.image == image[top : top + height, left : left + width]).all()
        assert_close(got.boxes + np.array([left, top] * 2), sample.boxes, atol=1e-4)
        both = np.concatenate((got.boxes, got.ignore_boxes))
        assert (both >= 0).all()
        assert (both <= [width, height] * 2).all()
        assert height >= 24
        assert width >= 41
    assert len(shapes) > 90
    # From 25 to 50 and 20 to 61: the smallest crop is not far from it.
    assert min(height for height, _ in shapes) < 35
    full = replace(sample, boxes=np.array([[0, 0, 100, 80]], np.float32))
    assert random_crop(full, np.random.default_rng(0)).image.shape == (80, 100, 3)


def test_crop_of_a_picture_without_objects():
    sample = make_sample(np.zeros((50, 60, 3), np.uint8))
    for seed in range(50):
        height, width, _ = random_crop(sample, np.random.default_rng(seed)).image.shape
        assert 15 <= height <= 50
        assert 18 <= width <= 60


@pytest.mark.parametrize("known", [True, False])
def test_pasted_objects_hide_what_is_behind(known):
    size = (20, 40)
    behind = [[0, 0, 10, 10], [10, 10, 20, 20], [25, 0, 35, 20]]
    sample = make_sample(np.full((*size, 3), 10, np.uint8), behind, [1, 2, 3], [[0, 0, 40, 20]], 4)
    masks = [rectangle(size, *box) if known else None for box in behind]
    # In front: x from 6 to 19, y from 0 to 20. It hides 4 of 10 columns, 9 of 10, none.
    front = make_sample(np.full((*size, 3), 200, np.uint8), [[6, 0, 19, 20]], [9])
    front_masks = [rectangle(size, 6, 0, 19, 20)]
    rng = np.random.default_rng(0)
    got = copy_pasted(sample, masks.__getitem__, front, front_masks.__getitem__, (1.0, 1.0), rng)
    assert got.boxes.tolist() == [[0, 0, 6, 10], [25, 0, 35, 20], [6, 0, 19, 20]]
    assert got.labels.tolist() == [1, 3, 9]
    assert got.labels.dtype == np.int64
    assert (got.image[:, 6:19] == 200).all()
    assert (got.image[:, :6] == 10).all()
    assert (got.image[:, 19:] == 10).all()
    assert got.ignore_boxes.tolist() == [[0, 0, 40, 20]]
    assert (sample.image == 10).all()


def test_objects_without_mask_are_not_pasted():
    sample = make_sample(np.full((20, 20, 3), 10, np.uint8), [[0, 0, 5, 5]])
    front = replace(sample, image=sample.image + 90)
    rng = np.random.default_rng(0)
    for second in (front, make_sample(front.image)):
        unknown = [lambda row: None] * 2
        assert copy_pasted(sample, unknown[0], second, unknown[1], (1.0, 1.0), rng) is sample


def test_a_bad_step_names_all_pictures_that_a_composed_one_shows(tmp_path):
    dataset = Coloured()
    view = view_of(dataset, mosaic=1.0)
    batch = collate([view[SampleKey(i, 0, 96)] for i in range(2)])
    bad = BadBatches(tmp_path, None, None, None, files_of=lambda image_id: [f"{image_id}.png"])
    meta = batch.metas[1]
    said = bad.save(7, [batch], [meta.image_id, *meta.others], {})
    kept = torch.load(tmp_path / "step_7.pt", weights_only=True)
    assert said == f"kept in {tmp_path / 'step_7.pt'}"
    assert kept["image_ids"] == [0, 10]
    shown = {i for meta in batch.metas for i in (meta.image_id, *meta.others)}
    assert kept["files"] == {i: [f"{i}.png"] for i in shown}
    assert kept["metas"][1]["others"] == meta.others


# Masks of annotation files

TRIANGLE = [[2, 2, 12, 2, 2, 12]]


def masks_of(segmentation, box=(2, 2, 12, 12), size=(16, 20)) -> Masks:
    return Masks([segmentation], np.array([size], np.int32), np.array([box], np.float32))


def test_masks_of_polygons_and_both_kinds_of_run_lengths():
    want = np.zeros((16, 20), np.uint8)
    want[4:9, 3:11] = 1
    flat = want.ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *changes.tolist(), flat.size]).tolist()
    compressed = coco_mask.encode(np.asfortranarray(want))["counts"].decode()
    box = (3, 4, 11, 9)
    for segmentation in (
        [[3, 4, 11, 4, 11, 9, 3, 9]],
        [[3, 4, 7, 4, 7, 9, 3, 9], [7, 4, 11, 4, 11, 9, 7, 9]],
        {"size": [16, 20], "counts": counts},
        {"size": [16, 20], "counts": compressed},
    ):
        masks = masks_of(segmentation, box)
        assert masks.known.tolist() == [True]
        assert (masks[0] == want).all(), segmentation
    # A triangle holds half of its box; rows and columns are not exchanged.
    assert masks_of(TRIANGLE)[0].sum() == pytest.approx(50, abs=6)
    assert masks_of([[2, 2, 12, 2, 12, 7]], (2, 2, 12, 7))[0][3, 10]


@pytest.mark.parametrize(
    "segmentation",
    [
        None,
        [],
        [[]],
        [[1, 2, 3, 4]],
        [[2, 2, 12, 2, 2]],
        [[2, 2, 12, 2, 2, float("nan")]],
        [["a"] * 6],
        "polygon",
        7,
        {},
        {"size": [20, 16], "counts": [320]},
        {"size": [16, 20], "counts": [10, 20]},
        {"size": [16, 20], "counts": [-10, 330]},
        {"size": [16, 20], "counts": [10**30]},
        {"size": [16, 20], "counts": "zzzzzzzzz"},
        {"size": [16, 20], "counts": "\u00e9"},
        {"size": 3, "counts": "a"},
        {"size": [16, 20], "counts": [320]},
        # Legible, but elsewhere than the box, or fractions of the picture.
        [[13, 2, 18, 2, 18, 12]],
        [[0.1, 0.1, 0.9, 0.1, 0.1, 0.9]],
    ],
)
def test_masks_that_can_not_be_used_are_unknown(segmentation):
    masks = masks_of(segmentation)
    assert masks.known.tolist() == [False]
    assert masks[0] is None


def with_masks(folder, every: int = 1):
    """A COCO folder in which every so manyeth object has a polygon: the box."""
    write_coco(folder, {"train": 4, "val": 2})
    path = folder / "annotations" / "train.json"
    listed = json.loads(path.read_text())
    for number, entry in enumerate(listed["annotations"]):
        x, y, w, h = entry["bbox"]
        if number % every == 0:
            entry["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    path.write_text(json.dumps(listed))
    return folder


def config_of(folder, **augment):
    return parse_config({"data": {"path": str(folder), "augment": augment}})


def test_masks_of_a_file_follow_their_boxes(tmp_path):
    config = config_of(with_masks(tmp_path, every=2), copy_paste=0.5)
    dataset = build.build_dataset(config, "train")
    assert dataset.num_masks == 4
    seen = 0
    for index in range(len(dataset)):
        sample = dataset[index]
        for row, box in enumerate(sample.boxes.astype(int)):
            mask = dataset.mask_of(index, row)
            if mask is not None:
                seen += 1
                assert (mask == rectangle(sample.image.shape[:2], *box)).all()
    assert seen == 4
    assert "4 of 8 objects have a mask" in augment_line(config, dataset)
    assert build.build_dataset(config, "val").num_masks == 0
    loader = build.build_train_loader(config, dataset)
    assert len(loader.load([SampleKey(i, 0, 96) for i in range(4)]).metas) == 4


def test_masks_are_read_only_if_they_are_used(tmp_path):
    folder = with_masks(tmp_path)
    assert build.build_dataset(config_of(folder, mosaic=0.5), "train").num_masks == 0


def test_copy_paste_without_masks_is_refused(tmp_path):
    config = config_of(write_coco(tmp_path, {"train": 2, "val": 1}), copy_paste=0.5)
    with pytest.raises(UserError, match=r"copy_paste is 0\.5, but no annotation .* segmentation"):
        build.build_dataset(config, "train")
    with pytest.raises(UserError, match="copy_paste is 0"):
        check_data(config, "train")
    assert len(build.build_dataset(config, "val")) == 1
    with pytest.raises(UserError, match="copy_paste"):
        build_augment(config, object())  # a data set of the user's own, which knows no masks


# The config


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data": {"augment": {"mosaic": 1.5}}}, ("mosaic", "1.5")),
        ({"data": {"augment": {"scale_jitter": [2, 1]}}}, ("scale_jitter", "[2.0, 1.0]")),
        ({"data": {"augment": {"scale_jitter": [1, 1]}}}, ("scale_jitter", "both 1")),
        ({"data": {"augment": {"scale_jitter": [0, 1]}}}, ("scale_jitter", "greater than 0")),
        ({"data": {"augment": {"close_mosaic": 3}}}, ("close_mosaic is 3", "all 0")),
        (
            {"data": {"augment": {"close_mosaic": 3, "mosaic": 1}}, "train": {"epochs": 3}},
            ("close_mosaic 3", "train.epochs 3"),
        ),
        (
            {"data": {"augment": {"copy_paste": 0.5}, "format": "voc", "path": "x"}},
            ("copy_paste", "voc has no masks"),
        ),
    ],
)
def test_what_has_no_effect_or_no_sense_is_refused(values, words):
    with pytest.raises(UserError) as error:
        parse_config(values)
    for word in words:
        assert word in str(error.value)


def test_everything_is_off_by_default():
    assert build_augment(parse_config({}), None) is None


def test_the_log_says_what_is_on():
    assert augment_line(parse_config({}), None) == "augmentation: flip_horizontal 0.5"
    off = parse_config({"data": {"augment": {"flip_horizontal": 0}}})
    assert augment_line(off, None) == "augmentation: none"
    augment = {"mosaic": 0.5, "mixup": 0.1, "scale_jitter": [0.5, 1.5], "close_mosaic": 4}
    line = augment_line(parse_config({"data": {"augment": augment}}), None)
    assert line == (
        "augmentation: flip_horizontal 0.5, mosaic 0.5, mixup 0.1, scale_jitter 0.5 to 1.5; "
        "no mosaic, mixup and copy_paste after epoch 8 of 12"
    )


def test_repeat_factor_of_a_config(tmp_path):
    folder = write_coco(tmp_path, {"train": 4, "val": 1})
    values = {"data": {"path": str(folder), "repeat_factor": 0.5}, "train": {"batch_size": 2}}
    path = folder / "annotations" / "train.json"
    listed = json.loads(path.read_text())
    # The second class in one image only: factor sqrt(0.5 / 0.25) = 1.41, and 0.41 makes 0.
    rare = [a for a in listed["annotations"] if a["category_id"] == 7][1:]
    listed["annotations"] = [a for a in listed["annotations"] if a not in rare]
    path.write_text(json.dumps(listed))
    config = parse_config(values)
    dataset = build.build_dataset(config, "train")
    assert repeat_line(config, dataset) == (
        "data.repeat_factor 0.5: 1 of 4 images come more often, up to 1.41 times; 4 an epoch. "
        "Objects: disc 1 -> 1, square 4 -> 4"
    )
    values["data"]["repeat_factor"] = 1.0
    assert repeat_line(parse_config(values), dataset).endswith("disc 1 -> 2, square 4 -> 5")
    loader = build.build_train_loader(parse_config(values), dataset)
    # sqrt(1 / 0.25) = 2: one image comes twice.
    keys = [key for batch in loader.batch_sampler.global_batches() for key in batch]
    assert loader.batch_sampler.steps_per_epoch == 3
    assert sorted(key.repeat for key in keys) == [0, 0, 0, 0, 1, 1]
    assert build_factors(parse_config({}), None) is None
    with pytest.raises(UserError, match=r"repeat_factor is 1, .* no method objects"):
        build_factors(parse_config(values), object())


def test_the_built_one_ends_where_the_config_says():
    augment = {"mosaic": 0.5, "close_mosaic": 4}
    built = build_augment(parse_config({"data": {"augment": augment}, "train": {"seed": 3}}), None)
    assert (built.strong_epochs, built.seed, built.long) == (8, 3, 1333)


@pytest.mark.parametrize(
    ("share", "epochs", "last"),
    [(0.1, 12, 11), (0.1, 9, 8), (0.1, 1, 1), (0.29, 100, 71), (0.9, 2, 1), (0.5, 4, 2)],
)
def test_a_share_of_the_epochs_is_closed_and_fits_any_number(share, epochs, last):
    augment = {"mosaic": 0.5, "close_mosaic": share}
    config = parse_config({"data": {"augment": augment}, "train": {"epochs": epochs}})
    assert build_augment(config, None).strong_epochs == last
    assert (f"after epoch {last} of {epochs}" in augment_line(config, None)) == (last < epochs)
    # Nothing to close is no mistake of whoever turns a shipped config's mosaic off.
    off = parse_config({"data": {"augment": augment | {"mosaic": 0}}})
    assert "after epoch" not in augment_line(off, None)


def test_coco_dataset_reads_no_masks_by_itself(tmp_path):
    folder = with_masks(tmp_path)
    dataset = CocoDataset([(folder / "images", folder / "annotations" / "train.json")])
    assert dataset.num_masks == 0
    assert dataset.mask_of(0, 0) is dataset.mask_of(0, 1) is None


def flat_pictures() -> list:
    """Four of 40 x 40 in a grey of their own, each one object."""
    pixels = [np.full((40, 40, 3), n + 1, np.uint8) for n in range(4)]
    return [make_sample(image, [[0, 0, 40, 40]], [n]) for n, image in enumerate(pixels)]


def test_small_pictures_of_a_mosaic_touch_its_centre():
    """Of 8 x 8 pixels each; the centre lies between a quarter and three quarters."""
    centres = []
    for seed in range(100):
        got = mosaic(flat_pictures(), (40, 80), (0.2, 0.2), np.random.default_rng(seed))
        x, y = got.boxes[0, 2:]
        want = [[x - 8, y - 8, x, y], [x, y - 8, x + 8, y], [x - 8, y, x, y + 8]]
        assert got.boxes.tolist() == [*want, [x, y, x + 8, y + 8]]
        for n, (x1, y1, x2, y2) in enumerate(got.boxes.astype(int)):
            assert (got.image[y1:y2, x1:x2] == n + 1).all()
        centres.append((x, y))
    low, high = np.min(centres, 0), np.max(centres, 0)
    assert (low >= (20, 10)).all() and (low <= (24, 12)).all()
    assert (high <= (60, 30)).all() and (high >= (56, 28)).all()


def test_large_pictures_of_a_mosaic_show_any_part_of_themselves():
    columns = np.tile(np.arange(40, dtype=np.uint8)[:, None], (40, 1, 3))
    samples = [make_sample(columns)] * 4
    first = [
        int(mosaic(samples, (40, 40), (1.0, 1.0), np.random.default_rng(seed)).image[0, 0, 0])
        for seed in range(50)
    ]
    assert len(set(first)) > 10


@pytest.mark.parametrize(
    ("stated", "factors"), [({}, (0.5, 1.5)), ({"scale_jitter": (0.3, 0.4)}, (0.3, 0.4))]
)
def test_factors_of_a_mosaic(stated, factors, monkeypatch):
    seen = []

    def watched(samples, frame, factors, rng):
        seen.append(factors)
        return mosaic(samples, frame, factors, rng)

    monkeypatch.setattr(gfl.data.augment, "mosaic", watched)
    view_of(Coloured(), mosaic=1.0, **stated)[SampleKey(0, 0, SHORT)]
    assert seen == [factors]


def pasted(front, masks, factors=(1.0, 1.0), seed=0, behind=()):
    """Objects of `front` over a picture of 20 x 40."""
    sample = make_sample(np.full((20, 40, 3), 10, np.uint8), behind, [1] * len(behind))
    rng = np.random.default_rng(seed)
    return copy_pasted(sample, lambda row: None, front, masks.__getitem__, factors, rng), sample


def test_an_object_of_a_larger_picture_is_pasted_as_small_as_it_is_seen():
    """At a quarter of its size, of a sixteenth of its pixels."""
    front = make_sample(np.full((80, 160, 3), 200, np.uint8), [[40, 20, 80, 60]], [9])
    got, _ = pasted(front, [rectangle((80, 160), 40, 20, 80, 60)])
    assert got.boxes.tolist() == [[10, 5, 20, 15]] and got.labels.tolist() == [9]


def test_an_object_of_which_little_is_seen_is_not_pasted():
    """Three times as large as the picture, a ninth of it is in there; at half of that, 4 / 9."""
    front = make_sample(np.full((20, 40, 3), 200, np.uint8), [[0, 0, 40, 20]], [9])
    masks = [rectangle((20, 40), 0, 0, 40, 20)]
    got, sample = pasted(front, masks, (3.0, 3.0))
    assert got is sample
    got, _ = pasted(front, masks, (1.5, 1.5))
    assert got.boxes.tolist() == [[0, 0, 40, 20]]


def test_about_half_of_the_objects_are_pasted():
    boxes = [[10 * n, 0, 10 * n + 8, 20] for n in range(4)]
    front = make_sample(np.full((20, 40, 3), 200, np.uint8), boxes, [9] * 4)
    masks = [rectangle((20, 40), *box) for box in boxes]
    counts = [len(pasted(front, masks, seed=seed)[0].labels) for seed in range(200)]
    # Half of four, and one for certain: 2.5 with a standard error of 0.06.
    assert set(counts) == {1, 2, 3, 4}
    assert np.mean(counts) == pytest.approx(2.5, abs=0.25)


def test_what_is_left_of_a_box_lies_within_it():
    front = make_sample(np.full((20, 40, 3), 200, np.uint8), [[6, 0, 19, 20]], [9])
    got, _ = pasted(front, [rectangle((20, 40), 6, 0, 19, 20)], behind=[[0.5, 0.25, 9.5, 9.75]])
    assert got.boxes.tolist() == [[0.5, 0.25, 6, 9.75], [6, 0, 19, 20]]
