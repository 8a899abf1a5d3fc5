"""A quality output apart from the class scores, at locations on objects and on background.

The paper's argument for one joint score: a quality that is trained on positives alone has never
seen background, and can be high there. Shown are randomly drawn locations of each image: *on an
object*, the location's box overlaps some object by IoU 0.5 or more; *on background*, by less than
0.1. A crowd region is no object, and what overlaps one by 0.1 is no background.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gfl.analysis.consistency import wrong_pairs
from gfl.analysis.records import BACKGROUND_IOU
from gfl.boxes import EPSILON, box_area, pairwise_iou
from gfl.postprocess import Postprocess
from gfl.structures import Detections, ImageMeta, Predictions

# Locations of each kind that are drawn of an image.
DRAWN = 40
FOREGROUND_IOU = 0.5


@dataclass(frozen=True)
class QualitySamples:
    """The drawn locations.

    Attributes:
        class_scores: (n,) best class score, without the quality.
        qualities: (n,).
        iou: (n,) of the location's box with the nearest object of any class.
        on_object: (n,) bool, else on background.
    """

    class_scores: np.ndarray
    qualities: np.ndarray
    iou: np.ndarray
    on_object: np.ndarray

    def summary(self) -> dict:
        """Counts, medians, and the share of wrong pairs of each score and of their product."""
        on, off = self.on_object, ~self.on_object
        both = self.class_scores * self.qualities
        scores = {"class": self.class_scores, "quality": self.qualities, "product": both}
        return {
            "on_object": int(on.sum()),
            "on_background": int(off.sum()),
            "median_quality_on_object": _median(self.qualities[on]),
            "median_quality_on_background": _median(self.qualities[off]),
            "background_with_quality_from_half": _mean(self.qualities[off] >= 0.5),
            "wrong_pairs": {n: wrong_pairs(v[on], v[off]) for n, v in scores.items()},
        }


class QualityWatch:
    """A postprocess that draws locations of what it is given, if there is a quality output.

    Args:
        postprocess: a `gfl.postprocess.Postprocess`; the detections are its own.
        truth: a pycocotools COCO of the images.
    """

    def __init__(self, postprocess: Postprocess, truth):
        self._postprocess, self._truth = postprocess, truth
        self.detection_scores = postprocess.detection_scores
        self._drawn: list[Tensor] = []

    def __call__(
        self, predictions: Predictions, metas: tuple[ImageMeta, ...], **options
    ) -> list[Detections]:
        if predictions.quality_logits is not None:
            scores = predictions.class_scores()
            for row, meta in enumerate(metas):
                self._drawn.append(self._draw(predictions, scores[row], row, meta))
        return self._postprocess(predictions, metas, **options)

    def samples(self) -> QualitySamples | None:
        """What was drawn; None for a network without a quality output."""
        if not self._drawn:
            return None
        values = torch.cat(self._drawn).double().cpu().numpy()
        return QualitySamples(values[:, 0], values[:, 1], values[:, 2], values[:, 3] > 0)

    def _draw(self, predictions: Predictions, scores: Tensor, row: int, meta: ImageMeta) -> Tensor:
        """(n, 4) class score, quality, IoU, and 1 for a location on an object, of one image."""
        grid, box = predictions.grid, self._postprocess.box
        boxes = box.boxes(predictions.box_logits[row], grid.centers, grid.strides[:, None])
        boxes = boxes / boxes.new_tensor(meta.scale * 2)
        iou, in_crowd = boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes))
        for entry in self._truth.imgToAnns.get(meta.image_id, []):
            there = boxes.new_tensor(entry["bbox"])
            there = torch.cat((there[:2], there[:2] + there[2:]))
            overlap = pairwise_iou(boxes, there[None])[:, 0]
            if entry.get("iscrowd"):
                # The share of the box inside, as COCO counts it: a box of any size may be part.
                common = overlap / (1 + overlap) * (box_area(boxes) + box_area(there))
                in_crowd = torch.maximum(in_crowd, common / box_area(boxes).clamp(min=EPSILON))
            else:
                iou = torch.maximum(iou, overlap)
        if self._postprocess.background_channel:
            scores = scores[:, :-1]
        quality = predictions.quality_logits[row, :, 0].float().sigmoid()
        inside = (grid.centers < grid.centers.new_tensor(meta.input_size[::-1])).all(1)
        generator = torch.Generator().manual_seed(meta.image_id % 2**31)
        parts = []
        is_background = torch.maximum(iou, in_crowd) < BACKGROUND_IOU
        for kind, mask in ((1, iou >= FOREGROUND_IOU), (0, is_background)):
            rows = (mask & inside).nonzero().squeeze(1).cpu()
            drawn = rows[torch.randperm(len(rows), generator=generator)[:DRAWN]].to(iou.device)
            values = (scores.amax(1)[drawn], quality[drawn], iou[drawn])
            parts.append(torch.stack((*values, torch.full_like(values[0], kind)), 1))
        return torch.cat(parts)


def _median(values: np.ndarray) -> float | None:
    return float(np.median(values)) if len(values) else None


def _mean(values: np.ndarray) -> float | None:
    return float(np.mean(values)) if len(values) else None
