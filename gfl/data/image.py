"""Reading image files."""

import cv2
import numpy as np

from gfl.errors import UserError


def read_image(path: str) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, turned upright as its EXIF data says.

    Raises:
        UserError: the file is missing or is no image.
    """
    try:
        content = np.fromfile(path, np.uint8)
    except OSError as error:
        raise UserError(f"cannot read image {path}: {error.strerror or error}") from None
    image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
    if image is None:
        raise UserError(f"{path} is not a readable image: replace it or remove it from the json.")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
