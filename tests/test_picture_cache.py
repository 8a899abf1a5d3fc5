"""Decoded pictures that are kept: the same samples, read once, never wrong, refused in figures."""

import os
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
from builders import tiny_config, tiny_values, write_coco

from gfl import build
from gfl.config import parse_config
from gfl.data import picture_cache
from gfl.data.picture_cache import CachedDataset, PictureCache, fingerprint
from gfl.errors import UserError
from gfl.opening import memory_lines

SIZES = np.array([[2, 3], [4, 1]], np.int32)
PICTURES = [np.full((2, 3, 3), 7, np.uint8), np.arange(12, dtype=np.uint8).reshape(4, 1, 3)]


@pytest.fixture(params=["ram", "folder"])
def place(request, tmp_path) -> str:
    return "ram" if request.param == "ram" else str(tmp_path / "cache")


def dataset_of(folder, count: int = 4):
    write_coco(folder, {"train": count, "val": 1}, size=(60, 70))
    return build.build_dataset(tiny_config(folder), "train")


def test_pictures_come_out_as_they_went_in(place):
    cache = PictureCache(SIZES, place, "f")
    # Two checksums of 4 bytes, then 18 and 12 bytes.
    assert cache.total == 38
    assert cache.get(0) is None and cache.get(1) is None
    cache.put(1, PICTURES[1])
    assert cache.get(0) is None
    assert (cache.get(1) == PICTURES[1]).all()
    cache.put(0, PICTURES[0])
    assert (cache.get(0) == PICTURES[0]).all() and (cache.get(1) == PICTURES[1]).all()
    assert "2 decoded pictures, 2 of them there" in cache.description


def test_samples_are_the_same_and_files_are_read_once(tmp_path, place, monkeypatch):
    dataset = dataset_of(tmp_path / "data")
    cached = CachedDataset(dataset, place)
    plain = [dataset[index] for index in range(4)]
    for sample, want in zip([cached[index] for index in range(4)], plain, strict=True):
        assert (sample.image == want.image).all()
    monkeypatch.setattr(dataset, "picture", None)  # whoever reads a file now, fails
    for index, want in enumerate(plain):
        assert (cached[index].image == want.image).all()
        assert (cached[index].boxes == want.boxes).all()
        assert cached[index].image_id == want.image_id
    with pytest.raises(IndexError):
        cached[4]


def test_file_is_found_again_by_another_process(tmp_path):
    cache = PictureCache(SIZES, str(tmp_path), "f")
    cache.put(0, PICTURES[0])
    again = PictureCache(SIZES, str(tmp_path), "f")
    assert (again.get(0) == PICTURES[0]).all() and again.get(1) is None
    sent = pickle.loads(pickle.dumps(again))
    sent.put(1, PICTURES[1])
    assert (cache.get(1) == PICTURES[1]).all()
    assert PictureCache(SIZES, str(tmp_path), "other").get(0) is None


def test_half_written_pictures_are_not_used(tmp_path):
    cache = PictureCache(SIZES, str(tmp_path), "f")
    cache.put(0, PICTURES[0])
    cache.put(1, PICTURES[1])
    content = bytearray(cache.path.read_bytes())
    content[cache.first[1]] ^= 1  # as after a loss of power: a checksum, and not all of its pixels
    cache.path.write_bytes(content)
    again = PictureCache(SIZES, str(tmp_path), "f")
    assert again.get(1) is None
    assert (again.get(0) == PICTURES[0]).all()
    again.put(1, PICTURES[1])
    assert (again.get(1) == PICTURES[1]).all()
    # Killed before the checksum was written, or while the file was made.
    cache.path.write_bytes(b"\0" * 8 + bytes(content[8:]))
    assert PictureCache(SIZES, str(tmp_path), "f").get(0) is None
    cache.path.write_bytes(b"")
    assert PictureCache(SIZES, str(tmp_path), "f").get(0) is None


def test_changed_files_are_other_pictures(tmp_path):
    dataset = dataset_of(tmp_path / "data")
    before = fingerprint(dataset)
    assert fingerprint(dataset) == before
    os.utime(dataset.path(2), ns=(1, 1))
    assert fingerprint(dataset) != before


def test_too_large_is_refused_in_figures(tmp_path, monkeypatch):
    sizes = np.array([[20_000, 20_000]] * 3, np.int32)  # 3.35 GiB
    monkeypatch.setattr(picture_cache, "free_bytes", lambda: 2**30)
    with pytest.raises(UserError, match=r"needs 3\.35 GiB.*1\.00 GiB of memory are free"):
        PictureCache(sizes, "ram", "f")
    monkeypatch.setattr(picture_cache, "free_bytes", lambda: 5 * 2**30)
    with pytest.raises(UserError, match=r"needs 6\.71 GiB"):
        PictureCache(sizes, "ram", "f", copies=2)
    usage = SimpleNamespace(free=2**30)
    monkeypatch.setattr(picture_cache.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match=r"needs 3\.35 GiB .*1\.00 GiB are free there"):
        PictureCache(sizes, str(tmp_path / "c"), "f")
    assert not list((tmp_path / "c").iterdir())


def test_place_that_can_not_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"data\.cache=.*file.* can not be used"):
        PictureCache(SIZES, str(tmp_path / "file"), "f")


def test_loading_processes_fill_it_for_all(tmp_path, place):
    folder = write_coco(tmp_path / "data", {"train": 5, "val": 1})
    values = tiny_values(folder)
    plain = parse_config(values)
    values["data"] |= {"cache": place, "workers": 1}
    config = parse_config(values)
    dataset = build.build_dataset(config, "train")
    want = [batch.images for batch in build.build_train_loader(plain, dataset)]
    loader = build.build_train_loader(config, dataset)
    cache = loader.dataset.dataset.cache
    assert any(
        "5 decoded pictures, 0 of them there" in line for line in memory_lines(config, loader)
    )
    try:
        for _ in range(2):
            for images, batch in zip(want, loader, strict=True):
                assert batch.images.equal(images)
        assert "5 of them there" in cache.description
    finally:
        loader.close()


def test_settings_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(UserError, match="reduced_decoding is set"):
        parse_config({"data": {"cache": "ram", "reduced_decoding": True}})
    config = parse_config({"data": {"cache": "ram"}, "train": {"batch_size": 1}})
    with pytest.raises(UserError, match=r"data\.cache is for image files"):
        build.build_train_loader(config, SimpleNamespace(sizes=SIZES))
