"""Which image goes to which batch on which process."""

from collections import Counter
from itertools import chain

import numpy as np
import pytest

from gfl.data.batch import padded_size
from gfl.data.repeat_factor import epoch_counts, epoch_length, repeat_factors
from gfl.data.sampler import EvalSampler, SampleKey, TrainSampler
from gfl.data.transforms import resized_size

SHORT = (480, 800)


def mixed_sizes(count: int, seed: int = 0) -> np.ndarray:
    """(count, 2) h, w: wide, tall and square pictures."""
    shapes = np.array([(480, 640), (640, 480), (500, 500), (427, 640)])
    return shapes[np.random.default_rng(seed).integers(0, len(shapes), count)]


def indices(batches) -> list[list[int]]:
    """The picture numbers of batches of keys."""
    return [[key.index for key in batch] for batch in batches]


# Training


@pytest.mark.parametrize("group_by_aspect", [True, False])
@pytest.mark.parametrize("count", [1, 7, 8, 9, 50, 64])
def test_every_image_occurs_and_the_rest_is_filled_up(count, group_by_aspect):
    sampler = TrainSampler(mixed_sizes(count), 8, SHORT, group_by_aspect)
    batches = indices(sampler)
    steps = -(-count // 8)
    assert len(batches) == len(sampler) == sampler.steps_per_epoch == steps
    assert [len(batch) for batch in batches] == [8] * steps
    seen = Counter(chain.from_iterable(batches))
    assert set(seen) == set(range(count))
    # The 8 * steps - count places left go to images of this epoch, as evenly as possible.
    assert max(seen.values()) - min(seen.values()) <= 1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_join_to_the_same_global_batches(world_size, accumulate):
    sizes = mixed_sizes(37)
    alone = TrainSampler(sizes, 8, SHORT, seed=5)
    ranks = [
        TrainSampler(sizes, 8, SHORT, True, 5, accumulate, rank, world_size)
        for rank in range(world_size)
    ]
    for epoch in range(2):
        for sampler in (alone, *ranks):
            sampler.set_position(epoch)
        want = list(alone)
        shares = [list(sampler) for sampler in ranks]
        assert [len(share) for share in shares] == [5 * accumulate] * world_size
        assert [len(sampler) for sampler in ranks] == [5 * accumulate] * world_size
        part = 8 // world_size // accumulate
        assert {len(batch) for share in shares for batch in share} == {part}
        for step, batch in enumerate(want):
            own = slice(step * accumulate, (step + 1) * accumulate)
            assert list(chain(*(chain(*share[own]) for share in shares))) == batch


def test_batches_are_of_one_aspect_except_the_rest():
    sizes = mixed_sizes(203)
    tall = sizes[:, 0] > sizes[:, 1]
    count = Counter(tall.tolist())
    assert min(count.values()) > 40
    for epoch in range(3):
        sampler = TrainSampler(sizes, 8, SHORT)
        sampler.set_position(epoch)
        kinds = [{bool(tall[index]) for index in batch} for batch in indices(sampler)]
        pure = [kind for kind in kinds if len(kind) == 1]
        # All full batches of each kind, and no more than the two batches that the rest can fill.
        assert len(pure) >= count[True] // 8 + count[False] // 8 >= len(kinds) - 2
        # Wide and tall batches are mixed, not one after the other.
        changes = sum(a != b for a, b in zip(kinds, kinds[1:], strict=False))
        assert changes > 4


def test_without_groups_batches_are_mixed():
    sizes = mixed_sizes(200)
    tall = sizes[:, 0] > sizes[:, 1]
    batches = indices(TrainSampler(sizes, 8, SHORT, group_by_aspect=False))
    mixed = [batch for batch in batches if len({bool(tall[index]) for index in batch}) == 2]
    assert len(mixed) > len(batches) / 2


def test_seed_and_epoch_decide():
    sizes = mixed_sizes(100)

    def epoch_of(seed: int, epoch: int) -> list[list[SampleKey]]:
        sampler = TrainSampler(sizes, 8, SHORT, seed=seed)
        sampler.set_position(epoch)
        return list(sampler)

    first = epoch_of(0, 0)
    assert epoch_of(0, 0) == first
    assert indices(epoch_of(0, 1)) != indices(first)
    assert indices(epoch_of(1, 0)) != indices(first)
    assert indices(epoch_of(1, 0)) != indices(epoch_of(0, 1))
    assert {key.epoch for batch in epoch_of(0, 3) for key in batch} == {3}


def test_iterating_again_repeats_the_epoch():
    sampler = TrainSampler(mixed_sizes(30), 8, SHORT)
    assert list(sampler) == list(sampler)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_position_within_an_epoch_gives_the_tail(accumulate):
    sampler = TrainSampler(mixed_sizes(50), 8, SHORT, accumulate=accumulate)
    sampler.set_position(2)
    full = list(sampler)
    assert len(full) == 7 * accumulate
    for step in (0, 1, 6, 7):
        sampler.set_position(2, step)
        assert len(sampler) == (7 - step) * accumulate
        assert list(sampler) == full[step * accumulate :]
        assert sampler.steps_per_epoch == 7


def test_short_side_covers_its_range():
    batches = TrainSampler(mixed_sizes(600), 8, (32, 40))
    drawn = Counter(key.short for batch in batches for key in batch)
    assert set(drawn) == set(range(32, 41))
    # 600 / 9 = 67 expected of each, standard deviation 7.7.
    assert min(drawn.values()) > 36
    assert max(drawn.values()) < 98


def test_short_side_is_drawn_for_each_image_and_each_epoch():
    sampler = TrainSampler(mixed_sizes(64), 8, SHORT)
    by_epoch = []
    for epoch in range(2):
        sampler.set_position(epoch)
        batches = list(sampler)
        assert all(len({key.short for key in batch}) > 1 for batch in batches)
        by_epoch.append({key.index: key.short for batch in batches for key in batch})
    same = sum(by_epoch[0][index] == by_epoch[1][index] for index in range(64))
    assert same < 8


def test_single_short_side():
    sampler = TrainSampler(mixed_sizes(20), 4, (800, 800))
    assert {key.short for batch in sampler for key in batch} == {800}


# Evaluation


def shape_of(size: tuple[int, int]) -> tuple[int, int]:
    """The padded network input of the usual size."""
    return padded_size(resized_size(size, 800, 1333))


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_image_once_in_batches_of_one_shape(batch_size, world_size):
    sizes = np.random.default_rng(0).integers(300, 700, (57, 2))
    samplers = [
        EvalSampler(sizes, shape_of, batch_size, 800, rank, world_size)
        for rank in range(world_size)
    ]
    shares = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    batches = list(chain(*shares))
    assert sorted(chain(*indices(batches))) == list(range(57))
    assert max(len(batch) for batch in batches) <= batch_size
    for batch in indices(batches):
        assert len({shape_of(tuple(sizes[index].tolist())) for index in batch}) == 1
    assert {(key.epoch, key.short) for batch in batches for key in batch} == {(0, 800)}


def test_eval_batches_are_filled():
    sizes = np.array([(480, 640)] * 10 + [(640, 480)] * 5)
    sampler = EvalSampler(sizes, shape_of, 4, 800)
    assert sorted(map(len, sampler)) == [1, 2, 4, 4, 4]


def test_order_of_images_does_not_depend_on_the_batch_size():
    sizes = np.random.default_rng(1).integers(300, 700, (40, 2))
    orders = [
        list(chain(*indices(EvalSampler(sizes, shape_of, batch_size, 800))))
        for batch_size in (1, 3, 16)
    ]
    assert orders[0] == orders[1] == orders[2]


def test_eval_sampler_repeats():
    sampler = EvalSampler(mixed_sizes(9), shape_of, 2, 800)
    assert list(sampler) == list(sampler)
    assert len(list(sampler)) == len(sampler) > 0


def test_more_processes_than_images():
    shares = [list(EvalSampler(mixed_sizes(2), shape_of, 4, 800, rank, 4)) for rank in range(4)]
    assert sorted(chain(*indices(chain(*shares)))) == [0, 1]
    assert shares[3] == []


# Rare classes


def test_repeat_factors_by_hand():
    # Of 8 images, 4 have class 0, 1 has class 2 (twice), 2 have class 5, one has both 0 and 5.
    labels = np.array([0, 0, 0, 0, 2, 2, 5, 5])
    images = np.array([0, 1, 2, 3, 4, 4, 3, 5])
    got = repeat_factors(labels, images, 8, 0.5)
    # sqrt(0.5 / (1 / 8)) = 2 and sqrt(0.5 / (2 / 8)) = 1.414; 6 and 7 have no object.
    assert got == pytest.approx([1, 1, 1, 2**0.5, 2, 2**0.5, 1, 1])
    assert (repeat_factors(labels, images, 8, 0.125) == 1).all()
    assert (repeat_factors(labels[:0], images[:0], 3, 0.5) == 1).all()


@pytest.mark.parametrize(
    "factors", [[1.0] * 9, [1.3, 2.3, 1.0, 1.5, 3.0], [1.1, 1.2], [1.9], [1.0, 1.6, 1.7]]
)
def test_counts_are_the_factors_on_average_and_their_sum_is_always_the_same(factors):
    factors = np.array(factors)
    counts = np.array([epoch_counts(factors, np.random.default_rng(s)) for s in range(2000)])
    assert set(counts.sum(1)) == {epoch_length(factors)}
    assert epoch_length(factors) == round(factors.sum())
    assert (counts >= np.floor(factors)).all()
    assert (counts <= np.floor(factors) + 1).all()
    # Fractions are scaled to a whole sum; 5 % of 2,000 draws are 4.5 standard deviations.
    fractions = factors - np.floor(factors)
    scale = np.rint(fractions.sum()) / max(fractions.sum(), 1e-9)
    assert counts.mean(0) == pytest.approx(np.floor(factors) + fractions * scale, abs=0.05)


def test_the_length_of_an_epoch_does_not_depend_on_the_order_of_the_fractions():
    """The rare class of 25 images of 169: fractions whose sum is next to a half."""
    labels, images = np.zeros(25, np.int64), np.arange(25) * 6
    factors = repeat_factors(labels, images, 169, 0.25)
    assert abs(factors.sum() % 1 - 0.5) < 1e-9
    for order in range(50):
        rng = np.random.default_rng(order)
        assert epoch_counts(rng.permutation(factors), rng).sum() == epoch_length(factors)


def repeating(epoch: int = 0, first_step: int = 0, rank: int = 0, world_size: int = 1) -> list:
    factors = np.where(np.arange(30) < 5, 2.5, 1.0)
    sizes = mixed_sizes(30)
    sampler = TrainSampler(sizes, 8, SHORT, True, 0, 1, rank, world_size, factors)
    # 25 + 5 * 2.5 = 37.5 images: the fractions of 5 images make 2.
    assert sampler.steps_per_epoch == 5
    sampler.set_position(epoch, first_step)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    return batches


def test_repeated_images_come_more_often_each_time_as_another_sample():
    totals = Counter()
    for epoch in range(40):
        keys = list(chain(*repeating(epoch)))
        assert len(keys) == 40
        seen = Counter(key.index for key in keys)
        assert set(seen) == set(range(30))
        assert all(2 <= seen[index] for index in range(5))
        assert len({(key.index, key.repeat) for key in keys}) == len(keys)
        totals.update(seen)
    assert repeating(0) != repeating(1)
    rare = sum(totals[index] for index in range(5)) / 5 / 40
    # 2 and a share of 2 in 5; of the 3 images that fill up the last batch, 12 in 37 are rare.
    assert rare == pytest.approx(2.4 + 3 * 12 / 37 / 5, abs=0.15)


def test_repetition_does_not_depend_on_resuming_or_on_processes():
    want = repeating(3)
    assert repeating(3, first_step=2) == want[2:]
    halves = zip(repeating(3, 0, 0, 2), repeating(3, 0, 1, 2), strict=True)
    assert [first + second for first, second in halves] == want


def test_without_factors_keys_and_streams_are_what_they_were():
    [batch] = TrainSampler(mixed_sizes(4), 8, SHORT, False)
    assert {key.repeat for key in batch} == {0}
    rng = np.random.default_rng((0, 0))
    order = rng.permutation(4).tolist()
    assert [key.index for key in batch] == order * 2
    key = SampleKey(7, 3, 480)
    same = np.random.default_rng((11, 3, 7, 2)).random()
    assert key.random_stream(11, 2).random() == same
    assert key._replace(repeat=1).random_stream(11, 2).random() != same


def test_other_images_are_repeated_in_other_epochs():
    """Of five factors of 2.5 two become 3 in an epoch: each image as often as the others."""
    totals = Counter(key.index for epoch in range(40) for key in chain(*repeating(epoch)))
    often = [totals[index] for index in range(5)]
    assert max(often) - min(often) < 30  # 40 if it was always the same two
