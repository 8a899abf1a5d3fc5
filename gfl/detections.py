"""The boxes found in one image, and what a user does with them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Real

import numpy as np
import torch
from torch import Tensor

from gfl.errors import UserError, choose
from gfl.intervals import central_interval
from gfl.tensors import OnDevice, check_shape

# Detections below it are left out of pictures where no better threshold is known.
DEFAULT_THRESHOLD = 0.3


@dataclass(frozen=True, repr=False)
class Detections(OnDevice):
    """The boxes found in one image, best first.

    Attributes:
        boxes: (D, 4) xyxy, pixels of the original image.
        scores: (D,) joint classification-IoU scores in [0, 1].
        labels: (D,) int64 in [0, C).
        edge_std: (D, 4) standard deviation of each side's distribution, order ltrb, pixels of
            the original image. `gfl.load` multiplies it by the temperature of a checkpoint that
            `gfl analyze --store-temperature` has fitted; boxes and scores stay as they are.
        distributions: (D, 4, reg_max + 1) probabilities of each side's bins, or None.
        names: the C class names, where they are known.
        category_ids: the training data's own id of each class, where they are known.
        thresholds: the score from which a class's detections are worth showing, where known.
        edge_positions: (D, 4, reg_max + 1) where the bins of `distributions` lie, or None. Evenly
            spaced; x for left and right, y for top and bottom, pixels of the original image. The
            expectation is the side, as it was before boxes were clipped to the image (with
            model.box: gaussian only as near as the bins can tell, the mean being the side). With a
            temperature the bins lie that much further from it than the network has put them.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    edge_std: Tensor
    distributions: Tensor | None = None
    names: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    thresholds: tuple[float, ...] = ()
    edge_positions: Tensor | None = None

    def __post_init__(self):
        count = self.scores.shape[0]
        check_shape("boxes", self.boxes, count, 4)
        check_shape("scores", self.scores, count)
        check_shape("labels", self.labels, count)
        check_shape("edge_std", self.edge_std, count, 4)
        if self.distributions is not None:
            check_shape("distributions", self.distributions, count, 4, None)
        if self.edge_positions is not None:
            bins = None if self.distributions is None else self.distributions.shape[2]
            check_shape("edge_positions", self.edge_positions, count, 4, bins)

    def __len__(self) -> int:
        return self.scores.shape[0]

    def __repr__(self) -> str:
        found = self.class_names if self.names else self.labels.tolist()
        counts = ", ".join(f"{name} {found.count(name)}" for name in dict.fromkeys(found))
        best = f"; best score {self.scores.max():.2f}" if len(self) else ""
        return f"Detections({len(self)}: {counts}{best})" if len(self) else "Detections(0)"

    @property
    def class_names(self) -> list[str]:
        """The D names of the detections' classes."""
        return [self.names[label] for label in self.labels.tolist()]

    def select(self, rows: Tensor) -> Detections:
        """Some of the detections: indices or a mask over D."""
        return self._map(lambda values: values[rows])

    def filter(
        self, score: float | None = None, classes: Iterable[str] | None = None
    ) -> Detections:
        """Those above a score, of some classes.

        Args:
            score: default, each class's own of `thresholds`, or `DEFAULT_THRESHOLD`.
            classes: names.

        Raises:
            UserError: a name that is no class, or a score that is no number from 0 to 1.
        """
        if score is not None and not (isinstance(score, Real) and 0 <= score <= 1):
            raise UserError(f"score is {score!r}, expected a number from 0 to 1.")
        cut = torch.full_like(self.scores, DEFAULT_THRESHOLD if score is None else score)
        if score is None and self.thresholds:
            cut = self.scores.new_tensor(self.thresholds)[self.labels]
        kept = self.scores >= cut
        if classes is not None:
            wanted = check_classes(classes, self.names)
            kept &= torch.isin(self.labels, self.labels.new_tensor(wanted))
        return self.select(kept)

    def mirrored(self, width: float) -> Detections:
        """The same in the mirror image: x becomes width - x, left becomes right."""
        order = [2, 1, 0, 3]
        boxes = self.boxes[:, order] * self.boxes.new_tensor([-1, 1, -1, 1])
        boxes = boxes + boxes.new_tensor([width, 0, width, 0])
        swapped = None if self.distributions is None else self.distributions[:, order]
        doubt = self.edge_std[:, order]
        places = self.edge_positions
        if places is not None:
            places = places[:, order].clone()
            places[:, ::2] = width - places[:, ::2]
        return replace(
            self, boxes=boxes, edge_std=doubt, distributions=swapped, edge_positions=places
        )

    def edge_interval(self, p: float) -> Tensor:
        """Where each side lies with probability p, if its distribution is to be believed.

        Args:
            p: in (0, 1).

        Returns:
            (D, 4, 2) lower and upper end of the central interval, x for left and right, y for top
            and bottom, pixels of the original image, not clipped to it. See `gfl/intervals.py`;
            whether a share p of the true sides lies there has to be measured: docs/analysis.md.
            With model.box: gaussian, bins are too coarse for deviations below a stride and end at
            `reg_max`: there `boxes` and `edge_std` are the normal distribution itself.

        Raises:
            UserError: p is not inside (0, 1), or the distributions are not there.
        """
        if isinstance(p, bool) or not isinstance(p, Real) or not 0 < p < 1:
            raise UserError(f"edge_interval({p!r}): expected a probability between 0 and 1.")
        if self.distributions is None or self.edge_positions is None:
            raise UserError(
                "edge_interval needs the distributions of the sides, which these detections do not "
                "have: predict(..., distributions=True), with a model whose box representation "
                "has distributions (model.box)."
            )
        return central_interval(self.distributions, self.edge_positions, p)

    def widened(self, temperature: float) -> Detections:
        """The same boxes with `temperature` times the doubt: distributions stretched about them."""
        if temperature == 1:
            return self
        places = self.edge_positions
        if places is not None and self.distributions is not None:
            middle = (self.distributions * places).sum(-1, keepdim=True)
            places = middle + temperature * (places - middle)
        return replace(self, edge_std=self.edge_std * temperature, edge_positions=places)

    def to_coco(self, image_id: int) -> list[dict]:
        """COCO result entries: xywh in original pixels, the training data's category ids."""
        boxes = self.boxes.double().cpu().clone()
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), self.scores.tolist(), self.labels.tolist(), strict=True)
        return [
            {
                "image_id": int(image_id) if isinstance(image_id, np.integer) else image_id,
                "category_id": self.category_ids[label],
                "bbox": box,
                "score": score,
            }
            for box, score, label in rows
        ]

    def to_supervision(self):
        """`supervision.Detections`, with `class_name` and `edge_std` in its data.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            import supervision
        except ImportError:
            raise UserError(
                "supervision is not installed: pip install 'gfl-detection[supervision]'."
            ) from None
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            confidence=self.scores.cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
            data={
                "class_name": np.array(self.class_names),
                "edge_std": self.edge_std.cpu().numpy(),
            },
        )

    def draw(self, image: np.ndarray, doubt: bool = True) -> np.ndarray:
        """A copy of the (H, W, 3) uint8 RGB image with the detections; see `draw_boxes`.

        Args:
            image: the one that they were found in.
            doubt: show the standard deviation of each side as a band.
        """
        from gfl.drawing import draw_boxes

        names = self.names or {label: str(label) for label in self.labels.tolist()}
        deviations = self.edge_std.tolist() if doubt else None
        labels, scores = self.labels.tolist(), self.scores.tolist()
        return draw_boxes(image, self.boxes.tolist(), labels, names, scores, deviations)


def check_classes(classes: Iterable[str] | None, names: Sequence[str]) -> list[int]:
    """Labels of class names (one string is one), none for None; raises UserError for a name that
    is no class."""
    classes = [classes] if isinstance(classes, str) else classes
    label_of = {name: label for label, name in enumerate(names)}
    return [choose("class", name, label_of) for name in classes or ()]


def concatenate(parts: list[Detections]) -> Detections:
    """Detections of one image in one list, in the order of `parts` (at least one)."""
    first = parts[0]
    fields = ("boxes", "scores", "labels", "edge_std", "distributions", "edge_positions")
    joined = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name in fields
        if getattr(first, name) is not None
    }
    return replace(first, **joined)
