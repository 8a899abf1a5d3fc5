"""Decoding worked by hand, what is kept and in which order, and NMS against torchvision."""

import math
from dataclasses import replace

import pytest
import torch
from builders import pyramid, random_boxes, random_predictions
from conftest import assert_close
from torchvision.ops import nms

import gfl.postprocess as postprocess_module
from gfl.grid import make_grid
from gfl.models.box_representation import DiracBox, GaussianBox, GeneralBox
from gfl.postprocess import Postprocess, class_wise_nms
from gfl.structures import ImageMeta, Predictions

REG_MAX = 4


def meta(size=(1000, 1000), scale=(1.0, 1.0)) -> ImageMeta:
    return ImageMeta(1, (1, 1), size, scale)


def bins(*sides) -> list:
    """Logits of four sides: a bin, or the bins that share the probability equally."""
    logits = []
    for side in sides:
        chosen = side if isinstance(side, tuple) else (side,)
        logits += [0.0 if number in chosen else -200.0 for number in range(REG_MAX + 1)]
    return logits


def found_at(grid, places: dict, num_classes: int = 2) -> Predictions:
    """One image; `places` gives locations their {class: score} and sides. Scores elsewhere: 0."""
    count = grid.strides.shape[0]
    cls_logits = torch.full((1, count, num_classes), -200.0)
    box_logits = torch.zeros(1, count, 4 * (REG_MAX + 1))
    for location, (scores, sides) in places.items():
        for label, score in scores.items():
            cls_logits[0, location, label] = math.log(score / (1 - score))
        box_logits[0, location] = torch.tensor(bins(*sides))
    return Predictions(cls_logits, box_logits, grid)


def postprocess(**options) -> Postprocess:
    return Postprocess(GeneralBox(REG_MAX), **options)


# Locations 0 ... 15 at multiples of 8, 16 ... 19 at multiples of 16.
GRID = make_grid(((4, 4), (2, 2)), (8, 16))


# Decoding ---------------------------------------------------------------------------------------


def test_boxes_are_those_worked_by_hand():
    # Location 5 is (8, 8), sides 1, 0, 2, 3 strides of 8; location 19 is (16, 16), sides 0.5, 1,
    # 0, 1 of 16.
    places = {5: ({1: 0.9}, (1, 0, 2, 3)), 19: ({0: 0.7}, ((0, 1), 1, 0, 1))}
    [found] = postprocess()(found_at(GRID, places), (meta(),))
    assert_close(found.boxes, [[0, 8, 24, 32], [8, 0, 16, 32]])
    assert_close(found.scores, [0.9, 0.7])
    assert found.labels.tolist() == [1, 0]
    assert found.distributions is None and found.edge_positions is None


def test_boxes_are_clipped_then_put_into_the_original_image():
    # (8, 8) with sides 3, 2, 2, 4: -16, -8, 24, 40. Clipped to 20 wide and 30 high.
    places = {5: ({1: 0.9}, (3, 2, 2, 4))}
    for rescale, box in ((True, [0, 0, 10, 60]), (False, [0, 0, 20, 30])):
        predictions = found_at(GRID, places)
        [found] = postprocess()(predictions, (meta((30, 20), (2.0, 0.5)),), rescale=rescale)
        assert_close(found.boxes, [box])


def test_edge_std_is_in_pixels_of_the_original_image():
    # Standard deviations in strides: 1 (bins 0 and 2), 1 (1 and 3), 1/2 (1 and 2), 0. Times 8
    # pixels; left and right are divided by sx, top and bottom by sy.
    places = {5: ({0: 0.9}, ((0, 2), (1, 3), (1, 2), 2))}
    scaled = meta(scale=(2.0, 0.5))
    [found] = postprocess()(found_at(GRID, places), (scaled,))
    assert_close(found.edge_std, [[8 / 2, 8 / 0.5, 4 / 2, 0]])
    [found] = postprocess()(found_at(GRID, places), (scaled,), rescale=False)
    assert_close(found.edge_std, [[8, 8, 4, 0]])
    # A location of stride 16; bottom this time.
    [found] = postprocess()(found_at(GRID, {19: ({0: 0.9}, (1, 0, 1, (0, 1)))}), (scaled,))
    assert_close(found.edge_std, [[0, 0, 0, 8 / 0.5]])


def test_distributions_come_on_request():
    places = {5: ({0: 0.9}, (1, (0, 2), 2, (1, 2))), 15: ({1: 0.8}, (1, 1, (0, 4), 0))}
    [found] = postprocess(distributions=True)(found_at(GRID, places), (meta(),))
    first = [[0, 1, 0, 0, 0], [0.5, 0, 0.5, 0, 0], [0, 0, 1, 0, 0], [0, 0.5, 0.5, 0, 0]]
    second = [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0], [0.5, 0, 0, 0, 0.5], [1, 0, 0, 0, 0]]
    assert_close(found.distributions, [first, second])


def test_bins_lie_at_strides_from_the_location_in_the_original_image():
    # Location 5 is (8, 8) of stride 8: bins at 8, 0, -8, ... to the left and 8, 16, 24, ... to the
    # right; the original is half as wide and twice as high as the input.
    part = postprocess(distributions=True)
    [found] = part(found_at(GRID, {5: ({0: 0.9}, (1, 1, 2, 2))}), (meta(scale=(2.0, 0.5)),))
    left, top = [4, 0, -4, -8, -12], [16, 0, -16, -32, -48]
    right, bottom = [4, 8, 12, 16, 20], [16, 32, 48, 64, 80]
    assert_close(found.edge_positions, [[left, top, right, bottom]])
    [found] = part(found_at(GRID, {19: ({0: 0.9}, (1, 1, 2, 2))}), (meta(),), rescale=False)
    assert_close(found.edge_positions[0, 0], [16, 0, -16, -32, -48])
    assert_close(found.edge_positions[0, 3], [16, 32, 48, 64, 80])


@pytest.mark.parametrize("rescale", [True, False])
def test_the_expected_bin_position_is_the_side_and_its_deviation_edge_std(rescale):
    predictions = random_predictions(pyramid(96, 128), 1, reg_max=REG_MAX)
    part = postprocess(distributions=True, nms_iou=1.0, max_per_image=10000)
    # An image so large that only what lies left of 0 or above 0 is clipped.
    [found] = part(predictions, (meta((10000, 10000), (1.5, 0.75)),), rescale=rescale)
    expected = (found.distributions * found.edge_positions).sum(-1)
    spread = (found.edge_positions - expected[..., None]).square() * found.distributions
    assert len(found) > 100 and (expected < 0).any() and (expected > 1).any()
    assert_close(expected.clamp(min=0), found.boxes, rtol=1e-4, atol=1e-3)
    assert_close(spread.sum(-1).sqrt(), found.edge_std, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("box", [GeneralBox(8, 0.5), GeneralBox(8, 4.0), GaussianBox(16, 0.5)])
def test_positions_of_wider_bins_are_as_far_apart_and_expect_the_side(box):
    grid = pyramid(96, 128)
    base = random_predictions(grid, 1)
    box_logits = torch.randn(1, grid.strides.shape[0], box.channels)
    if isinstance(box, GaussianBox):  # means of 3 to 5 strides, deviations about 0.7: in the range
        box_logits = box_logits.clamp(-0.25, 0.25) - torch.tensor([0.0, 0.3]).repeat(4)
    predictions = Predictions(base.cls_logits, box_logits, grid)
    part = Postprocess(box, nms_iou=1.0, max_per_image=10000, distributions=True)
    # Larger than every box, so that only what lies left of 0 or above 0 is clipped.
    [found] = part(predictions, (meta((10000, 10000), (2.0, 0.5)),))
    between = found.edge_positions.diff(dim=-1)
    stride = between.abs().amax((1, 2)) * 0.5 / box.bin_width  # of the top side, sy = 0.5
    assert set(stride.unique().tolist()) <= {8, 16, 32, 64, 128} and len(found) > 100
    steps = stride[:, None] * box.bin_width / torch.tensor([-2.0, -0.5, 2.0, 0.5])
    assert_close(between, steps[..., None].expand_as(between), rtol=1e-4)
    expected = (found.distributions * found.edge_positions).sum(-1)
    assert_close(expected.clamp(min=0), found.boxes, rtol=1e-3, atol=0.2)


def test_numbers_as_sides_have_neither_doubt_nor_distributions():
    # (8, 8) with sides 4 exp(logit) = 1, 2, 2, 4 strides of 8.
    box_logits = torch.zeros(1, 20, 4)
    box_logits[0, 5] = torch.tensor([1.0, 2, 2, 4]).div(4).log()
    predictions = found_at(GRID, {5: ({1: 0.9}, (0, 0, 0, 0))})
    predictions = Predictions(predictions.cls_logits, box_logits, GRID)
    [found] = Postprocess(DiracBox(), distributions=True)(predictions, (meta(),))
    assert_close(found.boxes, [[0, 0, 24, 40]], atol=1e-4)
    assert found.edge_std.tolist() == [[0, 0, 0, 0]]
    assert found.distributions is None and found.edge_positions is None


def test_quality_of_a_branch_multiplies_the_class_score():
    predictions = found_at(GRID, {5: ({1: 0.9, 0: 0.3}, (1, 1, 1, 1))})
    quality = torch.full((1, 20, 1), 9.0)
    quality[0, 5] = math.log(0.25 / 0.75)
    predictions = Predictions(predictions.cls_logits, predictions.box_logits, GRID, quality)
    [found] = postprocess(score_threshold=0.01)(predictions, (meta(),))
    assert_close(found.scores, [0.9 * 0.25, 0.3 * 0.25])
    # The threshold is held against the product.
    [found] = postprocess(score_threshold=0.1)(predictions, (meta(),))
    assert_close(found.scores, [0.9 * 0.25])


@pytest.mark.parametrize(
    ("sides", "size"),
    [
        ((0, 1, 0, 1), (40, 40)),  # no width
        ((1, 0, 1, 0), (40, 40)),  # no height
        ((0, 1, 2, 1), (40, 8)),  # begins at the right border
        ((1, 0, 1, 2), (6, 40)),  # lies below the image
    ],
)
def test_boxes_without_area_are_dropped(sides, size):
    places = {5: ({0: 0.9}, sides), 0: ({0: 0.6}, (0, 0, 1, 1))}
    [found] = postprocess()(found_at(GRID, places), (meta(size),))
    assert_close(found.scores, [0.6])


# What is kept -----------------------------------------------------------------------------------


def test_only_scores_above_the_threshold_are_kept():
    # A logit of 0 is a score of exactly 1/2.
    places = {0: ({0: 0.5}, (0, 0, 1, 1)), 15: ({1: 0.501}, (1, 1, 0, 0))}
    [found] = postprocess(score_threshold=0.5)(found_at(GRID, places), (meta(),))
    assert found.labels.tolist() == [1]
    [found] = postprocess(score_threshold=0.4999)(found_at(GRID, places), (meta(),))
    assert found.labels.tolist() == [1, 0]


def test_a_better_box_suppresses_its_own_class_alone():
    # The same box from (8, 8) and (16, 16): class 0 at 0.9 and 0.8, class 1 at 0.7.
    places = {5: ({0: 0.9, 1: 0.7}, (1, 1, 1, 1)), 10: ({0: 0.8}, (2, 2, 0, 0))}
    [found] = postprocess()(found_at(GRID, places), (meta(),))
    assert_close(found.scores, [0.9, 0.7])
    assert found.labels.tolist() == [0, 1]
    assert_close(found.boxes, [[0, 0, 16, 16]] * 2)


@pytest.mark.parametrize("label", [0, 79])
def test_overlap_at_the_threshold_stays_and_above_it_goes(label):
    # IoU 60 / 100, then 61 / 100.
    labels = torch.tensor([label, label])
    for height, kept in ((6.0, [0, 1]), (6.125, [0])):
        boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, height]])
        assert class_wise_nms(boxes, torch.tensor([0.9, 0.8]), labels, 0.6).tolist() == kept


def test_class_wise_nms_is_nms_of_each_class():
    boxes = torch.from_numpy(random_boxes(300, 120, 160, seed=1)) - 40
    scores, labels = torch.rand(300), torch.randint(0, 4, (300,))
    kept = class_wise_nms(boxes, scores, labels, 0.5)
    want = []
    for label in range(4):
        own = (labels == label).nonzero().flatten()
        want += own[nms(boxes[own], scores[own], 0.5)].tolist()
    assert 4 < len(want) < 300
    assert kept.tolist() == sorted(want, key=lambda row: -scores[row])


def tiles(grid, scores) -> Predictions:
    """Boxes of one cell side by side, one at each location, with the given scores."""
    places = {
        row: ({0: score}, (0, 0, 1, 1))
        for row, score in enumerate(torch.as_tensor(scores).tolist())
    }
    return found_at(grid, places)


@pytest.mark.parametrize("limit", [1, 100, 300, None])
def test_the_best_are_kept_up_to_the_limit_best_first(limit):
    grid = make_grid(((20, 20),), (8,))
    scores = torch.linspace(0.1, 0.9, 400)[torch.randperm(400)]
    [found] = postprocess(max_per_image=limit)(tiles(grid, scores), (meta(),))
    assert len(found) == (limit or 400)
    best = scores.sort(descending=True)
    assert_close(found.scores, best.values[:limit])
    assert_close(found.boxes[:, :2], grid.centers[best.indices[:limit]])


def test_rules_count_pairs_or_locations_before_nms():
    # Pairs in order: (0, class 0) 0.9, (15, class 1) 0.8, (0, class 1) 0.7, (3, class 0) 0.6.
    places = {
        0: ({0: 0.9, 1: 0.7}, (0, 0, 1, 1)),
        15: ({1: 0.8}, (1, 1, 0, 0)),
        3: ({0: 0.6}, (0, 0, 1, 1)),
    }
    kept = {
        ("pairs", 1): [0.9],
        ("pairs", 2): [0.9, 0.8],
        ("pairs", 3): [0.9, 0.8, 0.7],
        ("locations", 1): [0.9, 0.7],
        ("locations", 2): [0.9, 0.8, 0.7],
        ("locations", 3): [0.9, 0.8, 0.7, 0.6],
        ("pairs", 1000): [0.9, 0.8, 0.7, 0.6],
        ("locations", 1000): [0.9, 0.8, 0.7, 0.6],
    }
    for (rule, top_k), scores in kept.items():
        part = postprocess(pre_nms_rule=rule, pre_nms_top_k=top_k)
        [found] = part(found_at(GRID, places), (meta(),))
        assert_close(found.scores, scores)


@pytest.mark.parametrize("rule", ["pairs", "locations"])
def test_each_level_has_its_own_count_before_nms(rule):
    places = {
        0: ({0: 0.9}, (0, 0, 1, 1)),
        15: ({0: 0.8}, (1, 1, 0, 0)),
        17: ({1: 0.3}, (0, 0, 1, 1)),
        18: ({1: 0.2}, (0, 0, 1, 1)),
    }
    part = postprocess(pre_nms_rule=rule, pre_nms_top_k=1)
    [found] = part(found_at(GRID, places), (meta(),))
    assert_close(found.scores, [0.9, 0.3])
    assert_close(found.boxes, [[0, 0, 8, 8], [16, 0, 32, 16]])


# Nothing, and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["pairs", "locations"])
def test_nothing_found_is_empty_tensors(rule):
    part = postprocess(pre_nms_rule=rule, distributions=True)
    [found] = part(found_at(GRID, {}), (meta(),))
    assert len(found) == 0
    assert found.boxes.shape == found.edge_std.shape == (0, 4)
    assert found.scores.shape == found.labels.shape == (0,)
    assert found.labels.dtype == torch.int64
    assert found.distributions.shape == found.edge_positions.shape == (0, 4, REG_MAX + 1)


@pytest.mark.parametrize("rule", ["pairs", "locations"])
def test_batch_is_decoded_as_its_images_alone(rule):
    grid = pyramid(96, 128)
    predictions = random_predictions(grid, 2, reg_max=REG_MAX)
    metas = (meta((96, 120), (1.5, 1.25)), meta((80, 128), (0.5, 0.75)))
    part = postprocess(pre_nms_rule=rule, pre_nms_top_k=50, distributions=True)
    together = part(predictions, metas)
    assert len(together) == 2
    for image in range(2):
        rows = slice(image, image + 1)
        alone = Predictions(predictions.cls_logits[rows], predictions.box_logits[rows], grid)
        [found] = part(alone, metas[rows])
        assert len(found) > 10
        names = ("boxes", "scores", "labels", "edge_std", "distributions", "edge_positions")
        for name in names:
            assert torch.equal(getattr(together[image], name), getattr(found, name))


def test_detections_carry_no_gradient_and_are_best_first():
    predictions = random_predictions(pyramid(96, 128), 1, reg_max=REG_MAX)
    [found] = postprocess(distributions=True)(predictions, (meta((96, 128)),))
    assert predictions.cls_logits.requires_grad
    tensors = [value for value in vars(found).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 6 and not any(value.requires_grad for value in tensors)
    assert (found.scores.diff() <= 0).all() and found.scores.min() > 0.05
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([128, 96, 128, 96])).all()


def test_half_precision_logits_are_decoded_in_float32():
    predictions = random_predictions(pyramid(96, 128), 1, reg_max=REG_MAX)
    half = [predictions.cls_logits.half().float(), predictions.box_logits.half()]
    with torch.autocast("cpu", torch.bfloat16):
        [found] = postprocess()(Predictions(*half, predictions.grid), (meta((96, 128)),))
    want = Predictions(half[0], half[1].float(), predictions.grid)
    [want] = postprocess()(want, (meta((96, 128)),))
    assert found.boxes.dtype == found.edge_std.dtype == torch.float32
    assert torch.equal(found.boxes, want.boxes) and torch.equal(found.scores, want.scores)


# Quick ways --------------------------------------------------------------------------------------


def test_a_few_classes_at_a_time_keep_what_one_nms_keeps(monkeypatch):
    torch.manual_seed(3)
    corner = torch.rand(3000, 2) * 200
    boxes = torch.cat((corner, corner + 10 + torch.rand(3000, 2) * 60), 1)
    scores = (torch.rand(3000) * 50).round() / 50  # many equal scores
    labels = torch.randint(0, 7, (3000,))
    apart = class_wise_nms(boxes, scores, labels, 0.6)
    monkeypatch.setitem(postprocess_module.BOXES_AT_ONCE, "cpu", 10_000)
    at_once = class_wise_nms(boxes, scores, labels, 0.6)
    assert 100 < len(at_once) < 2900
    assert torch.equal(apart, at_once)


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.9])
def test_the_best_pairs_are_those_of_all_pairs(threshold):
    rules = Postprocess(GeneralBox(), score_threshold=threshold, pre_nms_top_k=50)
    scores = torch.rand(3, 440, 9)
    image, location, label = rules._candidates(scores, [400, 40])
    found = list(zip(image.tolist(), location.tolist(), label.tolist(), strict=True))
    assert len(set(found)) == len(found)
    for number, of_image in enumerate(scores):
        want = []
        for level in of_image.split([400, 40]):
            above = level[level > threshold]
            want.append(above.topk(min(50, len(above))).values)
        own = image == number
        # Those, and in the order of their places: level by level, location by location.
        places = list(zip(location[own].tolist(), label[own].tolist(), strict=True))
        assert places == sorted(places)
        kept = scores[number, location[own], label[own]].split([len(part) for part in want])
        for part, best in zip(kept, want, strict=True):
            assert torch.equal(part.sort(descending=True).values, best)


def test_of_equal_scores_an_image_keeps_the_same_boxes_whatever_is_in_its_batch():
    """Alone, each image has fewer candidates than `pre_nms_top_k`; together they have more."""
    predictions = random_predictions(pyramid(128, 128), 2, reg_max=REG_MAX)
    steps = (predictions.cls_logits * 2).round() / 2  # scores of a coarse grid: many are equal
    predictions = replace(predictions, cls_logits=steps)
    metas = (meta((128, 128)),) * 2
    counts = (predictions.class_scores() > 0.5).sum((1, 2))
    rules = postprocess(score_threshold=0.5, pre_nms_top_k=int(counts.max()))
    together = rules(predictions, metas)
    for number, found in enumerate(together):
        one = slice(number, number + 1)
        alone = replace(predictions, cls_logits=steps[one], box_logits=predictions.box_logits[one])
        (expected,) = rules(alone, metas[one])
        assert torch.equal(found.boxes, expected.boxes)
        assert torch.equal(found.scores, expected.scores)


def test_nms_runs_once_for_a_batch(monkeypatch):
    calls = []

    def watched(boxes, *args):
        calls.append(len(boxes))
        return nms(boxes, *args)

    monkeypatch.setattr(postprocess_module, "nms", watched)
    predictions = random_predictions(pyramid(64, 64), 4, reg_max=REG_MAX)
    found = postprocess(pre_nms_top_k=20)(predictions, (meta((64, 64)),) * 4)
    assert len(found) == 4 and all(len(each) for each in found) and len(calls) == 1
