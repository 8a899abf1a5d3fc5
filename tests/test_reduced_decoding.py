"""JPEG files decoded at a fraction of their size: which, how large, and boxes that stay right."""

import json

import cv2
import numpy as np
import pytest
from builders import tiny_config
from PIL import Image

from gfl import build
from gfl.config import parse_config
from gfl.data.image import read_image, shrink_for, shrunk_size
from gfl.data.loader import TransformedDataset
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.errors import UserError

# Of the upright picture; the box is where it is bright.
SIZE = (479, 641)
BOX = (200, 120, 403, 301)


def marked(folder, name: str, orientation: int = 1, size=SIZE, box=BOX):
    """A file of a dark picture with a bright box, turned as its EXIF data says."""
    upright = np.full((*size, 3), 20, np.uint8)
    upright[box[1] : box[3], box[0] : box[2]] = 230
    stored = {1: upright, 3: upright[::-1, ::-1], 6: np.rot90(upright), 8: np.rot90(upright, 3)}
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = folder / name
    Image.fromarray(np.ascontiguousarray(stored[orientation])).save(path, exif=exif)
    return path


class OneFile:
    """A data set of one picture with one box."""

    def __init__(self, path):
        self.file = str(path)
        self.sizes = np.array([SIZE], np.int32)

    def __len__(self) -> int:
        return 1


@pytest.mark.parametrize(
    ("size", "least", "want"),
    [
        ((480, 640), (480, 640), 1),
        ((480, 640), (241, 320), 1),
        ((480, 640), (240, 320), 2),
        # 479 rows give 240, as halves are rounded up.
        ((479, 639), (240, 320), 2),
        ((480, 640), (100, 133), 4),
        ((480, 640), (60, 80), 8),
        ((480, 640), (1, 1), 8),
        ((100, 100), (200, 200), 1),
        ((1, 5000), (1, 600), 8),
    ],
)
def test_how_much_smaller(size, least, want):
    assert shrink_for(size, least) == want


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
@pytest.mark.parametrize("shrink", [2, 4, 8])
@pytest.mark.parametrize("size", [SIZE, (480, 640)])
def test_size_and_orientation(tmp_path, orientation, shrink, size):
    image = read_image(str(marked(tmp_path, "a.jpg", orientation, size)), shrink)
    if size == SIZE and orientation != 1:
        shrink = 1  # read whole: what is rounded up would be the first row or column
    assert image.shape[:2] == shrunk_size(size, shrink)
    rows, columns = np.nonzero(image[..., 0] > 125)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    # A pixel of edge, and the part of a pixel that is beyond the last row or column.
    assert np.abs(np.array(found) * shrink - BOX).max() < 2 * shrink


def test_other_formats_and_cmyk_keep_their_size(tmp_path):
    for name in ("a.png", "a.bmp"):
        path = str(marked(tmp_path, name))
        assert (read_image(path, 4) == read_image(path)).all()
    Image.new("CMYK", (40, 30)).save(tmp_path / "c.jpg")
    assert read_image(str(tmp_path / "c.jpg"), 2).shape == (30, 40, 3)


def dataset_of(folder, name: str, orientation: int = 1, size=SIZE, mark=BOX):
    """One file as a COCO data set, by the config's own way."""
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    marked(folder / "images", name, orientation, size, mark)
    x1, y1, x2, y2 = mark
    box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": 1, "iscrowd": 0, "category_id": 1}
    content = {
        "images": [{"id": 3, "file_name": name, "height": size[0], "width": size[1]}],
        "annotations": [{"id": 1, "image_id": 3, **box}],
        "categories": [{"id": 1, "name": "mark"}],
    }
    (folder / "annotations" / "train.json").write_text(json.dumps(content))
    return build.build_dataset(tiny_config(folder), "train")


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize("short", [239, 120, 61])
def test_box_stays_on_its_mark(tmp_path, short, on_device):
    dataset = dataset_of(tmp_path, "a.jpg")
    transform = Transform(1000, flip_horizontal=1.0, on_device=on_device)
    key = SampleKey(0, 0, short)
    plain, meta = TransformedDataset(dataset, transform)[key]
    sample, own = TransformedDataset(dataset, transform, reduced_decoding=True)[key]
    assert own == meta
    assert own.original_size == SIZE
    shrink = {239: 2, 120: 4, 61: 4}[short]
    assert np.abs(sample.boxes - plain.boxes).max() < 1
    if on_device:
        assert sample.image.shape[:2] == shrunk_size(SIZE, shrink)
        return
    assert sample.image.shape == plain.image.shape
    assert (sample.image != plain.image).any()
    rows, columns = np.nonzero(sample.image[..., 0] > 125)
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(np.array(found) - sample.boxes[0]).max() <= 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize(("short", "side"), [(125, 1001), (250, 1001), (500, 1001), (125, 1000)])
def test_box_is_where_the_last_pixels_of_a_side_are(tmp_path, short, side, orientation):
    """1001 pixels are 126 columns, as if there were 1008."""
    mark = (side - 160, side - 120, side - 40, side - 40)
    dataset = dataset_of(tmp_path, "a.jpg", orientation, (side, side), mark)
    view = TransformedDataset(dataset, Transform(2000), reduced_decoding=True)
    sample, meta = view[SampleKey(0, 0, short)]
    assert meta.scale == (short / side, short / side)
    bright = sample.image[..., 0] - 20.0
    at = np.arange(short) + 0.5
    centre = [(bright.sum(axis) * at).sum() / bright.sum() for axis in (0, 1)]
    x1, y1, x2, y2 = sample.boxes[0]
    assert centre == pytest.approx([(x1 + x2) / 2, (y1 + y2) / 2], abs=0.1)


def test_a_picture_of_a_pixel_stays_what_it_is(tmp_path):
    dataset = dataset_of(tmp_path, "a.jpg", 1, (1, 1), (0, 0, 1, 1))
    sample = dataset.read(0, 8)
    assert (sample.full_size, sample.shrink) == (None, 1) and sample.image.shape == (1, 1, 3)


def test_png_gives_the_same_samples(tmp_path):
    dataset = dataset_of(tmp_path, "a.png")
    key = SampleKey(0, 0, 61)
    plain, _ = TransformedDataset(dataset, Transform(1000))[key]
    got, _ = TransformedDataset(dataset, Transform(1000), reduced_decoding=True)[key]
    assert (got.image == plain.image).all()


def test_changed_file_is_named_with_its_own_size(tmp_path):
    dataset = dataset_of(tmp_path, "a.jpg")
    cv2.imwrite(str(tmp_path / "images" / "a.jpg"), np.zeros((50, 70, 3), np.uint8))
    with pytest.raises(UserError, match=r"is 70 x 50 pixels, but was 641 x 479"):
        dataset.read(0, 4)


def test_augmentation_that_needs_whole_pictures_is_named(tmp_path):
    dataset = dataset_of(tmp_path, "a.jpg")
    augment = {"mosaic": 0.5, "scale_jitter": [0.5, 1.5]}
    data = {"reduced_decoding": True, "augment": augment}
    config = parse_config({"data": data, "train": {"batch_size": 1}})
    said = r"with mosaic, scale_jitter, .*set data.augment.mosaic=0 data.augment.scale_jitter=null"
    with pytest.raises(UserError, match=said):
        build.build_train_loader(config, dataset)


def test_data_set_that_can_not_is_refused(tmp_path):
    config = parse_config({"data": {"reduced_decoding": True}, "train": {"batch_size": 1}})
    with pytest.raises(UserError, match=r"reduced_decoding is for image files.*OneFile"):
        build.build_train_loader(config, OneFile(tmp_path / "a.jpg"))
