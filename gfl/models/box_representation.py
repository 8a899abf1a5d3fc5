"""How a location's channels describe a box: decoding, density loss and doubt of one side."""

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.losses.functional import distribution_focal_loss, expectation


class GeneralBox:
    """Each side is a discrete distribution over distances 0 ... reg_max strides.

    Its expectation is the side, its standard deviation says how sure the side is.

    Args:
        reg_max: largest distance that a side can have, in strides (n in the paper).

    Source: arXiv 2006.04388 section 3.2, "General distribution".
    """

    # Keeps a right neighbour bin for targets at the end of the range.
    CLAMP_MARGIN = 0.1

    def __init__(self, reg_max: int = 16):
        self.reg_max = reg_max
        self.channels = 4 * (reg_max + 1)

    def _sides(self, box_logits: Tensor) -> Tensor:
        return box_logits.unflatten(-1, (4, self.reg_max + 1))

    def ltrb_cells(self, box_logits: Tensor) -> Tensor:
        """Expected distances: (..., K) logits to (..., 4) ltrb in strides."""
        return expectation(self._sides(box_logits))

    def density_loss(self, box_logits: Tensor, target_cells: Tensor) -> Tensor:
        """Mean distribution focal loss of the four sides.

        Args:
            box_logits: (..., K).
            target_cells: (..., 4) true ltrb in strides; clamped to [0, reg_max - 0.1].

        Returns:
            (...) unreduced.
        """
        target = target_cells.clamp(0, self.reg_max - self.CLAMP_MARGIN)
        return distribution_focal_loss(self._sides(box_logits), target).mean(-1)

    def distributions(self, box_logits: Tensor) -> Tensor:
        """Probabilities (..., 4, reg_max + 1) of each side's bins."""
        return F.softmax(self._sides(box_logits), dim=-1)

    def edge_std_cells(self, box_logits: Tensor) -> Tensor:
        """Standard deviation of each side's distribution: (..., K) to (..., 4), in strides."""
        probabilities = self.distributions(box_logits)
        bins = torch.arange(self.reg_max + 1, device=box_logits.device, dtype=box_logits.dtype)
        mean = probabilities @ bins
        return (probabilities * (bins - mean[..., None]).square()).sum(-1).sqrt()
