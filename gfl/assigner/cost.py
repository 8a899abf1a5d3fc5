"""What assigners that ask the predictions share: costs of pairs, and the cheapest of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from gfl.assigner.claims import cheapest, resolve_claims, sparse_assignment
from gfl.assigner.dense import object_chunks
from gfl.boxes import aligned_iou
from gfl.grid import check_anchors, valid_locations
from gfl.structures import Assignment, Candidates, Grid, Targets

# Bounds the logarithm of a score or an IoU of 0: the smallest normal float32.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Claims:
    """The locations that each object asks for, k at most.

    Attributes:
        location: (B, G, k) int64, the cheapest first.
        cost: (B, G, k), infinite where the location is none of the object's.
        iou: (B, G, k) of the location's predicted box and the object.
        wanted: (B, G, k) bool.
    """

    location: Tensor
    cost: Tensor
    iou: Tensor
    wanted: Tensor


class CostAssigner(ABC):
    """Each object claims the locations of least cost; the cost is of scores and of boxes.

        cost = class cost of its label at the location - iou_weight * log(IoU) + penalty

    A contested location goes to one object alone, so an object may lose all of its claims to
    others that lie as it does, and then has no positive.

    Nothing waits for the device; objects are looked at in chunks of bounded memory, and what is
    kept of each is O(k).

    Args:
        max_claims: k, of one object.
        iou_weight: of the logarithm.
        ignore_crowd: as in `ATSSAssigner`, judged by squares of `anchor_scale` strides.
        anchor_scale: see there.
    """

    anchors_per_cell = 1
    needs_candidates = True

    def __init__(self, max_claims: int, iou_weight: float, ignore_crowd: bool, anchor_scale: float):
        self.max_claims, self.iou_weight = max_claims, iou_weight
        self.crowd_scale = anchor_scale if ignore_crowd else 0.0

    @abstractmethod
    def class_cost(self, scores: Tensor) -> Tensor:
        """(B, N, C) scores to (B, N, C) costs, at least 0, of an object of each class."""

    @abstractmethod
    def penalty(self, grid: Grid, boxes: Tensor) -> Tensor:
        """(B, G, 1, 4) boxes to (B, G, N): what a place costs, at least 0; infinite where no."""

    @abstractmethod
    def num_wanted(self, iou: Tensor) -> Tensor:
        """(B, G, N) IoUs, 0 where a location is none of the object's, to (B, G, 1) counts."""

    @abstractmethod
    def worth(self, claims: Claims) -> Tensor:
        """(B, G, k): a contested location goes to the object with the highest."""

    def score_target(self, claims: Claims, gt_index: Tensor) -> Tensor | None:
        """As in `Assignment`; by default none."""
        return None

    @torch.no_grad()
    def __call__(
        self, grid: Grid, targets: Targets, candidates: Candidates | None = None
    ) -> Assignment:
        """Assign every location of a batch; see `ATSSAssigner.__call__`.

        Args:
            candidates: what the network says now, in pixels of the network input.

        Raises:
            ValueError: there are no candidates, or several locations at a place.
        """
        check_anchors(grid, self.anchors_per_cell)
        if candidates is None:
            raise ValueError(f"{type(self).__name__} compares predictions: give it candidates")
        claims = self.claims(grid, targets, candidates)
        num_locations = grid.strides.shape[0]
        gt_index = resolve_claims(claims.location, self.worth(claims), claims.wanted, num_locations)
        target = self.score_target(claims, gt_index)
        num_claims = claims.location[0].numel()
        return sparse_assignment(grid, targets, gt_index, num_claims, self.crowd_scale, target)

    def claims(self, grid: Grid, targets: Targets, candidates: Candidates) -> Claims:
        """What each object asks for, before anybody contests it."""
        num_images, num_objects = targets.labels.shape
        num_locations = grid.strides.shape[0]
        shape = num_images, num_objects, min(self.max_claims, num_locations)
        location = targets.labels.new_zeros(shape)
        cost, iou = targets.boxes.new_zeros(shape), targets.boxes.new_zeros(shape)
        wanted = targets.present.new_zeros(shape)
        class_cost = self.class_cost(candidates.scores).transpose(1, 2)
        nowhere = ~valid_locations(grid, targets.valid_size)[:, None]
        rank = torch.arange(shape[2], device=location.device)
        for chunk in object_chunks(grid, targets):
            boxes = targets.boxes[:, chunk, None]
            penalty = self.penalty(grid, boxes).masked_fill(nowhere, torch.inf)
            penalty = penalty.masked_fill(~targets.present[:, chunk, None], torch.inf)
            overlap = aligned_iou(candidates.boxes[:, None], boxes).clamp(max=1)
            labels = targets.labels[:, chunk, None].expand(-1, -1, num_locations)
            price = class_cost.gather(1, labels)
            price = price - self.iou_weight * overlap.clamp(min=TINY).log() + penalty
            place = cheapest(price, shape[2])
            count = self.num_wanted(overlap.masked_fill(penalty == torch.inf, 0))
            location[:, chunk], iou[:, chunk] = place, overlap.gather(-1, place)
            cost[:, chunk] = price.gather(-1, place)
            wanted[:, chunk] = (rank < count) & cost[:, chunk].isfinite()
        return Claims(location, cost, iou, wanted)
