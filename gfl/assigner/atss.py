"""ATSS: positives by the statistics of each object's nearest candidates."""

import torch
from torch import Tensor

from gfl.assigner.claims import cheapest, resolve_claims, sparse_assignment
from gfl.boxes import aligned_iou, xyxy_to_ltrb
from gfl.grid import ORIGINS, check_anchors
from gfl.structures import Assignment, Grid, Targets

# A location is a positive only if it lies this far inside the object, pixels (mmdet, ATSS).
MIN_INSIDE = 0.01


class ATSSAssigner:
    """Adaptive training sample selection, for all images of a batch at once.

    For each object: the `top_k` locations of each level whose centres are nearest to its own are
    candidates; those whose square anchor overlaps the object by at least mean + standard deviation
    of the candidates' IoUs, and which lie inside it, are its positives. A location claimed by
    several objects goes to the one with the highest IoU (the first of equals).

    Nothing waits for the device: shapes depend on the padded sizes alone. Memory is
    O(B * G * levels * top_k^2), since only a window of the grid around each object is looked at.

    Args:
        top_k: candidates an object has on each level (fewer where the level is smaller).
        anchor_scale: side of a location's square anchor, in strides.
        ignore_crowd: leave locations in crowd regions out of the classification loss (see
            `in_crowd`); positives stay positives. False: such locations are background, as in the
            reference.
        reach: how far the sides of a box may lie from a candidate, in its strides, such as the
            reg_max * bin_width that limits what it can express; None for any distance, as in the
            reference. On the coarsest level any distance will do, and on all levels for an object
            that would be left without positives, such as a long and thin one.

    Source: arXiv 1912.02424 algorithm 1; mmdet `ATSSAssigner`.
    """

    anchors_per_cell = 1

    def __init__(
        self,
        top_k: int = 9,
        anchor_scale: float = 8.0,
        ignore_crowd: bool = False,
        reach: float | None = None,
    ):
        self.top_k = top_k
        self.anchor_scale = anchor_scale
        self.ignore_crowd = ignore_crowd
        self.reach = reach

    @torch.no_grad()
    def __call__(self, grid: Grid, targets: Targets) -> Assignment:
        """Assign every location of a batch.

        Args:
            grid: N locations, pixels of the network input.
            targets: objects of B images, same frame.

        Returns:
            `Assignment`. Locations outside an image's `valid_size` have weight 0 and are neither
            candidates nor positives; with `ignore_crowd` those in crowd regions that are no
            positives have weight 0 too.

        Raises:
            ValueError: the grid has several anchors at a place.
        """
        check_anchors(grid, self.anchors_per_cell)
        index, is_candidate = self.candidates(grid, targets)
        centers, strides = grid.centers[index], grid.strides[index]
        half_side = 0.5 * self.anchor_scale * strides[..., None]
        anchors = torch.cat((centers - half_side, centers + half_side), dim=-1)
        boxes = targets.boxes[:, :, None, :]
        iou = aligned_iou(anchors, boxes)
        ltrb = xyxy_to_ltrb(centers, boxes)
        inside = ltrb.amin(-1) > MIN_INSIDE
        is_positive = inside & _best(iou, is_candidate)
        if self.reach is not None:
            within = ltrb.amax(-1) <= self.reach * strides
            can_reach = is_candidate & (within | (strides == grid.level_strides[-1]))
            reaching = inside & _best(iou, can_reach)
            is_positive = torch.where(reaching.any(-1, keepdim=True), reaching, is_positive)
        gt_index = resolve_claims(index, iou, is_positive, grid.strides.shape[0])
        # At most one positive a candidate, so M is known beforehand.
        crowd_scale = self.anchor_scale if self.ignore_crowd else 0.0
        return sparse_assignment(grid, targets, gt_index, index[0].numel(), crowd_scale)

    def candidates(self, grid: Grid, targets: Targets) -> tuple[Tensor, Tensor]:
        """The `top_k` valid locations of each level nearest to each object's centre.

        On a regular grid the k nearest locations lie in the k columns and k rows nearest to the
        point, so the search is over that window and not over all N.

        Returns:
            (B, G, levels * top_k) int64 location indices, and a bool of the same shape that is
            False for entries beyond the locations that a level has in that image.
        """
        object_centers = (targets.boxes[..., :2] + targets.boxes[..., 2:]) / 2
        indices, found, first = [], [], 0
        for level, (height, width) in enumerate(grid.level_sizes):
            stride = grid.level_strides[level]
            origin = ORIGINS[grid.origin](stride)
            columns, dx = self._nearest(
                object_centers[..., 0], targets.valid_size[:, 1], width, stride, origin
            )
            rows, dy = self._nearest(
                object_centers[..., 1], targets.valid_size[:, 0], height, stride, origin
            )
            distance = (dy[..., :, None].square() + dx[..., None, :].square()).sqrt().flatten(-2)
            location = (first + rows[..., :, None] * width + columns[..., None, :]).flatten(-2)
            nearest = cheapest(distance, min(self.top_k, height * width))
            indices.append(location.gather(-1, nearest))
            found.append(distance.gather(-1, nearest).isfinite())
            first += height * width
        is_candidate = torch.cat(found, -1) & targets.present[..., None]
        return torch.cat(indices, -1), is_candidate

    def _nearest(
        self, center: Tensor, valid_pixels: Tensor, cells: int, stride: int, origin: float
    ) -> tuple[Tensor, Tensor]:
        """A window of neighbouring columns (or rows) that holds the `top_k` nearest to a point.

        Args:
            center: (B, G) coordinate of the objects' centres, pixels.
            valid_pixels: (B,) extent of each image's own area, pixels.
            cells: columns of the level's feature map.
            stride: pixels between columns.
            origin: pixel of column 0.

        Returns:
            (B, G, window) column numbers within the map, and their distance to the point in
            pixels, infinite for columns beyond the image's own.
        """
        window = min(self.top_k | 1, cells)  # odd: as many on either side
        valid_cells = torch.div(valid_pixels + stride - 1, stride, rounding_mode="floor")
        valid_cells = valid_cells.clamp(max=cells)[:, None]
        middle = ((center - origin) / stride).round().long() - window // 2
        start = middle.clamp(min=0).minimum((valid_cells - window).clamp(min=0))
        column = start[..., None] + torch.arange(window, device=center.device)
        distance = (column * stride + origin - center[..., None]).abs()
        return column, distance.masked_fill(column >= valid_cells[..., None], torch.inf)


def _best(iou: Tensor, is_candidate: Tensor) -> Tensor:
    """Candidates of at least the mean plus the unbiased standard deviation of each object's IoUs.

    (B, G, k) and bool of the same shape to bool of the same shape.
    """
    count = is_candidate.sum(-1, keepdim=True)
    mean = (iou * is_candidate).sum(-1, keepdim=True) / count.clamp(min=1)
    squares = ((iou - mean).square() * is_candidate).sum(-1, keepdim=True)
    return is_candidate & (iou >= mean + (squares / (count - 1).clamp(min=1)).sqrt())
