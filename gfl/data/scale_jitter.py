"""Scale jitter: a picture at a random size, cut or padded to the training size."""

import numpy as np

from gfl.data.dataset import Sample
from gfl.data.window import lay_sample, random_corner, scaled_size


def scale_jittered(
    sample: Sample,
    frame: tuple[int, int],
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> Sample:
    """A sample of the size `frame` that shows the picture larger or smaller, at a random place.

    Args:
        sample: of any size.
        frame: (h, w) of the result.
        factors: smallest and largest; 1 is the picture that just fits into `frame`.
        rng: draws the factor and the place.

    Source: arXiv 2012.07177 (Simple Copy-Paste) section 3, "large scale jittering", which pads at
    the right and bottom only.
    """
    size = scaled_size(sample.image.shape[:2], frame, rng.uniform(*factors))
    return lay_sample(sample, size, frame, random_corner(size, frame, rng))
