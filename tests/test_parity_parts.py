"""Losses, assigner, head loss, decoding and preprocessing against the reference, case by case."""

import numpy as np
import pytest
import torch
from builders import STRIDES, make_targets
from conftest import assert_close, reference, tensor

from gfl.assigner import ATSSAssigner
from gfl.boxes import aligned_iou, clip_boxes, ltrb_to_xyxy, pairwise_iou, xyxy_to_ltrb
from gfl.data.batch import Normalize, collate
from gfl.data.dataset import Sample
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.grid import make_grid, valid_locations
from gfl.losses import (
    GFLCriterion,
    distribution_focal_loss,
    giou_loss,
    quality_focal_loss,
    quality_focal_loss_of_scores,
)
from gfl.losses.functional import expectation
from gfl.models.box_representation import GeneralBox
from gfl.models.quality import DistributionQuality
from gfl.postprocess import Postprocess
from gfl.structures import ImageMeta, Predictions


def cases(name: str) -> list[str]:
    return [str(case) for case in reference(name)["cases"]]


def grid_of(arrays: dict, prefix: str = ""):
    sizes = tuple(tuple(int(v) for v in row) for row in arrays[f"{prefix}featmap_hw"])
    return make_grid(sizes, STRIDES)


def flat(arrays: dict, name: str, grad: bool = False) -> torch.Tensor:
    """Level maps name.0 ... name.4, with or without a batch axis, to (B, N, channels)."""
    levels = [tensor(arrays[f"{name}.{level}"]) for level in range(5)]
    levels = [level if level.dim() == 4 else level[None] for level in levels]
    joined = torch.cat([level.flatten(2).transpose(1, 2) for level in levels], 1)
    return joined.requires_grad_(grad)


# Losses -----------------------------------------------------------------------------------------


def one_hot_scores(label: np.ndarray, score: np.ndarray, num_classes: int) -> torch.Tensor:
    target = torch.zeros(len(label), num_classes)
    for row, (cls, value) in enumerate(zip(label, score, strict=True)):
        if 0 <= cls < num_classes:
            target[row, cls] = float(value)
    return target


@pytest.mark.parametrize("case", ["qfl80", "qfl3"])
def test_parity_quality_focal_loss(case):
    arrays = reference("losses.npz")
    logits = tensor(arrays[f"{case}.pred"], grad=True)
    label, score = arrays[f"{case}.label"], arrays[f"{case}.score"]
    loss = quality_focal_loss(logits, one_hot_scores(label, score, logits.shape[1])).sum(1)
    loss.sum().backward()
    assert_close(loss, arrays[f"{case}.loss"])
    assert_close(logits.grad, arrays[f"{case}.grad"])

    logits = tensor(arrays[f"{case}.pred"], grad=True)
    loss = quality_focal_loss(logits, one_hot_scores(label, score, logits.shape[1])).sum(1)
    reduced = (loss * tensor(arrays[f"{case}.weight"])).sum() / float(arrays[f"{case}.avg_factor"])
    reduced.backward()
    assert_close(reduced, arrays[f"{case}.reduced"])
    assert_close(logits.grad, arrays[f"{case}.reduced_grad"])


def test_parity_quality_focal_loss_of_scores():
    """Rows 0 to 3 are scores of 0, 1, 0.5 and 1e-12, whose gradients have no stable value."""
    arrays = reference("gflv2.npz")
    scores = tensor(arrays["qfl_prob.pred"], grad=True)
    target = one_hot_scores(arrays["qfl_prob.label"], arrays["qfl_prob.score"], scores.shape[1])
    loss = quality_focal_loss_of_scores(scores, target).sum(1)
    loss.sum().backward()
    assert_close(loss[4:], arrays["qfl_prob.loss"][4:])
    assert_close(scores.grad[4:], arrays["qfl_prob.grad"][4:])
    assert loss.isfinite().all() and scores.grad.isfinite().all()


@pytest.mark.parametrize("case", ["dgqp", "dgqp_nomean"])
def test_parity_distribution_quality(case):
    """Statistics, quality, joint score and the gradients of a GFLv2 head without towers."""
    arrays = reference("gflv2.npz")
    x = tensor(arrays[f"{case}.x"], grad=True)
    wide = x.detach().double()
    quality = DistributionQuality(top_k=4, channels=64, add_mean=case == "dgqp")
    names = {"net.0": "reg_conf.0", "net.2": "reg_conf.2"}
    quality.load_state_dict(
        {
            f"{ours}.{part}": tensor(arrays[f"{case}.param.{theirs}.{part}"])
            for ours, theirs in names.items()
            for part in ("weight", "bias")
        }
    )

    def convolve(name: str, x: torch.Tensor) -> torch.Tensor:
        parts = (tensor(arrays[f"{case}.param.{name}.{p}"]) for p in ("weight", "bias"))
        weight, bias = (part.to(x.dtype) for part in parts)
        return torch.nn.functional.conv2d(x, weight, bias, padding=1)

    scale = float(arrays[f"{case}.param.scales.1.scale"])
    cls_logits, box_logits = convolve("gfl_cls", x), convolve("gfl_reg", x) * scale
    # These two convolutions are the test's own, and their rounding depends on the CPU: in one or
    # two logits near 0 the reference is further from float64, too, than assert_close allows.
    exact = {"cls_logit": convolve("gfl_cls", wide), "bbox_pred": convolve("gfl_reg", wide) * scale}
    for (name, value), got in zip(exact.items(), (cls_logits, box_logits), strict=True):
        rounding = (got - value).abs().max().item()
        assert rounding < 2e-5
        assert_close(got, arrays[f"{case}.{name}"], atol=1e-6 + rounding)
    assert_close(quality.statistics(box_logits), arrays[f"{case}.stat"])
    quality_logits = quality(box_logits)
    assert_close(quality_logits.sigmoid(), arrays[f"{case}.quality"])

    height, width = x.shape[-2:]
    grid = make_grid(((height, width),), (8,))
    rows = [m.flatten(2).transpose(1, 2) for m in (cls_logits, box_logits, quality_logits)]
    scores = Predictions(rows[0], rows[1], grid, rows[2]).joint_scores()
    scores = scores.transpose(1, 2).unflatten(2, (height, width))
    assert_close(scores, arrays[f"{case}.cls_score"])
    (scores * tensor(arrays[f"{case}.cotangent_score"])).sum().backward()
    assert_close(x.grad, arrays[f"{case}.grad_x"])
    for ours, theirs in names.items():
        for part in ("weight", "bias"):
            got = quality.get_parameter(f"{ours}.{part}").grad
            assert_close(got, arrays[f"{case}.grad.{theirs}.{part}"], rtol=1e-4, atol=1e-5)


def test_parity_distribution_focal_loss():
    arrays = reference("losses.npz")
    logits, target = tensor(arrays["dfl.pred"], grad=True), tensor(arrays["dfl.label"])
    loss = distribution_focal_loss(logits, target)
    loss.sum().backward()
    assert_close(loss, arrays["dfl.loss"])
    assert_close(logits.grad, arrays["dfl.grad"])

    logits = tensor(arrays["dfl.pred"], grad=True)
    loss = distribution_focal_loss(logits, target) * tensor(arrays["dfl.weight"])
    reduced = float(arrays["dfl.loss_weight"]) * loss.sum() / float(arrays["dfl.avg_factor"])
    reduced.backward()
    assert_close(reduced, arrays["dfl.reduced"])
    assert_close(logits.grad, arrays["dfl.reduced_grad"])


def ordered(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] >= boxes[:, 0]) & (boxes[:, 3] >= boxes[:, 1])


def test_parity_giou_loss():
    arrays = reference("losses.npz")
    gated = ordered(arrays["giou.pred"]) & ordered(arrays["giou.target"])
    assert gated.sum() > 80
    boxes, target = tensor(arrays["giou.pred"], grad=True), tensor(arrays["giou.target"])
    loss = giou_loss(boxes, target, float(arrays["giou.eps"]))
    loss.sum().backward()
    assert_close(loss[gated], arrays["giou.loss"][gated])
    assert_close(boxes.grad[gated], arrays["giou.grad"][gated])

    boxes = tensor(arrays["giou.pred"], grad=True)
    loss = giou_loss(boxes, target, float(arrays["giou.eps"])) * tensor(arrays["giou.weight"])
    reduced = float(arrays["giou.loss_weight"]) * loss.sum() / float(arrays["giou.avg_factor"])
    reduced.backward()
    assert_close(boxes.grad[gated], arrays["giou.reduced_grad"][gated])
    if gated.all():
        assert_close(reduced, arrays["giou.reduced"])


def test_parity_iou():
    arrays = reference("losses.npz")
    boxes, target = tensor(arrays["giou.pred"]), tensor(arrays["giou.target"])
    gated = ordered(arrays["giou.pred"]) & ordered(arrays["giou.target"])
    assert_close(aligned_iou(boxes, target)[gated], arrays["giou.iou_aligned"][gated])
    want = arrays["giou.pairwise_iou"]
    rows, columns = gated[: want.shape[0]], ordered(arrays["giou.target"])[: want.shape[1]]
    got = pairwise_iou(boxes[: want.shape[0]], target[: want.shape[1]])
    assert_close(got[rows][:, columns], want[rows][:, columns])


def test_parity_expectation():
    arrays = reference("losses.npz")
    logits = tensor(arrays["integral.input"], grad=True)
    sides = expectation(logits.unflatten(-1, (4, -1)))
    assert_close(sides, arrays["integral.output"])
    (sides * tensor(arrays["integral.cotangent"])).sum().backward()
    assert_close(logits.grad, arrays["integral.grad"])


def test_parity_distance_to_box():
    arrays = reference("losses.npz")
    points, distance = tensor(arrays["d2b.points"]), tensor(arrays["d2b.distance"], grad=True)
    boxes = ltrb_to_xyxy(points, distance)
    assert_close(boxes, arrays["d2b.boxes"])
    clipped = clip_boxes(boxes, tuple(int(v) for v in arrays["d2b.max_shape_hw"]))
    assert_close(clipped, arrays["d2b.boxes_clipped"])
    (clipped * tensor(arrays["d2b.cotangent"])).sum().backward()
    assert_close(distance.grad, arrays["d2b.clipped_grad"])


def test_parity_box_to_distance():
    arrays = reference("losses.npz")
    distance = xyxy_to_ltrb(tensor(arrays["b2d.points"]), tensor(arrays["b2d.boxes"]))
    assert_close(distance, arrays["b2d.distance"])
    assert GeneralBox.CLAMP_MARGIN == float(arrays["b2d.eps"])
    upper = float(arrays["b2d.max_dis"]) - GeneralBox.CLAMP_MARGIN
    assert_close(distance.clamp(0, upper), arrays["b2d.distance_clipped"])


# ATSS -------------------------------------------------------------------------------------------


def unambiguous_cases() -> list[str]:
    arrays = reference("atss.npz")
    return [case for case in cases("atss.npz") if not arrays[f"{case}.ambiguous"]]


@pytest.mark.parametrize("case", unambiguous_cases())
def test_parity_atss(case):
    arrays = reference("atss.npz")
    grid = grid_of(arrays, f"{case}.")
    assert grid.level_counts == arrays[f"{case}.num_level_anchors"].tolist()
    boxes, labels = arrays[f"{case}.gt_bboxes"], arrays[f"{case}.gt_labels"]
    targets = make_targets([boxes], [labels], size=arrays[f"{case}.pad_hw"].tolist())
    assignment = ATSSAssigner()(grid, targets)
    gt_index = assignment.gt_index[0].numpy()
    np.testing.assert_array_equal(gt_index + 1, arrays[f"{case}.assigned_gt_inds"])
    positive = gt_index >= 0
    np.testing.assert_array_equal(
        np.where(positive, np.append(labels, -1)[gt_index], -1), arrays[f"{case}.labels"]
    )
    half = 4 * grid.strides[:, None]
    anchors = torch.cat((grid.centers - half, grid.centers + half), 1)
    overlaps = pairwise_iou(anchors, tensor(boxes)).numpy()[positive, gt_index[positive]]
    assert_close(overlaps, arrays[f"{case}.max_overlaps"][positive])
    slots = assignment.slots[0][assignment.slot_positive[0]]
    np.testing.assert_array_equal(np.sort(slots.numpy()), positive.nonzero()[0])


def test_parity_atss_anchors():
    arrays = reference("atss.npz")
    sizes = tuple(tuple(int(v) for v in row) for row in arrays["anchors_64x96.featmap_hw"])
    grid = make_grid(sizes, STRIDES)
    half = ATSSAssigner().anchor_scale / 2 * grid.strides[:, None]
    assert_close(torch.cat((grid.centers - half, grid.centers + half), 1), arrays["anchors_64x96"])


# Head loss --------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("head_loss.npz"))
def test_parity_head_loss(case):
    arrays = reference("head_loss.npz")
    grid = grid_of(arrays)
    cls_logits = flat(arrays, "cls_score", grad=True)
    box_logits = flat(arrays, "bbox_pred", grad=True)
    images = [f"{case}.img{i}." for i in range(2)]
    targets = make_targets(
        [arrays[i + "gt_bboxes"] for i in images],
        [arrays[i + "gt_labels"] for i in images],
        valid=[arrays[i + "pad_shape"] for i in images],
    )
    criterion = GFLCriterion(ATSSAssigner(), GeneralBox(16))
    losses = criterion(Predictions(cls_logits, box_logits, grid), targets)
    for ours, theirs in (("loss_cls", "loss_cls"), ("loss_box", "loss_bbox"), ("loss_dfl",) * 2):
        assert_close(losses[ours], arrays[f"{case}.{theirs}_total"])
        np.testing.assert_allclose(
            losses[ours].item(), arrays[f"{case}.{theirs}"].sum(), rtol=1e-5, atol=1e-6
        )
    total = sum(losses.values())
    assert_close(total, arrays[f"{case}.total"])

    assignment = criterion.assigner(grid, targets)
    background = cls_logits.shape[2]
    labels = np.full(assignment.gt_index.shape, background)
    positive = assignment.gt_index >= 0
    image, location = positive.nonzero(as_tuple=True)
    rows = assignment.gt_index[positive]
    labels[positive.numpy()] = targets.labels[image, rows].numpy()
    np.testing.assert_array_equal(labels, arrays[f"{case}.labels"])
    np.testing.assert_array_equal(assignment.weight.numpy(), arrays[f"{case}.label_weights"])
    ours = np.stack((image.numpy(), location.numpy()), 1)
    theirs = arrays[f"{case}.pos_index"].reshape(-1, 2)
    assert sorted(map(tuple, ours.tolist())) == sorted(map(tuple, theirs.tolist()))
    boxes = {
        tuple(i): box for i, box in zip(ours.tolist(), targets.boxes[image, rows], strict=True)
    }
    for index, box in zip(theirs.tolist(), arrays[f"{case}.pos_bbox_targets"], strict=True):
        assert_close(boxes[tuple(index)], box)

    scores = cls_logits.detach().amax(-1).sigmoid() * positive
    per_level = [float(level.sum()) for level in scores.split(grid.level_counts, 1)]
    assert_close(np.array(per_level), arrays[f"{case}.weight_target_sum"])
    normalisers = criterion._normalisers(positive, scores)
    assert_close(normalisers[0], arrays[f"{case}.avg_factor"])
    assert_close(normalisers[1], arrays[f"{case}.bbox_avg_factor"])

    total.backward()
    for name, grad in (("cls_score", cls_logits.grad), ("bbox_pred", box_logits.grad)):
        for level, part in enumerate(grad.split(grid.level_counts, 1)):
            nchw = part.transpose(1, 2).flatten().numpy()
            prefix = f"{case}.grad.{name}.{level}."
            assert_close(nchw[arrays[prefix + "idx"]], arrays[prefix + "val"])
            stats = [nchw.mean(), nchw.std(), nchw.sum(), np.abs(nchw).sum()]
            np.testing.assert_allclose(stats, arrays[prefix + "stats"], rtol=1e-4, atol=1e-6)


# Decoding ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", cases("predict.npz"))
def test_parity_predict(case):
    arrays = reference("predict.npz")
    sizes = tuple(arrays[f"{case}.cls_score.{level}"].shape[-2:] for level in range(5))
    grid = make_grid(sizes, STRIDES)
    predictions = Predictions(
        flat(arrays, f"{case}.cls_score"), flat(arrays, f"{case}.bbox_pred"), grid
    )
    size = tuple(int(v) for v in arrays[f"{case}.img_shape"])
    scale = tuple(float(v) for v in arrays[f"{case}.scale_factor_wh"])
    meta = ImageMeta(1, size, size, scale)
    postprocess = Postprocess(GeneralBox(16))
    [found] = postprocess(predictions, (meta,), rescale=bool(arrays[f"{case}.rescale"]))
    np.testing.assert_array_equal(found.labels.numpy(), arrays[f"{case}.labels"])
    assert_close(found.scores, arrays[f"{case}.scores"])
    np.testing.assert_allclose(found.boxes.numpy(), arrays[f"{case}.boxes"], atol=0.01)

    scores = predictions.cls_logits[0].sigmoid()
    above = [int((level > 0.05).sum()) for level in scores.split(grid.level_counts)]
    assert above == arrays[f"{case}.n_above_thr_per_level"].tolist()

    uncapped = Postprocess(GeneralBox(16), max_per_image=10**6)
    [everything] = uncapped(predictions, (meta,), rescale=bool(arrays[f"{case}.rescale"]))
    assert len(everything) == int(arrays[f"{case}.n_after_nms_uncapped"])
    assert_raw_candidates(arrays, case, predictions, meta)


def assert_raw_candidates(arrays, case, predictions, meta):
    """Everything that enters NMS: with an IoU of 1 nothing is suppressed."""
    raw = Postprocess(GeneralBox(16), nms_iou=1.0, max_per_image=10**6)
    [found] = raw(predictions, (meta,), rescale=bool(arrays[f"{case}.rescale"]))
    want = [arrays[f"{case}.raw_{name}"] for name in ("labels", "scores", "boxes")]
    order = np.lexsort((want[2][:, 0], want[1], want[0])) if len(want[0]) else []
    got = [found.labels.numpy(), found.scores.numpy(), found.boxes.numpy()]
    mine = np.lexsort((got[2][:, 0], got[1], got[0])) if len(got[0]) else []
    assert len(got[0]) == len(want[0])
    np.testing.assert_array_equal(got[0][mine], want[0][order])
    np.testing.assert_allclose(got[1][mine], want[1][order], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[2][mine], want[2][order], atol=0.01)


# Preprocessing ----------------------------------------------------------------------------------


def preprocess_cases() -> list[tuple[str, int]]:
    keys = reference("preprocess.npz")
    return sorted(
        (key.split(".")[0], int(key.split(".")[1])) for key in keys if key.endswith(".resized_hw")
    )


def preprocessed(arrays: dict, scale: str):
    """The whole batch of a scale, as the project makes it, and each resized picture."""
    long, short = (int(v) for v in scale.split("x"))
    transform = Transform(long)
    items = []
    nothing = np.zeros((0, 4), np.float32)
    for _, number in [case for case in preprocess_cases() if case[0] == scale]:
        sample = Sample(arrays[f"picture.{number}"], nothing, nothing[:, 0], nothing, number)
        items.append(transform(sample, SampleKey(number, 0, short)))
    return items


@pytest.mark.parametrize(("scale", "number"), preprocess_cases())
def test_parity_preprocess(scale, number):
    arrays = reference("preprocess.npz")
    items = preprocessed(arrays, scale)
    prefix = f"{scale}.{number}."
    sample, meta = items[number]
    assert meta.input_size == tuple(arrays[prefix + "resized_hw"])
    assert_close(np.array(meta.scale), arrays[prefix + "scale_factor_wh"])
    difference = sample.image.astype(int) - arrays[prefix + "resized_rgb"].astype(int)
    assert np.abs(difference).max() <= 1

    batch = collate(items)
    assert list(batch.images.shape) == arrays[f"{scale}.batch_shape"].tolist()
    normalize = Normalize((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    images = normalize(batch.images, batch.input_sizes)
    crop = arrays[prefix + "network_input_crop"]
    got = images[number, :, : crop.shape[1], : crop.shape[2]].numpy()
    np.testing.assert_allclose(got, crop, atol=1 / 50)
    whole = images[number].double().numpy()
    stats = np.array([whole.mean(), whole.std(), whole.sum(), np.abs(whole).sum()])
    np.testing.assert_allclose(stats, arrays[prefix + "network_input_stats"], rtol=2e-3, atol=1e-3)
    height, width = meta.input_size
    assert (whole[:, height:] == 0).all() and (whole[:, :, width:] == 0).all()


def test_parity_valid_flags_match_label_weights():
    """An image's own padded size decides which locations count, not the batch's."""
    arrays = reference("head_loss.npz")
    grid = grid_of(arrays)
    valid = torch.tensor(np.stack([arrays[f"normal.img{i}.pad_shape"] for i in range(2)]))
    assert_close(valid_locations(grid, valid).float(), arrays["normal.label_weights"])
