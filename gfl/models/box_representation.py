"""How a location's channels describe a box: decoding, density loss and doubt of each side."""

import math
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from gfl.boxes import ltrb_to_xyxy
from gfl.losses.functional import distribution_focal_loss, expectation, gaussian_nll_loss

# A side whose logit is 0, in strides: half of ATSS's anchor.
ANCHOR_SIDE = 4.0
# No side is longer than 1000 strides: exp stays finite.
MAX_LOGIT = math.log(1000.0 / ANCHOR_SIDE)
# Deviations from 1/20 of a stride to 20: below, an error of a pixel would outweigh everything.
LOG_STD_RANGE = (math.log(0.05), math.log(20.0))


class BoxRepresentation(ABC):
    """What each of the four sides of a box is: a number, or a distribution over distances.

    Args:
        reg_max: number of bins above 0 in which distributions are given (n in the paper).
        bin_width: distance between bins, in strides (the paper's delta).

    Attributes:
        channels: K, of a location.
        density_name: what the density loss is called, None where there is none.
    """

    channels: int
    density_name: str | None = None

    def __init__(self, reg_max: int = 16, bin_width: float = 1.0):
        self.reg_max, self.bin_width = reg_max, bin_width

    @abstractmethod
    def ltrb_cells(self, box_logits: Tensor) -> Tensor:
        """Distances to the sides: (..., K) to (..., 4) ltrb in strides."""

    def boxes(self, box_logits: Tensor, centers: Tensor, strides: Tensor | float = 1.0) -> Tensor:
        """Decode boxes.

        Args:
            box_logits: (..., K).
            centers: (..., 2) x, y of their locations.
            strides: (..., 1) in the unit of `centers`; 1 where that is the stride.

        Returns:
            (..., 4) xyxy in the unit and frame of `centers`, not clipped.
        """
        ltrb = self.ltrb_cells(box_logits.float()) * strides
        return ltrb_to_xyxy(centers, ltrb)

    def density_loss(self, box_logits: Tensor, target_cells: Tensor) -> Tensor:
        """Mean over the four sides of a loss that shapes their distributions.

        Args:
            box_logits: (..., K).
            target_cells: (..., 4) true ltrb in strides.

        Returns:
            (...) unreduced.
        """
        raise TypeError(f"{type(self).__name__} has no density loss")

    @abstractmethod
    def edge_std_cells(self, box_logits: Tensor) -> Tensor:
        """Standard deviation of each side: (..., K) to (..., 4), in strides."""

    def distributions(self, box_logits: Tensor) -> Tensor | None:
        """Probabilities (..., 4, reg_max + 1) of the distances 0, w ... reg_max * w; None if none
        are predicted."""
        return None


class DiracBox(BoxRepresentation):
    """Each side is one number, 4 exp(logit) strides. It says nothing about its doubt.

    Source: arXiv 1904.01355 section 3.2 (FCOS), begun at the side of ATSS's anchor.
    """

    channels = 4

    def ltrb_cells(self, box_logits: Tensor) -> Tensor:
        return ANCHOR_SIDE * box_logits.clamp(max=MAX_LOGIT).exp()

    def edge_std_cells(self, box_logits: Tensor) -> Tensor:
        return torch.zeros_like(box_logits)


class GaussianBox(BoxRepresentation):
    """Each side is a normal distribution: mean 4 exp(a), deviation exp(b), in strides.

    The mean is the side. Channels are sides outer, (a, b) inner.

    Source: arXiv 2006.04388 figure 5b and table 2a; arXiv 1809.08545.
    """

    channels = 8
    density_name = "loss_nll"

    def ltrb_cells(self, box_logits: Tensor) -> Tensor:
        return ANCHOR_SIDE * box_logits[..., 0::2].clamp(max=MAX_LOGIT).exp()

    def edge_std_cells(self, box_logits: Tensor) -> Tensor:
        return box_logits[..., 1::2].clamp(*LOG_STD_RANGE).exp()

    def density_loss(self, box_logits: Tensor, target_cells: Tensor) -> Tensor:
        mean, std = self.ltrb_cells(box_logits), self.edge_std_cells(box_logits)
        return gaussian_nll_loss(mean, std, target_cells).mean(-1)

    def distributions(self, box_logits: Tensor) -> Tensor:
        """The normal distribution's share of each bin; the outer bins take what lies beyond."""
        mean, std = self.ltrb_cells(box_logits), self.edge_std_cells(box_logits)
        between = torch.arange(self.reg_max, device=mean.device, dtype=mean.dtype) + 0.5
        below = torch.special.ndtr((between * self.bin_width - mean[..., None]) / std[..., None])
        return F.pad(below, (0, 1), value=1.0) - F.pad(below, (1, 0), value=0.0)


class GeneralBox(BoxRepresentation):
    """Each side is a discrete distribution over the distances 0, w ... reg_max * w strides.

    Its expectation is the side, its standard deviation says how sure the side is.

    Source: arXiv 2006.04388 section 3.2, "General distribution".
    """

    density_name = "loss_dfl"
    # Keeps a right neighbour bin for targets at the end of the range.
    CLAMP_MARGIN = 0.1

    def __init__(self, reg_max: int = 16, bin_width: float = 1.0):
        super().__init__(reg_max, bin_width)
        self.channels = 4 * (reg_max + 1)

    def _sides(self, box_logits: Tensor) -> Tensor:
        return box_logits.unflatten(-1, (4, self.reg_max + 1))

    def ltrb_cells(self, box_logits: Tensor) -> Tensor:
        return expectation(self._sides(box_logits)) * self.bin_width

    def density_loss(self, box_logits: Tensor, target_cells: Tensor) -> Tensor:
        """Mean distribution focal loss; targets are clamped to [0, reg_max - 0.1] bins."""
        target = (target_cells / self.bin_width).clamp(0, self.reg_max - self.CLAMP_MARGIN)
        return distribution_focal_loss(self._sides(box_logits), target).mean(-1)

    def distributions(self, box_logits: Tensor) -> Tensor:
        return F.softmax(self._sides(box_logits), dim=-1)

    def edge_std_cells(self, box_logits: Tensor) -> Tensor:
        probabilities = self.distributions(box_logits)
        bins = torch.arange(self.reg_max + 1, device=box_logits.device, dtype=box_logits.dtype)
        mean = probabilities @ bins
        variance = (probabilities * (bins - mean[..., None]).square()).sum(-1)
        return variance.sqrt() * self.bin_width
