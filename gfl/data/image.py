"""Reading image files: one reader for training, evaluation and prediction."""

import io
import math

import cv2
import numpy as np
from PIL import Image, ImageOps

from gfl.data.jpeg_header import is_plain_jpeg
from gfl.errors import UserError

try:
    import simplejpeg
except ImportError:  # a platform without its wheels
    simplejpeg = None

# Pillow refuses pictures above its limit, which is for small machines. This is OpenCV's: aerial
# pictures and slides are large.
Image.MAX_IMAGE_PIXELS = 2**30

# By which image files are told from others where nothing names them.
IMAGE_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp"),
    *(".webp", ".tif", ".tiff", ".gif"),
)
# Formats that OpenCV decodes as Pillow does, and faster. CMYK is Pillow's in any of them.
OPENCV_FORMATS = ("JPEG", "MPO", "PNG", "BMP")
JPEG_FORMATS = ("JPEG", "MPO")
JPEG_SCAN, JPEG_END = b"\xff\xda", b"\xff\xd9"
# Scan data that decodes to something visible; no byte of it can be a marker.
_FILLER = bytes(range(17, 145))
# Newer versions of OpenCV decode to RGB at once.
_RGB = getattr(cv2, "IMREAD_COLOR_RGB", None)
# Decoded so many times smaller; the bit alone, beside those of the colour.
_REDUCED = {
    1: 0,
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8,
}
# EXIF orientation to what `np.rot90` and a mirror do: (quarter turns to the left, mirrored first).
_TURNS = {2: (0, True), 3: (2, False), 4: (2, True), 5: (1, True), 6: (3, False)} | {
    7: (3, True),
    8: (1, False),
}


def shrink_for(size: tuple[int, int], least: tuple[int, int]) -> int:
    """How much smaller, 1, 2, 4 or 8 times, a picture may be decoded that shall be resized.

    Args:
        size: (h, w) of the picture.
        least: (h, w) that it shall have at least.
    """
    return next(k for k in (8, 4, 2, 1) if k == 1 or _fits(least, shrunk_size(size, k)))


def shrunk_size(size: tuple[int, int], shrink: int) -> tuple[int, int]:
    """(h, w) of a JPEG that is decoded `shrink` times smaller: halves round up."""
    return -(-int(size[0]) // shrink), -(-int(size[1]) // shrink)


def _fits(inner: tuple[int, int], outer: tuple[int, int]) -> bool:
    return inner[0] <= outer[0] and inner[1] <= outer[1]


def read_image(path: str, shrink: int = 1, out: np.ndarray | None = None) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8 RGB, turned upright as its EXIF data says.

    The content decides, not the name. Transparency is dropped, 16-bit values are scaled to 8 bits,
    of several frames the first is taken. A JPEG that lacks nothing but its end marker is read.

    Args:
        path: the file.
        shrink: 2, 4 or 8 decodes JPEG files that many times smaller: it is faster. Not those of
            CMYK, nor pictures to be turned of which the last pixels would be rounded up: these
            would come first.
        out: contiguous (H, W, 3) uint8 that gets the picture and is returned, if it is of that
            size; another picture is returned as it is.

    Raises:
        UserError: the file is missing, is no image, or is cut off.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            content = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read image {path}: {reason}") from None
    return decode_image(content, path, shrink, out)


def decode_image(
    content: bytes, name: str, shrink: int = 1, out: np.ndarray | None = None
) -> np.ndarray:
    """As `read_image`, of a file's content; `name` is for messages."""
    try:
        image = _decode(content, name, shrink, out)
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise UserError(_unreadable(name, error)) from None
    if image is None:
        raise UserError(_unreadable(name, "unknown format"))
    if out is None or image is out or image.shape != out.shape:
        return image
    out[...] = image
    return out


def exif_orientation(header: Image.Image, content: bytes) -> int:
    """The EXIF orientation of an opened file, 1 where none is stated; it may not exist (0, 9)."""
    if header.format == "PNG" and b"eXIf" not in content:
        return 1  # Pillow would decode the picture to look for it at the end
    value = header.getexif().get(0x0112, 1)
    return value if isinstance(value, int) else 0


def jpeg_lacks_end(content: bytes) -> bool:
    """Whether no end marker follows the (last) scan. Bytes after the marker are fine."""
    return not content.endswith(JPEG_END) and content.rfind(JPEG_END) < content.rfind(JPEG_SCAN)


def _unreadable(name: str, reason: object) -> str:
    text = str(reason).split("\n")[0][:200]
    return f"{name} is not a readable image: replace it or remove it from the data set ({text})."


def _decode(content: bytes, name: str, shrink: int, out: np.ndarray | None) -> np.ndarray | None:
    # Most files, for which Pillow's look at the header would say nothing new.
    if is_plain_jpeg(content, Image.MAX_IMAGE_PIXELS or math.inf) and not jpeg_lacks_end(content):
        image = _simplejpeg(content, out) if shrink == 1 else None
        image = _opencv(content, shrink) if image is None else image
        if image is not None:
            return image
    try:
        header = Image.open(io.BytesIO(content))
    except Image.UnidentifiedImageError:
        return _opencv(content)  # knows a few formats more
    if header.format in JPEG_FORMATS and jpeg_lacks_end(content):
        content = _completed_jpeg(content, name)
    if header.format in OPENCV_FORMATS and header.mode != "CMYK":
        orientation = exif_orientation(header, content)
        is_even = orientation not in _TURNS or all(side % shrink == 0 for side in header.size)
        image = _opencv(content, shrink if header.format in JPEG_FORMATS and is_even else 1)
        if image is not None:
            return _upright(image, orientation)
    picture = Image.open(io.BytesIO(content))
    picture.seek(0)
    return picture_to_rgb(picture, name)


def _simplejpeg(content: bytes, out: np.ndarray | None) -> np.ndarray | None:
    """RGB of a JPEG without a flaw, in `out` if that fits: the pixels of OpenCV, a little sooner.

    None where there is a flaw, or no simplejpeg.
    """
    if simplejpeg is None:
        return None
    try:
        if out is not None and simplejpeg.decode_jpeg_header(content)[:2] == out.shape[:2]:
            simplejpeg.decode_jpeg(content, buffer=out)
            return out
        return simplejpeg.decode_jpeg(content)
    except ValueError:  # for what is a mere warning too: then OpenCV gives a picture
        return None


def _opencv(content: bytes, shrink: int = 1) -> np.ndarray | None:
    """RGB as stored, or None."""
    flags = (cv2.IMREAD_COLOR if _RGB is None else _RGB) | cv2.IMREAD_IGNORE_ORIENTATION
    flags |= _REDUCED[shrink]
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags) if content else None
    except cv2.error:
        return None
    if image is None or _RGB is not None:
        return image
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn stored pixels as EXIF asks; orientations that do not exist change nothing."""
    if orientation not in _TURNS:
        return image
    quarters, mirrored = _TURNS[orientation]
    return np.ascontiguousarray(np.rot90(image[:, ::-1] if mirrored else image, quarters))


def pil_to_rgb(image: Image.Image) -> np.ndarray:
    """A PIL image of a user, whose file may still have to be read, as `picture_to_rgb`.

    Raises:
        UserError: its file is damaged or closed, it has no pixels, or those of no known scale.
    """
    try:
        pixels = picture_to_rgb(image, "the PIL image")
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever damaged bytes lead them to
        raise UserError(f"the PIL image can not be read, replace its file: {error}.") from None
    if not pixels.size:
        raise UserError(f"the PIL image has no pixels: it is {image.width} x {image.height}.")
    return pixels


def picture_to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """A PIL image as (H, W, 3) uint8 RGB, upright; `name` is for messages.

    Raises:
        UserError: pixels of no known scale.
    """
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.size and not 0 <= values.min() <= values.max() <= 65535:
            raise UserError(f"{name} has pixels beyond 16 bits: convert it to 8 bits.")
        return np.repeat(((values + 128) // 257).astype(np.uint8)[..., None], 3, axis=2)
    if image.mode == "F":
        raise UserError(
            f"{name} has floating-point pixels of no known scale: convert it to 8 bits."
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return np.array(image.convert("RGB"))


def _completed_jpeg(content: bytes, name: str) -> bytes:
    """A JPEG without end marker with one, if that is all it lacks.

    Then no pixel depends on what follows the end of the file; in a file that was cut off, the
    missing part is drawn from it.
    """
    content = content.rstrip(b"\xff")
    ends = (JPEG_END, _FILLER + JPEG_END)
    first, second = (np.asarray(Image.open(io.BytesIO(content + end))) for end in ends)
    if not np.array_equal(first, second):
        raise UserError(f"{name} is cut off, a part of the picture is missing: replace it.")
    return content + JPEG_END
