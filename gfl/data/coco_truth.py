"""Ground truth as pycocotools holds it, without a file."""

import contextlib
import io

from pycocotools.coco import COCO


def coco_of(content: dict) -> COCO:
    """pycocotools' index of what a COCO annotation file holds: images, annotations, categories."""
    truth = COCO()
    truth.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth.createIndex()
    return truth
