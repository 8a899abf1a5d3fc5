"""Resizing, flips, colour: sizes, boxes, and randomness that depends on seed, epoch and index."""

import random

import albumentations as A
import cv2
import numpy as np
import pytest
from conftest import assert_close

from gfl.data.dataset import Sample
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.sampler import SampleKey, TrainSampler
from gfl.data.transforms import Transform, resized_size

NOTHING = np.zeros((0, 4), np.float32)


def make_sample(image: np.ndarray, boxes=(), labels=None, ignore=(), image_id: int = 0) -> Sample:
    """A sample from lists."""
    labels = range(len(boxes)) if labels is None else labels
    return Sample(
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(list(labels), np.int64),
        np.array(ignore, np.float32).reshape(-1, 4),
        image_id,
    )


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """An RGB picture in which every pixel is another."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


def same_size(sample: Sample) -> int:
    """The bound with which the picture keeps its size."""
    return min(sample.image.shape[:2])


# Sizes


@pytest.mark.parametrize(
    ("size", "short", "long", "want"),
    [
        # Factor 800 / 480; 640 * 1.6667 = 1066.67.
        ((480, 640), 800, 1333, (800, 1067)),
        ((640, 480), 800, 1333, (1067, 800)),
        # The long side decides: 1333 / 1600 = 0.833125; 640 * 0.833125 = 533.2.
        ((640, 1600), 800, 1333, (533, 1333)),
        # 800 / 427 = 1.87354; 640 * 1.87354 = 1199.06.
        ((427, 640), 800, 1333, (800, 1199)),
        ((800, 1333), 800, 1333, (800, 1333)),
        ((500, 500), 800, 1333, (800, 800)),
        # Halves round up, to 3 and 5, where Python's round gives 2 and 4.
        ((2, 5), 1, 100, (1, 3)),
        ((9, 2), 1, 100, (5, 1)),
        # No side vanishes.
        ((1, 1000), 100, 10, (1, 10)),
    ],
)
def test_resized_size(size, short, long, want):
    assert resized_size(size, short, long) == want


def test_sides_stay_within_their_bounds_and_one_reaches_its_own():
    rng = np.random.default_rng(0)
    for height, width in rng.integers(20, 3000, (500, 2)).tolist():
        short = int(rng.integers(480, 801))
        got = resized_size((height, width), short, 1333)
        assert min(got) <= short
        assert max(got) <= 1333
        assert min(got) == short or max(got) == 1333


def test_picture_boxes_and_meta_agree():
    boxes, ignore = [[3.0, 5.0, 50.5, 60.25]], [[0, 0, 97, 61]]
    sample = make_sample(noise(61, 97), boxes, [4], ignore, image_id=12)
    got, meta = Transform(100)(sample, SampleKey(0, 0, 80))
    # Factor 100 / 97; 61 * 1.03093 = 62.887.
    assert got.image.shape == (63, 100, 3)
    assert got.image.dtype == np.uint8
    assert meta.original_size == (61, 97)
    assert meta.input_size == (63, 100)
    assert meta.scale == (100 / 97, 63 / 61)
    factors = np.array([100 / 97, 63 / 61] * 2)
    assert_close(got.boxes, np.array(boxes) * factors)
    assert_close(got.ignore_boxes, [[0, 0, 100, 63]])
    assert got.boxes.dtype == np.float32
    assert got.labels.tolist() == [4]
    assert got.image_id == meta.image_id == 12


def test_picture_of_the_right_size_is_left_alone():
    sample = make_sample(noise(40, 60), [[1, 2, 3, 4]])
    got, meta = Transform(60)(sample, SampleKey(0, 0, 40))
    assert (got.image == sample.image).all()
    assert (got.boxes == sample.boxes).all()
    assert meta.scale == (1.0, 1.0)


def test_doubling_interpolates_between_pixel_centres():
    # Columns 0 and 100, doubled: centres at -0.25, 0.25, 0.75, 1.25 of the old columns.
    image = np.zeros((2, 2, 3), np.uint8)
    image[:, 1] = 100
    got, _ = Transform(4)(make_sample(image), SampleKey(0, 0, 4))
    assert got.image[2, :, 0].tolist() == [0, 25, 75, 100]


def test_short_side_follows_the_key():
    transform = Transform(1333, flip_horizontal=0.5)
    sample = make_sample(noise(30, 40), [[1, 2, 30, 20]])
    for short in (32, 47, 64):
        got, meta = transform(sample, SampleKey(0, 0, short))
        assert min(got.image.shape[:2]) == min(meta.input_size) == short
        assert meta.scale == pytest.approx((short / 30, short / 30), rel=0.02)


# Flips

# In a picture of 8 x 10 (h, w): x becomes 10 - x and y becomes 8 - y, and the corners swap.
BOX = [1, 2, 4, 7]
MIRRORED = [6, 2, 9, 7]
UPSIDE_DOWN = [1, 1, 4, 6]
BOTH = [6, 1, 9, 6]


@pytest.mark.parametrize(
    ("horizontal", "vertical", "want"),
    [(0, 0, BOX), (1, 0, MIRRORED), (0, 1, UPSIDE_DOWN), (1, 1, BOTH)],
)
def test_flip_moves_pixels_and_boxes_alike(horizontal, vertical, want):
    sample = make_sample(noise(8, 10), [BOX], [3], [[0, 0, 10, 8], BOX])
    transform = Transform(10, flip_horizontal=horizontal, flip_vertical=vertical)
    got, meta = transform(sample, SampleKey(0, 0, 8))
    image = sample.image[:, ::-1] if horizontal else sample.image
    image = image[::-1] if vertical else image
    assert (got.image == image).all()
    assert_close(got.boxes, [want], atol=1e-5)
    assert_close(got.ignore_boxes, [[0, 0, 10, 8], want], atol=1e-5)
    assert got.labels.tolist() == [3]
    assert meta.scale == (1.0, 1.0)
    x1, y1, x2, y2 = want
    inside = got.image[y1:y2, x1:x2].reshape(-1, 3)
    before = sample.image[2:7, 1:4].reshape(-1, 3)
    assert sorted(inside.tolist()) == sorted(before.tolist())


def test_flip_of_a_resized_picture():
    # Doubled to 16 x 20, then mirrored: 20 - 2 * x.
    sample = make_sample(noise(8, 10), [BOX])
    got, meta = Transform(20, flip_horizontal=1.0)(sample, SampleKey(0, 0, 16))
    assert_close(got.boxes, [[12, 4, 18, 14]], atol=1e-5)
    assert meta.input_size == (16, 20)


def test_labels_follow_their_boxes():
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, 30, (50, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(1, 9, (50, 2))), 1)
    labels = rng.integers(0, 80, 50)
    sample = make_sample(noise(40, 40), boxes, labels, boxes[:7] / 2)
    got, _ = Transform(40, 1.0, 1.0, 1.0)(sample, SampleKey(5, 3, 40))
    assert got.labels.tolist() == labels.tolist()
    assert got.labels.dtype == np.int64
    assert_close(got.boxes, 40 - boxes[:, [2, 3, 0, 1]], atol=1e-4)
    assert_close(got.ignore_boxes, 40 - boxes[:7, [2, 3, 0, 1]] / 2, atol=1e-4)


@pytest.mark.parametrize("ignore", [[], [BOX]])
def test_sample_without_objects(ignore):
    sample = make_sample(noise(8, 10), ignore=ignore)
    got, _ = Transform(10, 1.0, 1.0, 1.0)(sample, SampleKey(0, 0, 8))
    assert got.boxes.shape == (0, 4)
    assert got.boxes.dtype == got.ignore_boxes.dtype == np.float32
    assert got.labels.shape == (0,)
    assert got.labels.dtype == np.int64
    assert_close(got.ignore_boxes, [BOTH] if ignore else NOTHING, atol=1e-5)


def test_color_changes_pixels_and_nothing_else():
    rng = np.random.default_rng(2)
    corner = rng.uniform(0, 30, (20, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(1, 9, (20, 2))), 1)
    sample = make_sample(noise(40, 40), boxes, ignore=[[0, 0, 40, 40]])
    got, _ = Transform(40, color=1.0)(sample, SampleKey(0, 0, 40))
    assert got.image.shape == sample.image.shape
    assert got.image.dtype == np.uint8
    assert (got.image != sample.image).mean() > 0.5
    assert_close(got.boxes, sample.boxes, atol=1e-5)
    assert_close(got.ignore_boxes, sample.ignore_boxes)


# Randomness


def flips_of(transform: Transform, key: SampleKey) -> tuple[bool, bool]:
    """Whether a sample is mirrored, and whether it is upside down."""
    image = np.zeros((2, 2, 3), np.uint8)
    image[0, 0] = 255
    got, _ = transform(make_sample(image), key)
    row, column = np.argwhere(got.image[..., 0] == 255)[0]
    return bool(column), bool(row)


def test_each_flip_draws_from_its_own_stream():
    transform = Transform(2, flip_horizontal=0.5, flip_vertical=0.5)
    counts = dict.fromkeys([(False, False), (False, True), (True, False), (True, True)], 0)
    for epoch in range(4):
        for index in range(1000):
            counts[flips_of(transform, SampleKey(index, epoch, 2))] += 1
    # 3 % of 4,000 draws are 4.4 standard deviations.
    for combination, count in counts.items():
        assert 0.22 < count / 4000 < 0.28, combination


def test_one_flip_falls_as_often_as_it_is_asked_to():
    transform = Transform(2, flip_horizontal=0.2)
    flips = [flips_of(transform, SampleKey(index, 0, 2)) for index in range(2000)]
    # 3.5 % of 2,000 draws are 3.9 standard deviations.
    assert np.mean([mirrored for mirrored, _ in flips]) == pytest.approx(0.2, abs=0.035)
    assert not any(upside_down for _, upside_down in flips)


def changed(seed: int, index: int, epoch: int, transform: Transform | None = None) -> bytes:
    """The pixels that all changes together make of one picture."""
    transform = transform or Transform(20, 0.5, 0.5, 1.0, seed)
    got, _ = transform(make_sample(noise(20, 20)), SampleKey(index, epoch, 20))
    return got.image.tobytes()


def test_seed_epoch_and_index_decide_and_nothing_else():
    want = changed(0, 1, 2)
    assert changed(0, 1, 2) == want
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3), (0, 2, 1)):
        assert changed(*other) != want, other


def test_each_change_has_draws_of_its_own_whichever_others_are_on():
    keys = [SampleKey(index, 0, 20) for index in range(40)]

    def upside_down(**chances):
        transform = Transform(20, flip_vertical=0.5, **chances)
        rows = np.broadcast_to(np.arange(20, dtype=np.uint8)[:, None, None], (20, 20, 3)).copy()
        return [transform(make_sample(rows), key)[0].image[0, 0, 0] > 0 for key in keys]

    alone = upside_down()
    assert upside_down(flip_horizontal=0.5) == alone and 5 < sum(alone) < 35


def test_order_of_calls_and_global_random_state_do_not_matter():
    keys = [(index, epoch) for index in range(6) for epoch in range(2)]
    transform = Transform(20, 0.5, 0.5, 1.0, 0)
    forward = [changed(0, *key, transform) for key in keys]
    np.random.seed(123)
    backward = [changed(0, *key, transform) for key in reversed(keys)][::-1]
    assert backward == forward
    assert len(set(forward)) == len(keys)


def by_albumentations(
    long: int, chances: tuple, seed: int, sample: Sample, key: SampleKey
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Image, boxes, labels, ignore boxes: resized and changed by albumentations alone."""
    height, width = resized_size(sample.image.shape[:2], key.short, long)
    image = A.Resize(height, width, interpolation=cv2.INTER_LINEAR)(image=sample.image)["image"]
    scale = (width / sample.image.shape[1], height / sample.image.shape[0])
    both = np.concatenate((sample.boxes, sample.ignore_boxes)) * np.array(scale * 2, np.float32)
    horizontal, vertical, color = chances
    jitter = A.ColorJitter((0.7, 1.3), (0.7, 1.3), (0.7, 1.3), (-0.05, 0.05), p=color)
    changes = [A.HorizontalFlip(p=horizontal), A.VerticalFlip(p=vertical), jitter]
    changes = [change for change in changes if change.p > 0]
    boxes = A.BboxParams(format="pascal_voc", label_fields=["rows"], clip=True)
    compose = A.Compose(changes, boxes if horizontal or vertical else None)
    numbers = [number for number, chance in enumerate(chances) if chance > 0]
    for number, change in zip(numbers, compose.transforms, strict=True):
        stream = np.random.default_rng((seed, key.epoch, key.index, number))
        change.set_random_state(stream, random.Random(int(stream.integers(2**63))))
    changed = compose(image=image, bboxes=both, rows=np.arange(len(both)))
    rows = np.asarray(changed["rows"], np.int64)
    both = np.asarray(changed["bboxes"], np.float32).reshape(-1, 4)
    objects = rows < len(sample.boxes)
    return changed["image"], both[objects], sample.labels[rows[objects]], both[~objects]


CHANCES = [(0.5, 0, 0), (0, 0.5, 0), (0.5, 0.5, 0), (0.5, 0.5, 0.5), (1, 1, 1), (0, 0, 0.5)]


@pytest.mark.parametrize("chances", CHANCES)
def test_every_bit_is_that_of_albumentations(chances):
    rng = np.random.default_rng(0)
    for turn in range(40):
        height, width = rng.integers(2, 60, 2).tolist()
        count, first = int(rng.integers(0, 6)), int(rng.integers(0, 4))
        corners = np.sort(rng.uniform(-0.1, 1.1, (count, 2, 2)).clip(0, 1), axis=1) ** (
            1 + turn % 3
        )
        boxes = (corners.reshape(-1, 4) * ([width, height] * 2)).astype(np.float32)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2] + 1e-3).all(1)]
        sample = make_sample(noise(height, width, turn), boxes[first:], ignore=boxes[:first])
        key = SampleKey(turn, turn % 7, int(rng.integers(8, 60)))
        got, _ = Transform(80, *chances, seed=turn % 3)(sample, key)
        want = by_albumentations(80, chances, turn % 3, sample, key)
        for a, b in zip((got.image, got.boxes, got.labels, got.ignore_boxes), want, strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            assert (a == b).all()


def test_box_outside_of_its_image_is_not_flipped_away():
    sample = make_sample(noise(8, 10), [[12, 1, 14, 3]], image_id=5)
    with pytest.raises(ValueError, match="do not all lie in their image"):
        Transform(10, flip_horizontal=0.5)(sample, SampleKey(0, 0, 8))


class Noise:
    """Pictures of two shapes with a few objects."""

    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> Sample:
        size = (24, 36) if index % 3 else (36, 24)
        boxes = [[k, 2 * k, k + 9, 2 * k + 9] for k in range(index % 4)]
        return make_sample(noise(*size, seed=index), boxes, ignore=boxes[:1], image_id=index)


def loaded(workers: int) -> list:
    """The batches of two epochs."""
    dataset = TransformedDataset(Noise(), Transform(64, 0.5, 0.5, 0.8, seed=3))
    sizes = np.array([dataset.dataset[index].image.shape[:2] for index in range(len(dataset))])
    sampler = TrainSampler(sizes, 4, (32, 48), seed=3)
    loader = BatchLoader(dataset, sampler, workers)
    batches = []
    for epoch in range(2):
        sampler.set_position(epoch)
        batches += loader
    return batches


def test_worker_processes_change_no_bit():
    here, elsewhere = loaded(0), loaded(2)
    assert len(here) == len(elsewhere) == 6
    for got, want in zip(elsewhere, here, strict=True):
        assert got.metas == want.metas
        assert got.images.equal(want.images)
        assert got.input_sizes.equal(want.input_sizes)
        for name in ("boxes", "labels", "present", "valid_size", "ignore_boxes", "ignore_present"):
            assert getattr(got.targets, name).equal(getattr(want.targets, name)), name
    assert not here[0].images.equal(here[3].images)
