"""Image files: what is decoded, what is refused, what is remembered."""

import io
import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from gfl.data import image as image_module
from gfl.data import image_facts
from gfl.data.image import decode_image, read_image
from gfl.data.image_facts import ImageFacts, inspect_image, inspect_images
from gfl.data.jpeg_header import is_plain_jpeg
from gfl.errors import UserError


def noise(height: int = 48, width: int = 64, seed: int = 0) -> np.ndarray:
    """A smooth picture of which every part differs."""
    rng = np.random.default_rng(seed)
    return cv2.resize(rng.integers(0, 256, (6, 8, 3)).astype(np.uint8), (width, height))


def encoded(format: str, image=None, mode: str = "RGB", **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(noise() if image is None else image).convert(mode).save(file, format, **options)
    return file.getvalue()


def with_exif(format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(format, exif=exif)


def upright_by_pillow(content: bytes) -> np.ndarray:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))


def test_ordinary_files_are_read_as_opencv_reads_them():
    for content in (encoded("JPEG"), encoded("PNG"), encoded("JPEG", mode="L")):
        want = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
        assert (decode_image(content, "x") == want).all()


def outcome(content: bytes, out: np.ndarray | None = None) -> np.ndarray | str:
    """What decoding gives: a picture, or a message."""
    try:
        return decode_image(content, "x", out=out)
    except UserError as error:
        return str(error)


def jpeg_kinds() -> list[bytes]:
    """Odd sizes, every way to store colours, scans, tables."""
    found = [encoded("JPEG", noise(h, w)) for h, w in [(1, 1), (1, 17), (33, 1), (7, 13), (37, 50)]]
    for options in (
        {"subsampling": 0},
        {"subsampling": 1},
        {"subsampling": 2},
        {"progressive": True},
        {"optimize": True, "quality": 30},
        {"keep_rgb": True},
        {"restart_marker_blocks": 2},
        {"mode": "L"},
        {"mode": "L", "progressive": True},
        {"icc_profile": b"profile" * 99},
    ):
        found.append(encoded("JPEG", noise(41, 59), **options))
    return found


def damaged(content: bytes, seed: int) -> bytes:
    """A file cut off, with bytes changed, or with bytes put in."""
    rng = np.random.default_rng(seed)
    bytes_ = bytearray(content)
    at = int(rng.integers(2, len(bytes_)))
    kind = seed % 3
    if kind == 0:
        return bytes(bytes_[:at])
    noise_ = rng.integers(0, 256, 3).astype(np.uint8).tobytes()
    bytes_[at : at + (3 if kind == 1 else 0)] = noise_
    return bytes(bytes_)


def test_simplejpeg_gives_what_opencv_gives_damaged_files_too(monkeypatch):
    assert image_module.simplejpeg is not None, "pip install simplejpeg: setup.py asks for it"
    kinds = jpeg_kinds()
    files = kinds + [damaged(content, seed) for content in kinds for seed in range(20)]
    with_it = [outcome(content) for content in files]
    monkeypatch.setattr(image_module, "simplejpeg", None)
    pictures = 0
    for content, got in zip(files, with_it, strict=True):
        want = outcome(content)
        if isinstance(want, str):
            assert isinstance(got, str)
        else:
            assert got.dtype == np.uint8 and got.shape == want.shape and (got == want).all()
            pictures += 1
    assert len(kinds) < pictures < len(files)


@pytest.mark.parametrize("is_there", [True, False])
def test_picture_is_decoded_into_memory_that_fits(monkeypatch, is_there):
    if not is_there:
        monkeypatch.setattr(image_module, "simplejpeg", None)
    for content in (*jpeg_kinds(), encoded("PNG"), with_exif("JPEG", 6)):
        want = decode_image(content, "x")
        memory = np.full(want.size + 7, 9, np.uint8)
        out = memory[: want.size].reshape(want.shape)
        assert decode_image(content, "x", out=out) is out
        assert (out == want).all() and (memory[want.size :] == 9).all()
        other = np.full((want.shape[0] + 1, want.shape[1], 3), 9, np.uint8)
        got = decode_image(content, "x", out=other)
        assert got is not other and (got == want).all() and (other == 9).all()


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "GIF"])
def test_formats_without_loss(format):
    image = np.repeat(noise()[..., :1], 3, axis=2)  # grey, which a GIF's palette holds exactly
    assert (decode_image(encoded(format, image, mode="L"), "x") == image).all()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied_as_pillow_applies_it(tmp_path, format, orientation):
    content = with_exif(format, orientation)
    image = decode_image(content, "x")
    assert image.shape == ((48, 64, 3) if orientation < 5 else (64, 48, 3))
    want = upright_by_pillow(content).astype(int)
    assert np.abs(image - want).mean() < 1
    (tmp_path / "x").write_bytes(content)
    facts = inspect_image(str(tmp_path / "x"))
    assert (facts.height, facts.width) == image.shape[:2]
    assert ("exif_rotated" in facts.notes) == (orientation > 1)


@pytest.mark.parametrize("orientation", [0, 9, 99])
def test_exif_orientation_that_does_not_exist(tmp_path, orientation):
    path = tmp_path / "x.jpg"
    path.write_bytes(with_exif("JPEG", orientation))
    assert (read_image(str(path)) == decode_image(encoded("JPEG"), "x")).all()
    assert inspect_image(str(path)).notes == ("invalid_exif",)


def test_cmyk_is_not_inverted():
    red = np.full((16, 16, 3), (250, 10, 10), np.uint8)
    for format in ("JPEG", "TIFF"):
        got = decode_image(encoded(format, red, mode="CMYK"), "x")
        assert np.abs(got.astype(int) - red).max() < 12, format


def test_16_bits_are_scaled_to_8(tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    want = np.arange(256).reshape(16, 16)
    for name in ("a.png", "a.tif"):
        cv2.imwrite(str(tmp_path / name), values)
        got = read_image(str(tmp_path / name))
        assert (got == want[..., None]).all(), name
        cv2.imwrite(str(tmp_path / name), np.repeat(values[..., None], 3, axis=2))
        assert (read_image(str(tmp_path / name)) == want[..., None]).all(), name


def test_values_of_no_known_scale_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif has floating-point pixels"):
        read_image(str(tmp_path / "f.tif"))
    Image.fromarray(np.full((4, 4), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UserError, match=r"i\.tif has pixels beyond 16 bits"):
        read_image(str(tmp_path / "i.tif"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_dropped(mode):
    image = np.full((8, 8, 3), 90, np.uint8)
    options = {"transparency": b"\x00" * 4} if mode == "P" else {}
    picture = Image.fromarray(image)
    picture = picture.quantize(4) if mode == "P" else picture.convert(mode)
    if mode != "P":
        picture.putalpha(0)
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    assert np.abs(decode_image(file.getvalue(), "x").astype(int) - 90).max() <= 3


def test_jpeg_without_its_end_is_read_if_nothing_else_is_missing():
    for options in ({}, {"progressive": True}, {"quality": 30}):
        content = encoded("JPEG", **options)
        want = decode_image(content, "x")
        for lost in (1, 2):
            assert (decode_image(content[:-lost], "x") == want).all()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("seed", range(3))
def test_jpeg_that_is_cut_off_is_refused(tmp_path, share, seed):
    content = encoded("JPEG", noise(96, 128, seed), quality=90)
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(UserError, match=r"cut\.jpg is (cut off|not a readable image)"):
        read_image(str(path))
    assert inspect_image(str(path)).notes[0] in ("truncated_image", "unreadable_image")


def test_jpeg_with_bytes_after_its_end_is_whole(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded("JPEG") + b"camera's own bytes")
    assert (read_image(str(path)) == decode_image(encoded("JPEG"), "x")).all()
    assert inspect_image(str(path)) == ImageFacts(48, 64)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_files_end_in_a_message_and_both_agree(tmp_path, format):
    content = encoded(format)
    rng = np.random.default_rng(0)
    refused = 0
    for number in range(60):
        damaged = bytearray(content)
        if number % 2:
            damaged = damaged[: rng.integers(len(damaged))]
        else:
            for _ in range(10):
                damaged[rng.integers(min(len(damaged), 300))] = rng.integers(256)
        path = tmp_path / f"{number}.bin"
        path.write_bytes(damaged)
        facts = inspect_image(str(path))
        try:
            image = read_image(str(path))
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            if facts.height:
                assert image.shape == (facts.height, facts.width, 3)
    assert refused > 20


# Ordinary JPEG files, which are decoded without Pillow


def segment(marker: int, content: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content


def frame(bits: int = 8, height: int = 2, width: int = 3, components: int = 3) -> bytes:
    sides = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    return bytes((bits,)) + sides + bytes((components,)) + b"abc" * components


def test_plain_jpeg_by_hand():
    start, scan = b"\xff\xd8", segment(0xDA, b"scan")

    def is_plain(*segments: bytes, most: float = 6) -> bool:
        return is_plain_jpeg(start + b"".join(segments) + scan, most)

    for number in (0xC0, 0xC1, 0xC2):
        assert is_plain(segment(number, frame()))
    assert is_plain(segment(0xC0, frame(components=1)))
    assert is_plain(
        segment(0xE0, b"JFIF"), segment(0xE2, b"ICC_PROFILE\0x"), segment(0xC0, frame())
    )
    assert not is_plain(segment(0xC0, frame()), most=5)
    assert not is_plain()
    assert not is_plain(segment(0xC0, frame()), segment(0xC0, frame()))
    other = [
        frame(bits=12),
        frame(components=4),
        frame(height=0),
        frame()[:-1],
        b"",
        frame() + b"x",
    ]
    assert not any(is_plain(segment(0xC0, content)) for content in other)
    for number, content in ((0xE1, b"Exif\0\0"), (0xE2, b"MPF\0"), (0xC3, frame()), (0xD9, b"")):
        assert not is_plain(segment(number, content), segment(0xC0, frame()))
    whole = start + segment(0xC0, frame()) + scan
    assert is_plain_jpeg(whole, 6)
    assert not any(is_plain_jpeg(whole[:length], 6) for length in range(len(whole)))
    assert not is_plain_jpeg(b"\x89PNG" + whole, 6)


def test_plain_jpeg_of_encoders():
    for options in ({}, {"progressive": True}, {"mode": "L"}, {"icc_profile": b"x" * 70_000}):
        assert is_plain_jpeg(encoded("JPEG", **options), 10_000), options
    assert not is_plain_jpeg(encoded("JPEG", mode="CMYK"), 10_000)
    assert not is_plain_jpeg(with_exif("JPEG", 6), 10_000)
    xmp = b'<x xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
    turned = encoded("JPEG", xmp=xmp)
    assert not is_plain_jpeg(turned, 10_000)
    assert decode_image(turned, "x").shape == (64, 48, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of odd metadata
def test_damaged_jpeg_files_are_read_as_with_pillow(monkeypatch):
    def outcome(content: bytes):
        try:
            return decode_image(content, "x").tolist()
        except UserError as error:
            return str(error)

    rng = np.random.default_rng(1)
    whole = encoded("JPEG")
    files = [whole[: rng.integers(len(whole))] for _ in range(20)]
    for number in range(150):
        damaged = bytearray(whole)
        for _ in range(1 + number % 3):
            damaged[rng.integers(700 if number % 2 else len(whole))] = rng.integers(256)
        files.append(bytes(damaged))
    assert 30 < sum(is_plain_jpeg(content, 10_000) for content in files) < 160
    got = [outcome(content) for content in files]
    monkeypatch.setattr(image_module, "is_plain_jpeg", lambda *_: False)
    assert got == [outcome(content) for content in files]


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "no.jpg", tmp_path):
        with pytest.raises(UserError, match="cannot read image"):
            read_image(str(path))
        assert inspect_image(str(path)).notes == ("unreadable_image",)


# The cache


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for path in paths:
        path.write_bytes(encoded("PNG"))
    return [str(path) for path in paths]


@pytest.fixture
def looked_at(monkeypatch):
    """The paths that are really looked at."""
    seen = []
    real = image_facts.inspect_image
    monkeypatch.setattr(image_facts, "inspect_image", lambda p: seen.append(p) or real(p))
    return seen


def test_cache_knows_unchanged_files(files, tmp_path, looked_at):
    cache = tmp_path / "cache"
    first = inspect_images(files, cache)
    assert sorted(looked_at) == files
    looked_at.clear()
    assert inspect_images(files, cache) == first and looked_at == []
    assert inspect_images(files) == first and len(looked_at) == 3  # without cache
    looked_at.clear()
    with open(files[1], "wb") as file:
        file.write(b"no longer an image")
    assert inspect_images(files, cache)[1].notes == ("unreadable_image",)
    assert looked_at == [files[1]]
    looked_at.clear()
    os.utime(files[2], (1, 1))
    inspect_images(files, cache)
    assert looked_at == [files[2]]
    assert [path.suffix for path in cache.iterdir()] == [".json"]


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[]", b"\xff", b'{"a": 1}', b'{"a": [1, 2, 3, 4, 5]}']
)
def test_damaged_cache_is_made_anew(files, tmp_path, looked_at, damage):
    cache = tmp_path / "cache"
    first = inspect_images(files, cache)
    [file] = cache.iterdir()
    file.write_bytes(damage)
    looked_at.clear()
    assert inspect_images(files, cache) == first and len(looked_at) == 3
    looked_at.clear()
    assert inspect_images(files, cache) == first and looked_at == []


def test_cache_that_can_not_be_written_breaks_nothing(files, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    assert inspect_images(files, blocked / "cache") == inspect_images(files)
    assert blocked.read_text() == "no folder"


def test_cache_is_not_in_the_data_folder(files, tmp_path, monkeypatch):
    assert image_facts.default_cache().parent == Path(os.environ["GFL_CACHE"])
    monkeypatch.delenv("GFL_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert image_facts.default_cache() == tmp_path / "user" / "gfl" / "images"
    before = sorted(os.listdir(tmp_path))
    inspect_images(files, image_facts.default_cache())
    assert sorted(os.listdir(tmp_path)) == [*before, "user"]


def test_no_file_is_no_trouble(tmp_path):
    assert inspect_images([], tmp_path) == []
