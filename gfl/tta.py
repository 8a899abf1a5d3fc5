"""Test-time augmentation: other sizes and mirrored images, merged by one NMS."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from gfl import build
from gfl.config import Config
from gfl.data.loader import BatchLoader
from gfl.detections import Detections, concatenate
from gfl.errors import UserError
from gfl.postprocess import class_wise_nms

# Longest short side that is looked at; beyond lies a slip of the keyboard, and no memory holds it.
LARGEST = 8192


@dataclass(frozen=True)
class ExtraViews:
    """What an evaluation looks at besides the images as they are.

    Attributes:
        loaders: batches of the same images, and whether they are mirrored.
        merge: all detections of an image to those that count.
    """

    loaders: list[tuple[BatchLoader, bool]]
    merge: Callable[[list[Detections]], Detections]


def extra_views(config: Config, dataset, flip: bool, scales: Iterable[int]) -> ExtraViews | None:
    """Views for `scales`, short sides in pixels, each mirrored too if `flip`; None for none.

    The long side's bound keeps its ratio to the short one's. The config's own size is always
    looked at first.

    Raises:
        UserError: a scale under 32 pixels or above `LARGEST`.
    """
    size = config.data.test_size
    own = size.short_range[1]
    wanted = [scale for scale in dict.fromkeys(scales) if scale != own]
    if any(not 32 <= scale <= LARGEST for scale in wanted):
        raise UserError(f"scales are {wanted}, expected short sides of 32 to {LARGEST} pixels.")
    views = [(scale, False) for scale in wanted]
    views += [(scale, True) for scale in (own, *wanted) if flip]
    loaders = []
    for scale, mirror in views:
        long = round(size.long * scale / own)
        loaders.append((build.build_eval_loader(config, dataset, scale, long, mirror), mirror))
    options = config.postprocess

    def merge(parts: list[Detections]) -> Detections:
        every = concatenate(parts)
        kept = class_wise_nms(every.boxes, every.scores, every.labels, options.nms_iou)
        return every.select(kept[: options.max_per_image])

    return ExtraViews(loaders, merge) if loaders else None
