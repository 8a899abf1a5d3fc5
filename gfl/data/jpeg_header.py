"""Which JPEG files are of the ordinary kind: read off their header, without a decoder."""

# Tables, comments, restart intervals, JFIF and Adobe: no such segment can turn a picture.
_PLAIN_SEGMENTS = frozenset({0xDB, 0xC4, 0xFE, 0xDD, 0xE0, 0xEE})
_FRAMES = frozenset({0xC0, 0xC1, 0xC2})  # baseline, extended, progressive
_APP2, _SCAN = 0xE2, 0xDA


def is_plain_jpeg(content: bytes, most_pixels: float) -> bool:
    """Whether a file is surely a grey or colour JPEG of 8 bits without EXIF or XMP data.

    Such a picture is what its decoder gives. False says nothing: the file may be anything.

    Args:
        content: of the file.
        most_pixels: larger pictures are not plain.
    """
    at, frames = 2, 0
    if not content.startswith(b"\xff\xd8"):
        return False
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        segment = at + 4
        if not segment <= end <= len(content):
            return False
        if marker == _SCAN:
            return frames == 1
        if marker in _FRAMES:
            if not _is_plain_frame(content[segment:end], most_pixels):
                return False
            frames += 1
        elif marker == _APP2:
            if not content.startswith(b"ICC_PROFILE\0", segment):
                return False
        elif marker not in _PLAIN_SEGMENTS:
            return False
        at = end
    return False


def _is_plain_frame(frame: bytes, most_pixels: float) -> bool:
    """Of the segment that says bits, height, width, components, and three bytes for each."""
    if len(frame) < 6:
        return False
    bits, components = frame[0], frame[5]
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    is_known = bits == 8 and components in (1, 3) and len(frame) == 6 + 3 * components
    return is_known and 0 < height * width <= most_pixels
