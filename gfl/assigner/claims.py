"""Objects that claim a few locations each: the cheapest ones, who gets a contested one, slots."""

import torch
from torch import Tensor

from gfl.assigner.crowd import in_crowd
from gfl.grid import valid_locations
from gfl.structures import Assignment, Grid, Targets


def cheapest(cost: Tensor, count: int) -> Tensor:
    """The locations of least cost of each object, the first of equals on every device.

    Args:
        cost: (B, G, N) float32, at least 0.
        count: how many; fewer where N is less.

    Returns:
        (B, G, k) int64 locations, the cheapest first.
    """
    # The bits of floats that are not negative are in the order of the floats; 0 is added to -0.
    bits = (cost.contiguous() + 0.0).view(torch.int32).long()
    order = (bits << 32) + torch.arange(cost.shape[-1], device=cost.device)
    return order.topk(min(count, cost.shape[-1]), largest=False).values & 0xFFFFFFFF


def resolve_claims(location: Tensor, worth: Tensor, valid: Tensor, num_locations: int) -> Tensor:
    """Give each claimed location to the object to which it is worth most, the first of equals.

    Args:
        location: (B, G, k) int64, what each object claims.
        worth: (B, G, k) float.
        valid: (B, G, k) bool, False for claims that are none.
        num_locations: N.

    Returns:
        (B, N) int64 row of the object, -1 where nobody claims the location.
    """
    num_images, num_objects, _ = location.shape
    row = torch.arange(num_objects, device=location.device)[:, None].expand(location.shape[1:])
    location, valid = location.flatten(1), valid.flatten(1)
    worth = worth.flatten(1).masked_fill(~valid, -torch.inf)
    best = worth.new_full((num_images, num_locations), -torch.inf)
    best = best.scatter_reduce(1, location, worth, "amax")
    wins = valid & (worth == best.gather(1, location))
    row = row.reshape(1, -1).expand_as(location).masked_fill(~wins, num_objects)
    owner = row.new_full((num_images, num_locations), num_objects)
    owner = owner.scatter_reduce(1, location, row, "amin")
    return owner.masked_fill(owner == num_objects, -1)


def sparse_assignment(
    grid: Grid,
    targets: Targets,
    gt_index: Tensor,
    num_claims: int,
    crowd_scale: float,
    score_target: Tensor | None = None,
) -> Assignment:
    """An assignment with a slot for each claim, positives first.

    Args:
        gt_index: (B, N) int64, -1 for background.
        num_claims: at least the positives of an image.
        crowd_scale: anchor side in strides by which locations lie in crowd regions, 0 to look at
            none.
        score_target: as in `Assignment`.
    """
    positive = gt_index >= 0
    num_slots = min(num_claims, gt_index.shape[1])
    slot_positive, slots = positive.to(torch.uint8).topk(num_slots, dim=1)
    counts = valid_locations(grid, targets.valid_size)
    if crowd_scale:
        counts = counts & (positive | ~in_crowd(grid, targets, crowd_scale))
    return Assignment(gt_index, counts.float(), slots, slot_positive.bool(), score_target)
