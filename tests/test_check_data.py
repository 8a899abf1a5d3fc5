"""The data set check as a command, and what reg_max can express."""

import json

import numpy as np
import pytest
import yaml
from builders import tiny_config, tiny_values, write_coco, write_formats
from conftest import REPOSITORY
from messy_set import write_messy_set

import gfl
from gfl.build import build_dataset, data_warnings
from gfl.cli.check_data import main
from gfl.config import parse_config
from gfl.data.coverage import reg_max_coverage
from gfl.data.findings import KINDS

STRIDES = (8, 16, 32)


def checked(capsys, tmp_path, values: dict, *arguments) -> tuple[int, list[list[str]], str, dict]:
    """Status, cells of the table, stderr, and the JSON."""
    config, file = tmp_path / "config.yaml", tmp_path / "found.json"
    config.write_text(yaml.safe_dump(values))
    status = main([str(config), *arguments, "--json", str(file)])
    out, error = capsys.readouterr()
    rows = [line.split(maxsplit=4) for line in out.splitlines()]
    return status, rows, error, json.loads(file.read_text()) if file.exists() else {}


def test_clean_data(capsys, tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 6, "val": 3}, empty_every=3)
    status, rows, error, found = checked(capsys, tmp_path, tiny_values(folder))
    assert (status, error) == (0, "")
    assert rows[0] == ["split", "kind", "count", "policy", "where"]
    assert ["train", "images", "6"] in rows and ["val", "objects", "4"] in rows
    train = found["splits"]["train"]
    assert train["findings"] == [] and found["errors"] == []
    assert train["classes"]["disc"] == {"category_id": 7, "objects": 4, "images": 4}
    assert train["counts"]["images without objects (kept)"] == 2
    assert sum(level["edges"] for level in train["reg_max"]) == 4 * 8


def test_messy_data_is_one_table_of_what_was_found_and_done(capsys, tmp_path):
    folder = write_messy_set(tmp_path / "set")
    values = tiny_values(folder)
    source = {"images": str(folder / "images")}
    source["annotations"] = str(folder / "annotations" / "messy.json")
    values["data"] |= {"path": None, "train": source}
    status, rows, error, found = checked(capsys, tmp_path, values, "--split", "train")
    assert (status, error) == (0, "")
    cells = {row[1]: row[2:4] for row in rows[1:]}
    assert cells["unreadable_image"] == ["3", "skip"]  # zero.jpg, page.jpg, cut.png
    assert cells["missing_size"] == ["3", "repair"]
    assert cells["degenerate_box"] == ["3", "skip"]
    findings = {entry["kind"]: entry for entry in found["splits"]["train"]["findings"]}
    assert set(findings) <= set(KINDS) and len(findings) > 20
    for entry in findings.values():
        assert len(entry["items"]) == entry["count"]
        assert cells[entry["kind"]] == [str(entry["count"]), entry["policy"]]
    assert any("cut.jpg" in item for item in findings["truncated_image"]["items"])


def test_messy_data_that_may_not_be_fails_after_the_whole_table(capsys, tmp_path):
    folder = write_messy_set(tmp_path / "set")
    values = tiny_values(folder)
    source = {"images": str(folder / "images")}
    source["annotations"] = str(folder / "annotations" / "messy.json")
    values["data"] |= {"path": None, "train": source}
    policies = ["data.policy.missing_image=fail", "data.policy.bad_box=fail"]
    status, rows, error, _ = checked(capsys, tmp_path, values, *policies)
    assert status == 2
    cells = {row[1]: row[2:4] for row in rows[1:]}
    assert cells["missing_image"] == ["1", "fail"] and cells["clipped_box"][1] == "repair"
    assert error.startswith("error: train: 1 images whose file is missing, the first is messy.json")
    assert "data.policy.bad_box=skip" in error
    with pytest.raises(gfl.UserError, match="data.policy.missing_image=skip"):
        values["data"]["policy"] = {"missing_image": "fail", "bad_box": "fail"}
        build_dataset(gfl.config.parse_config(values), "train")


def test_data_that_no_training_would_take_is_refused(capsys, tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 3, "val": 3})
    status, _, error, found = checked(capsys, tmp_path, tiny_values(folder), "model.num_classes=5")
    assert status == 2 and "model.num_classes is 5, but the data has 2 classes" in error
    path = folder / "annotations" / "val.json"
    path.write_text(path.read_text().replace('"disc"', '"Disc"'))
    status, rows, error, found = checked(capsys, tmp_path, tiny_values(folder))
    assert status == 2 and "val: the class names of" in error
    assert len(found["errors"]) == 1 and found["splits"]["val"]["counts"] == {}
    assert ["train", "images", "3"] in rows
    status, *_ = checked(capsys, tmp_path, tiny_values(folder), "--split", "train")
    assert status == 0


def refused_alike(capsys, tmp_path, values: dict) -> tuple[int, list, str]:
    """The check of a config, whose status must be that of a training's start."""
    status, rows, error, _ = checked(capsys, tmp_path, values)
    assert "Traceback" not in error
    taken = status == 0
    config = gfl.config.parse_config(values)
    try:
        train = build_dataset(config, "train")
        build_dataset(config, "val", train.class_names)
    except gfl.UserError as refusal:
        assert not taken and str(refusal) in error
    else:
        assert taken
    return status, rows, error


@pytest.mark.parametrize("format", ["coco", "voc", "yolo"])
def test_data_without_val_is_refused_as_a_training_does(format, capsys, tmp_path):
    folder = write_formats(tmp_path / "sets", {"train": 4})[format]
    values = tiny_values(folder)
    values["data"]["format"] = format
    status, rows, error = refused_alike(capsys, tmp_path, values)
    assert status == 2 and error.startswith("error: val: ") and "data.val_fraction=0.1" in error
    assert ["train", "images", "4"] in rows
    [row] = [row for row in rows if row[0] == "val"]
    assert row[1:4] == ["refused", "1", "no"] and row[4].startswith("training")
    values["data"]["val_fraction"] = 0.5
    assert refused_alike(capsys, tmp_path, values)[0] == 0
    values["data"] |= {"val_fraction": None, "format": "coco", "path": None}
    values["data"]["train"] = {"images": "sets/coco/images", "annotations": "nowhere.json"}
    assert refused_alike(capsys, tmp_path, values)[0] == 2


def test_images_of_train_and_val_are_told(capsys, tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 4, "val": 2})
    values = tiny_values(folder)
    assert "images of train too" not in checked(capsys, tmp_path, values)[2]
    train = folder / "annotations" / "train.json"
    (folder / "annotations" / "val.json").write_bytes(train.read_bytes())
    status, _, error, report = checked(capsys, tmp_path, values)
    assert status == 0 and "4 of 4 images of val are images of train too (" in error
    gfl.train(parse_config(values), work_dir=tmp_path / "run")
    assert "WARNING: 4 of 4 images of val" in (tmp_path / "run" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"pad_to": [[32, 32]]}, "holds no batch"),
        ({"reduced_decoding": True, "augment": {"mosaic": 0.5}}, "needs whole pictures"),
    ],
)
def test_what_a_training_refuses_of_its_pictures_is_refused(data, message, capsys, tmp_path):
    values = tiny_values(write_coco(tmp_path / "set", {"train": 4, "val": 2}))
    values["data"] |= data
    status, _, error, _ = checked(capsys, tmp_path, values)
    assert status == 2 and message in error


def test_a_test_split_that_can_not_be_used_stops_no_training(capsys, tmp_path):
    folder = write_formats(tmp_path / "sets", {"train": 3, "val": 2})["yolo"]
    with open(folder / "data.yaml", "a") as file:
        file.write("test: images/test\n")
    values = tiny_values(folder)
    values["data"]["format"] = "yolo"
    status, rows, error = refused_alike(capsys, tmp_path, values)
    assert status == 0 and error.startswith("WARNING: test: ") and "images/test" in error
    assert error.endswith("A training reads no test.\n") and error.count("\n") == 1
    [row] = [row for row in rows if row[0] == "test"]
    assert row[1:4] == ["refused", "1", "no"] and row[4].startswith("test ")
    status, _, error, _ = checked(capsys, tmp_path, values, "--split", "test")
    assert status == 2 and error.startswith("error: test: ")


def test_every_format_is_checked(capsys, tmp_path):
    for format, folder in write_formats(tmp_path / "sets", {"train": 3, "val": 2}).items():
        values = tiny_values(folder)
        values["data"]["format"] = format
        status, rows, _, _ = checked(capsys, tmp_path, values)
        assert status == 0
        assert [["train", "images", "3"], ["val", "images", "2"]] == [
            row for row in rows if row[1] == "images" and len(row) == 3
        ]


def test_documentation_lists_every_policy():
    text = (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")
    for name, kind in KINDS.items():
        if not kind.is_note:
            policies = ", ".join(kind.policies)
            assert f"| `{name}` | {kind.what} | {policies} | {kind.repaired} |" in text


# reg_max


def coverage_of(boxes, size=(400, 400), train_size=(400, 400), reg_max=4, width=1.0):
    sizes, boxes = np.array([size] * len(boxes)), np.array(boxes, np.float32)
    return reg_max_coverage(boxes, sizes, train_size, STRIDES, 8, reg_max, width)


def test_edges_are_counted_at_the_level_of_their_box():
    # Anchors of 64, 128 and 256. 60 x 60 belongs to stride 8: its edges are 3.75 strides away.
    # 90 x 90 is below the geometric middle 90.5 of 64 and 128: stride 8, 5.6 strides. 300 x 150
    # has side 212: stride 32, 4.7 and 2.3 strides.
    levels = coverage_of([[0, 0, 60, 60], [10, 10, 100, 100], [50, 50, 350, 200]])
    assert [(level.edges, level.exceeding) for level in levels] == [(8, 4), (0, 0), (4, 2)]
    assert [level.needed for level in levels] == [6, 4, 5]
    assert levels[0].advice == (
        "50 % of the edges at stride 8 (4 of 8) exceed reg_max 4: use model.reg_max=6"
    )
    assert levels[2].advice.endswith("use model.reg_max=5 or add a level")


def test_edges_are_counted_at_the_training_size():
    # An image of 400 x 800 within (200, 300) becomes 150 x 300, a factor of 0.375.
    [level, *_] = coverage_of([[0, 0, 160, 160]], (400, 800), (200, 300))
    assert (level.edges, level.exceeding) == (4, 0)  # 60 x 60
    [level, *_] = coverage_of([[0, 0, 180, 180]], (400, 800), (200, 300))
    assert (level.edges, level.exceeding, level.needed) == (4, 4, 5)  # 67.5: 4.2 strides


def test_wider_bins_reach_further():
    # 90 x 90 at stride 8: 5.625 strides, 11.25 bins of half a stride, 2.8 of two.
    [narrow, *_] = coverage_of([[10, 10, 100, 100]], width=0.5)
    assert (narrow.exceeding, narrow.needed) == (4, 12)
    [wide, *_] = coverage_of([[10, 10, 100, 100]], width=2.0)
    assert (wide.exceeding, wide.needed) == (0, 4)


def test_no_box_is_no_trouble():
    assert [level.exceeding for level in coverage_of(np.zeros((0, 4)))] == [0, 0, 0]


def test_training_says_what_reg_max_can_not_reach(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 4, "val": 2})
    config = tiny_config(folder)
    assert data_warnings(config, build_dataset(config, "train"), (8, 16)) == []
    config = config.model_copy(update={"model": config.model.model_copy(update={"reg_max": 1})})
    [line] = data_warnings(config, build_dataset(config, "train"), (8, 16))
    assert line.startswith("100 % of the edges at stride 8 (32 of 32) exceed reg_max 1")
    assert data_warnings(config, object(), (8, 16)) == []
    for changes in ({"bin_width": 5.0}, {"box": "dirac"}, {"box": "gaussian"}):
        other = config.model_copy(update={"model": config.model.model_copy(update=changes)})
        assert data_warnings(other, build_dataset(other, "train"), (8, 16)) == []
