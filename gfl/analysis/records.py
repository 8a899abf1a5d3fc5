"""Everything found on a split beside everything that is there, as flat arrays."""

from dataclasses import dataclass

import numpy as np
import torch

from gfl.analysis.coverage import Sides

# A detection overlaps no object, of whatever class, by this IoU or more: it lies on background.
BACKGROUND_IOU = 0.1
# A side this near to the image's border was cut off there, pixels.
BORDER = 0.05


@dataclass(frozen=True)
class Objects:
    """The m true objects of a split, crowd regions apart.

    Attributes:
        images: (m,) row of the image.
        labels: (m,).
        boxes: (m, 4) xyxy, pixels of the original image.
        found: (m,) whether a detection was matched to it.
        blur: (m, 4) true standard deviation of each edge, pixels, ltrb; NaN where the annotations
            say nothing. None where they never do.
    """

    images: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    blur: np.ndarray | None = None


@dataclass(frozen=True)
class Records:
    """The n detections of a split, matched to its objects one to one as COCO does, at IoU 0.5.

    Attributes:
        image_ids: of the images.
        sizes: (images, 2) (h, w).
        class_names: of the labels.
        images: (n,) row of the image of each detection.
        labels, scores: (n,).
        boxes, edge_std: (n, 4) pixels of the original image.
        probabilities, positions: (n, 4, bins) `distributions` and `edge_positions`, or None.
        match: (n,) row of the object that it was matched to, or -1.
        ignored: (n,) lies in a crowd region: neither right nor wrong.
        iou: (n,) IoU with the matched object, else with the nearest object of its class.
        iou_any: (n,) IoU with the nearest object of any class.
        objects: what is there.
        is_normal: each side is a normal distribution (`model.box: gaussian`) about the box's, of
            which `probabilities` are shares; see `sides`.
    """

    image_ids: tuple[int, ...]
    sizes: np.ndarray
    class_names: tuple[str, ...]
    images: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    boxes: np.ndarray
    edge_std: np.ndarray
    probabilities: np.ndarray | None
    positions: np.ndarray | None
    match: np.ndarray
    ignored: np.ndarray
    iou: np.ndarray
    iou_any: np.ndarray
    objects: Objects
    is_normal: bool = False

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def is_true(self) -> np.ndarray:
        """(n,) correctly found: matched to an object."""
        return self.match >= 0

    @property
    def is_background(self) -> np.ndarray:
        """(n,) on background: no object of any class is overlapped by `BACKGROUND_IOU`."""
        return ~self.is_true & ~self.ignored & (self.iou_any < BACKGROUND_IOU)

    @property
    def is_clipped(self) -> np.ndarray:
        """(n, 4) the side lies on the image's border, where boxes are cut off."""
        return self.at_border(BORDER)

    def at_border(self, distance: float) -> np.ndarray:
        """(n, 4) the side lies within so many pixels of the border that it faces."""
        limits = np.concatenate([np.zeros_like(self.sizes), self.sizes[:, ::-1]], 1)[self.images]
        return np.abs(self.boxes - limits) <= distance

    def errors(self) -> np.ndarray:
        """(n, 4) distance of each side from the true one, pixels; NaN where not matched."""
        gaps = np.full(self.boxes.shape, np.nan)
        rows = np.flatnonzero(self.is_true)
        gaps[rows] = np.abs(self.boxes[rows] - self.objects.boxes[self.match[rows]])
        return gaps

    def sides(self, side: int | None = None) -> Sides | None:
        """Sides with distributions of correctly found objects, clipped ones left out: all, or only
        left, top, right or bottom (0 to 3).

        Normal distributions are given in bins of an eighth of a deviation: those of `probabilities`
        are as wide for a small deviation as for a large one, and end at `reg_max`.
        """
        if self.probabilities is None:
            return None
        kept = self.is_true[:, None] & ~self.is_clipped
        if side is not None:
            kept &= np.arange(4) == side
        truth = np.full(self.boxes.shape, np.nan)
        truth[self.is_true] = self.objects.boxes[self.match[self.is_true]]
        images = np.repeat(self.images[:, None], 4, 1)
        if self.is_normal:
            bins = _bins_of_normals(self.boxes[kept], self.edge_std[kept])
        else:
            bins = self.probabilities[kept].astype(float), self.positions[kept].astype(float)
        return Sides(*bins, truth[kept], images[kept])


def _bins_of_normals(means: np.ndarray, deviations: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and positions (n, 65) of n normal distributions, out to 4 deviations."""
    steps = torch.arange(-32, 33, dtype=torch.float64) / 8
    below = torch.special.ndtr((steps[1:] + steps[:-1]) / 2).numpy()
    probabilities = np.diff(below, prepend=0, append=1)
    positions = means[:, None] + deviations[:, None] * steps.numpy()
    return np.tile(probabilities, (len(means), 1)), positions
