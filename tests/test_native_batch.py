"""Resizing on the device: the pixels of OpenCV, the batch and the losses of the plain way."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from builders import tiny_values, write_coco

from gfl import build
from gfl.config import parse_config
from gfl.data.batch import collate, collate_native
from gfl.data.dataset import Sample
from gfl.data.linear_resize import linear_resize, taps
from gfl.data.loader import BatchLoader, TransformedDataset
from gfl.data.native_batch import NativeBatch
from gfl.data.sampler import SampleKey
from gfl.data.transforms import Transform
from gfl.engine.bad_batch import BadBatches
from gfl.engine.train import train_step
from gfl.errors import UserError
from gfl.visualize import save_first_batches


def resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    """One picture of (H, W, 3), by `linear_resize`."""
    planes = torch.from_numpy(picture).permute(2, 0, 1)
    tables = (*taps(picture.shape[1], width, False), *taps(picture.shape[0], height, True))
    got = linear_resize(planes, *(torch.from_numpy(table) for table in tables))
    return got.permute(1, 2, 0).numpy()


def sizes() -> list[tuple[int, int, int, int]]:
    """Old and new height and width: up, down, halves and doubles, one pixel, one pixel wide."""
    rng = np.random.default_rng(0)
    found = [(480, 640, 800, 1067), (427, 640, 800, 1199), (640, 426, 320, 213), (80, 60, 40, 30)]
    found += [
        (1, 1, 1, 1),
        (1, 1, 7, 9),
        (1, 50, 3, 20),
        (50, 1, 20, 3),
        (9, 7, 1, 1),
        (2, 2, 4, 4),
    ]
    found += [tuple(row) for row in rng.integers(1, 9, (150, 4)).tolist()]
    found += [tuple(row) for row in rng.integers(1, 150, (150, 4)).tolist()]
    found += [(h, w, 1, w + 5) for h, w in rng.integers(1, 90, (20, 2)).tolist()]
    return found + [(h, 1, h + 3, 2) for h in range(1, 20)]


def test_every_pixel_is_opencvs():
    rng = np.random.default_rng(1)
    for height, width, new_height, new_width in sizes():
        picture = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
        want = cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        got = resized(picture, new_height, new_width)
        assert (got == want).all(), (height, width, new_height, new_width)


def test_brightest_and_darkest_pixels_stay_so():
    for value in (0, 255):
        assert (resized(np.full((7, 5, 3), value, np.uint8), 31, 17) == value).all()


def items(on_device: bool, chances=(0.5, 0.5), shorts=(40, 57, 33)) -> list:
    """Three pictures of different size with boxes, changed in the same way."""
    rng = np.random.default_rng(2)
    transform = Transform(90, *chances, seed=4, on_device=on_device)
    found = []
    for index, (size, short) in enumerate(zip([(48, 64), (70, 30), (20, 33)], shorts, strict=True)):
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
        boxes = np.array([[1, 2, 20, 15], [5, 5, 9, 19]][: index + 1], np.float32)
        sample = Sample(image, boxes, np.arange(len(boxes)), boxes[:1], index)
        found.append(transform(sample, SampleKey(index, 1, short)))
    return found


def assert_same(got, want) -> None:
    assert got.metas == want.metas
    assert got.images.equal(want.images)
    assert got.input_sizes.equal(want.input_sizes)
    for name in ("boxes", "labels", "present", "valid_size", "ignore_boxes", "ignore_present"):
        assert getattr(got.targets, name).equal(getattr(want.targets, name)), name


@pytest.mark.parametrize("chances", [(0, 0), (1, 0), (0, 1), (1, 1), (0.5, 0.5)])
def test_batch_is_the_plain_one(chances):
    native = collate_native(items(True, chances))
    want = collate(items(False, chances))
    assert not hasattr(native, "images")
    assert native.pictures.shape == (3 * (48 * 64 + 70 * 30 + 20 * 33),)
    assert native.padded_size == want.padded_size == tuple(want.images.shape[-2:])
    assert_same(native.to("cpu"), want)
    assert_same(native.to("cpu", non_blocking=True), want)


def test_pictures_of_the_right_size():
    native = collate_native(items(True, (0, 0), (48, 30, 20)))
    assert_same(native.to("cpu"), collate(items(False, (0, 0), (48, 30, 20))))


def loaders(folder, **data) -> list:
    """A training loader with resizing on the device, and the plain one."""
    values = tiny_values(write_coco(folder, {"train": 6, "val": 1}))
    values["data"] |= {"train_size": {"short": [64, 96], "long": 128}, **data}
    configs = []
    for on_device in (True, False):
        values["data"]["resize_on_device"] = on_device
        configs.append(parse_config(values))
    dataset = build.build_dataset(configs[0], "train")
    return [(config, build.build_train_loader(config, dataset)) for config in configs]


@pytest.mark.parametrize(
    "case, device, data, expected",
    [
        ("a GPU", "cuda", {}, True),
        ("a CPU", "cpu", {}, False),
        ("it is said", "cuda", {"resize_on_device": False}, False),
        ("it is said on a CPU", "cpu", {"resize_on_device": True}, True),
        # Pictures of 120 x 160: at a short side of 60 they have four times the pixels.
        ("as large as may be", "cuda", {"train_size": {"short": 60, "long": 128}}, True),
        ("too large", "cuda", {"train_size": {"short": 59, "long": 128}}, False),
        ("too long", "cuda", {"train_size": {"short": 60, "long": 79}}, False),
        ("colours change", "cuda", {"augment": {"color": 0.5}}, False),
        ("put together", "cuda", {"augment": {"mosaic": 0.5, "close_mosaic": 0}}, False),
    ],
)
def test_a_gpu_resizes_where_that_saves_work(tmp_path, monkeypatch, case, device, data, expected):
    monkeypatch.setattr("gfl.build.loaders._feeds_gpu", lambda _: device == "cuda")
    values = tiny_values(write_coco(tmp_path, {"train": 2, "val": 1}, size=(120, 160)))
    values["data"] |= data
    config = parse_config(values)
    loader = build.build_train_loader(config, build.build_dataset(config, "train"))
    assert loader.dataset.transform.on_device is expected


def test_losses_drawings_and_kept_batches_are_the_plain_ones(tmp_path):
    outcomes, pictures, kept = [], [], []
    for config, loader in loaders(tmp_path / "data"):
        keys = next(iter(loader.batch_sampler))
        batch = loader.load(keys)
        assert isinstance(batch, NativeBatch) == config.data.resize_on_device
        torch.manual_seed(0)
        state = build.build_state(config, 2, 2, torch.device("cpu"), load_pretrained=False)
        state.model.train()
        criterion, normalize = build.build_criterion(config), build.build_normalize(config, "cpu")
        folder = tmp_path / str(config.data.resize_on_device)
        bad = BadBatches(folder, state.model, criterion, normalize)
        assert bad.culprits([batch]) == []
        bad.save(1, [batch], [], {})
        kept.append(torch.load(folder / "step_1.pt", weights_only=True))
        options = build.build_loop_options(config, 2)
        losses, norm = train_step(state, state.model, [batch], criterion, normalize, options)
        outcomes.append(
            {name: float(loss) for name, loss in losses.items()} | {"norm": float(norm)}
        )
        save_first_batches(loader, ("square", "disc"), folder)
        pictures.append((folder / "batch_0.jpg").read_bytes())
    assert outcomes[0] == outcomes[1]
    assert pictures[0] == pictures[1]
    assert kept[0]["images"].equal(kept[1]["images"])


def test_loading_processes_hand_over_native_pictures(tmp_path):
    (_, native), (_, plain) = loaders(tmp_path / "data", workers=1)
    try:
        for got, want in zip(native, plain, strict=True):
            assert isinstance(got, NativeBatch)
            assert_same(got.to("cpu"), want.to("cpu"))
    finally:
        native.close()
        plain.close()


class Numbered:
    """Two pictures; the third can not be read."""

    sizes = np.array([[30, 40]] * 3, np.int32)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Sample:
        if index == 2:
            raise UserError("2.jpg is not a readable image")
        boxes = np.array([[1, 2, 20, 15]], np.float32)
        return Sample(np.full((30, 40, 3), index, np.uint8), boxes, np.zeros(1, int), boxes, index)


@pytest.mark.parametrize("on_device", [True, False])
@pytest.mark.parametrize("color", [0.0, 1.0])
def test_batch_is_that_of_the_single_samples(on_device, color):
    transform = Transform(90, 0.5, color=color, seed=4, on_device=on_device)
    view = TransformedDataset(Numbered(), transform)
    keys = [SampleKey(index, epoch, 60) for epoch in range(5) for index in (0, 1)]
    loader = BatchLoader(view, [keys], 0)
    got = loader.load(keys)
    want = (collate_native if on_device else collate)([view[key] for key in keys])
    assert type(got) is type(want) and got.targets.present.shape == (10, 1)
    assert_same(got.to("cpu"), want.to("cpu"))
    with pytest.raises(UserError, match=r"2\.jpg is not a readable image"):
        loader.load([keys[0], SampleKey(2, 0, 60), keys[1]])


@pytest.mark.parametrize("on_device", [True, False])
def test_a_readable_image_takes_the_place(on_device):
    class Five(Numbered):
        """Of which all but 0 and 3 can not be read."""

        sizes = np.array([[30, 40]] * 5, np.int32)

        def __getitem__(self, index: int) -> Sample:
            return super().__getitem__(index if index in (0, 3) else 2)

    view = TransformedDataset(Five(), Transform(90, on_device=on_device), stand_in=True)
    keys = [SampleKey(index, epoch, 60) for epoch in range(8) for index in (0, 1, 2)]
    batch = BatchLoader(view, [keys], 0).load(keys).to("cpu")
    ids = [meta.image_id for meta in batch.metas]
    assert ids[::3] == [0] * 8 and set(ids[1::3]) == set(ids[2::3]) == {0, 3}
    assert ids == [meta.image_id for meta in BatchLoader(view, [keys], 0).load(keys).metas]
    assert {meta.stands_in_for for meta in batch.metas[::3]} == {""}
    assert {meta.stands_in_for for meta in batch.metas[1::3]} == {"2.jpg is not a readable image"}
    view.stand_in = False
    with pytest.raises(UserError, match=r"2\.jpg is not a readable image"):
        BatchLoader(view, [keys], 0).load(keys)


def test_without_any_readable_image_the_first_is_named():
    class Lost(Numbered):
        def __getitem__(self, index: int) -> Sample:
            raise UserError(f"{index}.jpg is gone")

    with pytest.raises(UserError, match=r"3\.jpg is gone"):
        BatchLoader(TransformedDataset(Lost(), Transform(90), stand_in=True), [], 0).load(
            [SampleKey(3, 0, 60)]
        )


@pytest.mark.parametrize("on_device", [True, False])
def test_pictures_of_a_program_may_change_their_size_and_be_smaller_than_their_boxes(on_device):
    class Changing(Numbered):
        sizes = np.array([[30, 40], [30, 40]], np.int32)

        def __getitem__(self, index: int) -> Sample:
            sample = super().__getitem__(index)
            if index == 0:
                return replace(sample, image=sample.image[:20])
            return replace(sample, image=sample.image[::2, ::2], full_size=(30, 40))

    view = TransformedDataset(Changing(), Transform(90, on_device=on_device))
    batch = BatchLoader(view, [], 0).load([SampleKey(0, 0, 60), SampleKey(1, 0, 60)]).to("cpu")
    assert [meta.input_size for meta in batch.metas] == [(45, 90), (60, 80)]
    assert [meta.original_size for meta in batch.metas] == [(20, 40), (30, 40)]


def test_flips_leave_the_picture_of_the_data_set_alone():
    picture = np.random.default_rng(5).integers(0, 256, (30, 41, 3)).astype(np.uint8)
    kept, boxes = picture.copy(), np.zeros((0, 4), np.float32)
    sample = Sample(picture, boxes, np.zeros(0, int), boxes, 0)
    for short in (30, 45):  # as large as it is, and resized
        got, meta = Transform(90, 1.0, 1.0)(sample, SampleKey(0, 0, short))
        want = cv2.resize(kept, meta.input_size[::-1], interpolation=cv2.INTER_LINEAR)
        assert (got.image == want[::-1, ::-1]).all() and (picture == kept).all()
