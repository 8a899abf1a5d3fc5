"""Box arithmetic: xyxy and ltrb, IoU and GIoU. Nothing here waits for the device."""

import torch
from torch import Tensor

# Added to a union or an enclosing area, as in the reference (mmdet GIoULoss, eps=1e-6).
EPSILON = 1e-6


def ltrb_to_xyxy(centers: Tensor, ltrb: Tensor) -> Tensor:
    """Boxes from points and the distances to their four sides.

    Args:
        centers: (..., 2) x, y.
        ltrb: (..., 4) distances to left, top, right, bottom, in the unit of `centers`.

    Returns:
        (..., 4) xyxy.

    Source: mmdet `distance2bbox`.
    """
    return torch.cat((centers - ltrb[..., :2], centers + ltrb[..., 2:]), dim=-1)


def xyxy_to_ltrb(centers: Tensor, boxes: Tensor) -> Tensor:
    """Distances from points to the four sides; negative where a point lies outside.

    Args:
        centers: (..., 2) x, y.
        boxes: (..., 4) xyxy, in the unit of `centers`.

    Returns:
        (..., 4) left, top, right, bottom.

    Source: mmdet `bbox2distance` without its clamp.
    """
    return torch.cat((centers - boxes[..., :2], boxes[..., 2:] - centers), dim=-1)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Limit xyxy boxes (..., 4) to an image of `size` (h, w): coordinates in [0, w] and [0, h]."""
    height, width = size
    x = boxes[..., 0::2].clamp(0, width)
    y = boxes[..., 1::2].clamp(0, height)
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def centerness(ltrb: Tensor) -> Tensor:
    """How central a point lies in a box: 1 in the middle, 0 on an edge or outside.

        sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))

    Args:
        ltrb: (..., 4) distances to the sides, any unit.

    Returns:
        (...) in [0, 1].

    Source: arXiv 1904.01355 equation 3; mmdet `FCOSHead.centerness_target`.
    """
    distances = ltrb.clamp(min=0)
    pairs = torch.stack((distances[..., 0::2], distances[..., 1::2]), -2)  # left right, top bottom
    ratios = pairs.amin(-1) / pairs.amax(-1).clamp(min=EPSILON)
    return ratios.prod(-1).sqrt()


def box_area(boxes: Tensor) -> Tensor:
    """Area (...) of xyxy boxes (..., 4), square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _intersection_and_union(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    top_left = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.minimum(boxes1[..., 2:], boxes2[..., 2:])
    sides = (bottom_right - top_left).clamp(min=0)
    intersection = sides[..., 0] * sides[..., 1]
    return intersection, box_area(boxes1) + box_area(boxes2) - intersection


def aligned_iou(boxes1: Tensor, boxes2: Tensor, epsilon: float = EPSILON) -> Tensor:
    """IoU of each box with its partner; leading shapes broadcast.

    Args:
        boxes1: (..., 4) xyxy.
        boxes2: (..., 4) xyxy, same unit.
        epsilon: lower bound of the union, so that two points give 0.

    Returns:
        (...) in [0, 1].

    Source: mmdet `bbox_overlaps(is_aligned=True)`.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    return intersection / union.clamp(min=epsilon)


def pairwise_iou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """IoU of every box with every other: (A, 4), (B, 4) xyxy to (A, B).

    Source: mmdet `bbox_overlaps(is_aligned=False)`.
    """
    return aligned_iou(boxes1[:, None, :], boxes2[None, :, :])


def aligned_diou(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Distance-IoU of each box with its partner; leading shapes broadcast.

    Args:
        boxes1, boxes2: (..., 4) xyxy, same unit.

    Returns:
        (...) in [-1, 1]: IoU minus the squared distance of the centres over the squared diagonal
        of the enclosing box.

    Source: arXiv 1911.08287 equation 7.
    """
    between = (boxes1[..., :2] + boxes1[..., 2:] - boxes2[..., :2] - boxes2[..., 2:]) / 2
    sides = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(
        boxes1[..., :2], boxes2[..., :2]
    )
    diagonal = sides.square().sum(-1).clamp(min=EPSILON)
    return aligned_iou(boxes1, boxes2) - between.square().sum(-1) / diagonal


def aligned_giou(boxes1: Tensor, boxes2: Tensor, epsilon: float = EPSILON) -> Tensor:
    """Generalized IoU of each box with its partner.

    Args:
        boxes1: (..., 4) xyxy with x1 <= x2 and y1 <= y2.
        boxes2: (..., 4) likewise.
        epsilon: lower bound of union and enclosing area.

    Returns:
        (...) in [-1, 1]: IoU minus the share of the enclosing box that neither covers.

    Source: arXiv 1902.09630, algorithm 1; mmdet `bbox_overlaps(mode="giou")`.
    """
    intersection, union = _intersection_and_union(boxes1, boxes2)
    union = union.clamp(min=epsilon)
    enclosing_sides = torch.maximum(boxes1[..., 2:], boxes2[..., 2:]) - torch.minimum(
        boxes1[..., :2], boxes2[..., :2]
    )
    enclosing_sides = enclosing_sides.clamp(min=0)
    enclosing = (enclosing_sides[..., 0] * enclosing_sides[..., 1]).clamp(min=epsilon)
    return intersection / union - (enclosing - union) / enclosing
