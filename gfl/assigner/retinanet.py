"""RetinaNet's assignment: anchors of several sizes and shapes, and two thresholds of IoU."""

import torch
from torch import Tensor

from gfl.assigner.dense import dense_assignment, object_chunks
from gfl.boxes import aligned_iou
from gfl.grid import check_anchors, valid_locations
from gfl.structures import Assignment, Grid, Targets

# Heights over widths are 1/2, 1, 2, and there are three sizes in an octave: nine anchors a place.
NUM_RATIOS, NUM_SIZES = 3, 3


class RetinaNetAssigner:
    """Maximum-IoU assignment over nine anchors at each place, for a batch at once.

    An anchor answers for the object that it overlaps most if their IoU reaches `positive_iou`, is
    background below `negative_iou`, and is left out of the classification loss between. Besides,
    each object gets the anchors that overlap it most of all, whatever the IoU; of several objects
    the last. Anchors serve the assignment alone: boxes are predicted from the location.

    Nothing waits for the device; objects are looked at in chunks of bounded memory.

    Args:
        anchor_scale: side of the smallest square anchor, in strides.
        positive_iou, negative_iou: the thresholds, above 0: what nothing touches is background.
        ignore_crowd: as in `ATSSAssigner`, judged by squares of `anchor_scale` strides.

    Source: arXiv 1708.02002 section 4; mmdet `MaxIoUAssigner` (pos_iou_thr, neg_iou_thr,
    min_pos_iou=0) and `AnchorGenerator` (octave_base_scale=4). There an object that no anchor
    touches gets all anchors, here none.
    """

    anchors_per_cell = NUM_RATIOS * NUM_SIZES

    def __init__(
        self,
        anchor_scale: float = 4.0,
        positive_iou: float = 0.5,
        negative_iou: float = 0.4,
        ignore_crowd: bool = False,
    ):
        self.anchor_scale = anchor_scale
        self.positive_iou, self.negative_iou = positive_iou, negative_iou
        self.crowd_scale = anchor_scale if ignore_crowd else 0.0

    @torch.no_grad()
    def __call__(self, grid: Grid, targets: Targets) -> Assignment:
        """Assign every location of a batch, a location being one anchor; see `ATSSAssigner`."""
        anchors = self.anchors(grid)
        valid = valid_locations(grid, targets.valid_size)
        shape = targets.boxes.shape[0], anchors.shape[0]
        highest = torch.zeros(shape, device=anchors.device)
        best_row = torch.full(shape, -1, device=anchors.device)
        favourite_of = torch.full(shape, -1, device=anchors.device)
        for chunk in object_chunks(grid, targets):
            iou = aligned_iou(anchors[:, None], targets.boxes[:, None, chunk])
            iou = iou * (targets.present[:, None, chunk] & valid[..., None])
            rows = torch.arange(chunk.start, chunk.start + iou.shape[2], device=iou.device)
            is_favourite = (iou > 0) & (iou == iou.amax(1, keepdim=True))
            last = torch.where(is_favourite, rows, -1).amax(-1)
            favourite_of = torch.maximum(favourite_of, last)
            overlap, row = iou.max(-1)
            best_row = torch.where(overlap > highest, rows[row], best_row)
            highest = torch.maximum(highest, overlap)
        gt_index = torch.where(highest >= self.positive_iou, best_row, -1)
        gt_index = torch.where(favourite_of >= 0, favourite_of, gt_index)
        between = (highest >= self.negative_iou) & (gt_index < 0)
        return dense_assignment(grid, targets, gt_index, between, self.crowd_scale)

    def anchors(self, grid: Grid) -> Tensor:
        """(N, 4) xyxy anchors, pixels of the network input; at a place ratios outer, sizes inner.

        Raises:
            ValueError: the grid has another number of anchors at a place.
        """
        check_anchors(grid, self.anchors_per_cell)
        device = grid.strides.device
        sizes = self.anchor_scale * 2 ** (torch.arange(NUM_SIZES, device=device) / NUM_SIZES)
        ratios = 2 ** (torch.arange(NUM_RATIOS, device=device) - 1.0)
        tall = ratios.sqrt()[:, None]
        shapes = torch.stack((sizes / tall, sizes * tall), -1).flatten(0, 1)  # (9, 2) w, h
        repeats = grid.strides.shape[0] // self.anchors_per_cell
        half = shapes.repeat(repeats, 1) * grid.strides[:, None] / 2
        return torch.cat((grid.centers - half, grid.centers + half), 1)
