"""The layouts of COCO folders: where each keeps a split, which one counts, what is said."""

import json
import shutil
from pathlib import Path

import pytest
from builders import tiny_config, tiny_values, write_coco
from test_train import run_train, write_config

import gfl.cli.test as test_command
from gfl.build import build_dataset
from gfl.cli.check_data import main as check_data
from gfl.config import load_config, parse_config
from gfl.data.coco_layout import EXPORTED, coco_splits, find_coco
from gfl.data.layout import find_format
from gfl.errors import UserError
from gfl.schema.automatic import AUTO_KEYS

SPLITS = {"train": 6, "val": 3}


def touch(folder: Path, *names: str) -> Path:
    """Empty files, and folders where a name ends with a slash."""
    for name in names:
        place = folder / name
        (place if name.endswith("/") else place.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            place.touch()
    return folder


def write_layout(folder: Path, name: str, splits: dict[str, int] = SPLITS) -> Path:
    """The data of `write_coco` as "plain", "published" or "exported" folder."""
    write_coco(folder, splits)
    if name == "plain":
        return folder
    for split in splits:
        images = folder / {"published": f"{split}2017", "exported": EXPORTED[split]}[name]
        images.mkdir()
        for picture in (folder / "images").glob(f"{split}_*"):
            picture.rename(images / picture.name)
        annotations = folder / "annotations" / f"{split}.json"
        if name == "published":
            annotations.rename(annotations.with_name(f"instances_{split}2017.json"))
        else:
            annotations.rename(images / "_annotations.coco.json")
    (folder / "images").rmdir()
    if name == "exported":
        (folder / "annotations").rmdir()
    return folder


def found(folder: Path, split: str) -> tuple[str, str]:
    images, annotations = find_coco(folder, split)
    return images.relative_to(folder).as_posix(), annotations.relative_to(folder).as_posix()


@pytest.mark.parametrize(
    ("names", "split", "expected"),
    [
        (["annotations/val.json"], "val", ("images", "annotations/val.json")),
        (
            ["annotations/instances_train2017.json", "annotations/captions_train2017.json"],
            "train",
            ("train2017", "annotations/instances_train2017.json"),
        ),
        (
            ["annotations/instances_train2017.json", "images/train2017/"],
            "train",
            ("images/train2017", "annotations/instances_train2017.json"),
        ),
        (
            ["annotations/instances_val.json", "val/", "images/val/"],
            "val",
            ("val", "annotations/instances_val.json"),
        ),
        (
            ["annotations/instances_val.json", "annotations/instances_val_small.json"],
            "val",
            ("val", "annotations/instances_val.json"),
        ),
        # Where annotations of several years lie, the pictures tell.
        (
            [
                "annotations/instances_val2014.json",
                "annotations/instances_val2017.json",
                "val2014/",
            ],
            "val",
            ("val2014", "annotations/instances_val2014.json"),
        ),
        (["train/_annotations.coco.json"], "train", ("train", "train/_annotations.coco.json")),
        (["valid/_annotations.coco.json"], "val", ("valid", "valid/_annotations.coco.json")),
        (["test/_annotations.coco.json"], "test", ("test", "test/_annotations.coco.json")),
    ],
)
def test_where_a_layout_keeps_a_split(tmp_path, names, split, expected):
    touch(tmp_path, *names)
    assert found(tmp_path, split) == expected
    assert list(coco_splits(tmp_path)) == [split] and find_format(tmp_path) == "coco"
    [source] = parse_config({"data": {"path": str(tmp_path)}}).data.sources(split)
    assert (source.images, source.annotations) == tuple(str(tmp_path / name) for name in expected)


def test_the_first_layout_of_a_folder_counts_and_none_are_mixed(tmp_path):
    touch(tmp_path, "train/_annotations.coco.json", "valid/_annotations.coco.json")
    touch(tmp_path, "annotations/instances_train2017.json")
    assert found(tmp_path, "train") == ("train2017", "annotations/instances_train2017.json")
    assert list(coco_splits(tmp_path)) == ["train"]
    touch(tmp_path, "annotations/train.json", "annotations/instances_val2017.json", "val2017/")
    assert found(tmp_path, "train") == ("images", "annotations/train.json")
    said = (
        r"data\.path .* has no COCO annotations of val: expected annotations/val\.json with "
        r"images/, as it has train \(docs/data\.md\), found \['annotations/instances_train2017"
        r".*'valid/_annotations\.coco\.json'\]\. .* set data\.val_fraction=0\.1"
    )
    with pytest.raises(UserError, match=said):
        find_coco(tmp_path, "val")


def test_several_years_are_named_with_what_to_set(tmp_path):
    for year in (2014, 2017):
        touch(tmp_path, f"annotations/instances_train{year}.json", f"train{year}/")
    place = tmp_path / "annotations/instances_train2017.json"
    with pytest.raises(UserError) as error:
        find_coco(tmp_path, "train")
    assert str(error.value) == (
        f"data.path {tmp_path} has several train sets: ['instances_train2014.json', "
        "'instances_train2017.json']. Say which one is meant, such as "
        f'"data.train={{images: {tmp_path}/train2017, annotations: {place}}}".'
    )
    override = str(error.value).split('"')[1]
    data = load_config("gfl_s", [f"data.path={tmp_path}", override]).data
    assert [source.annotations for source in data.sources("train")] == [str(place)]


def test_nothing_found_names_every_layout(tmp_path):
    touch(tmp_path, "all.json", "images/")
    every = (
        r"annotations/{0}\.json with images/ or annotations/instances_{0}\*\.json with {0}\*/ or "
        r"images/{0}\*/ or {1}/_annotations\.coco\.json with the pictures beside it"
    )
    for split, exported in (("train", "train"), ("val", "valid")):
        said = rf"of {split}: expected {every.format(split, exported)} .*found \['all\.json'\]"
        with pytest.raises(UserError, match=said):
            find_coco(tmp_path, split)
    with pytest.raises(
        UserError, match=f"has none of {every.format('train', 'train')} .COCO., Ann"
    ):
        find_format(tmp_path)
    with pytest.raises(UserError, match=f"nowhere is no folder: .* {every.format('test', 'test')}"):
        find_coco(tmp_path / "nowhere", "test")
    (tmp_path / "all.json").unlink()
    with pytest.raises(UserError, match=r"found no json file\. Put one there, or set .data\.test="):
        find_coco(tmp_path, "test")


def test_other_formats_are_told_where_no_layout_is_found(tmp_path):
    touch(tmp_path, "annotations/all.json", "data.yaml")
    assert coco_splits(tmp_path) == {} and find_format(tmp_path) == "yolo"
    with pytest.raises(UserError, match=r"holds data\.yaml: set data\.format=yolo"):
        build_dataset(tiny_config(tmp_path), "train")
    touch(tmp_path, "train/_annotations.coco.json")
    with pytest.raises(UserError, match=r"no COCO annotations of val: .*valid/_annotations"):
        build_dataset(tiny_config(tmp_path), "val")


def test_a_link_that_leads_nowhere_is_named(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/train.json").symlink_to("gone.json")
    with pytest.raises(UserError, match=r"cannot read annotations .*/train\.json: No such file"):
        build_dataset(tiny_config(tmp_path), "train")


def test_a_picture_folder_that_is_missing_is_named(tmp_path):
    folder = write_layout(tmp_path / "set", "published")
    shutil.rmtree(folder / "train2017")
    with pytest.raises(
        UserError, match=r"image folder .*/train2017 does not exist: set data\.path"
    ):
        build_dataset(tiny_config(folder), "train")


@pytest.mark.parametrize("name", ["published", "exported"])
def test_a_folder_is_all_that_each_command_needs(tmp_path, name, capsys):
    folder = write_layout(tmp_path / "set", name)
    plain = write_layout(tmp_path / "plain", "plain")
    values = tiny_values(folder, epochs=1)
    for split in SPLITS:
        ours, theirs = (build_dataset(tiny_config(f), split) for f in (folder, plain))
        key = "annotations"
        assert ours.ground_truth().dataset[key] == theirs.ground_truth().dataset[key] != []
        assert ours.report == theirs.report and ours.findings == ()
        assert (ours[0].image == theirs[0].image).all()
    for key in set(AUTO_KEYS) - {"train.epochs"}:
        section, entry = key.split(".")
        values[section][entry] = "auto"
    values["train"]["schedule"] = "cosine"
    config, work_dir = write_config(tmp_path / "c.yaml", values), tmp_path / "run"
    assert check_data([str(config)]) == 0
    status, error = run_train(capsys, config, "--work-dir", work_dir)
    assert status == 0, error
    chosen = load_config(work_dir / "config.yaml").data
    assert (chosen.format, chosen.val_fraction, chosen.path) == ("coco", None, str(folder))
    assert test_command.main([str(work_dir / "best.pt"), "--json", str(tmp_path / "n.json")]) == 0
    assert json.loads((tmp_path / "n.json").read_text())["AP"] >= 0
    for path in find_coco(folder, "train").annotations, next(folder.glob("train*/*.png")):
        content = path.read_bytes()
        assert test_command.main([str(work_dir / "best.pt"), "--json", str(path)]) == 2
        assert f"{path} is a file of the data set" in capsys.readouterr().err
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["published", "exported"])
def test_where_there_is_no_val_a_fraction_makes_one(tmp_path, name):
    folder = write_layout(tmp_path / "set", name, {"train": 6})
    with pytest.raises(UserError, match=r"of val: .* A training evaluates on val: .*val_fraction"):
        build_dataset(tiny_config(folder), "val")
    config = tiny_config(folder).with_values({"data.val_fraction": 0.5})
    assert len(build_dataset(config, "val")) == 3
    config = tiny_config(write_layout(tmp_path / "both", name))
    with pytest.raises(UserError, match="there is a val of its own"):
        build_dataset(config.with_values({"data.val_fraction": 0.5}), "val")
