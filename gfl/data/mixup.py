"""Mix-up: two pictures blended, with the objects of both."""

import cv2
import numpy as np

from gfl.data.dataset import Sample


def mixed(sample: Sample, second: Sample) -> Sample:
    """The mean of two pictures of one size; the first gives the image id.

    Source: arXiv 2107.08430 (YOLOX) section 2.1 and its code: equal parts, as no loss is weighted.
    """
    return Sample(
        cv2.addWeighted(sample.image, 0.5, second.image, 0.5, 0),
        np.concatenate((sample.boxes, second.boxes)),
        np.concatenate((sample.labels, second.labels)),
        np.concatenate((sample.ignore_boxes, second.ignore_boxes)),
        sample.image_id,
    )
