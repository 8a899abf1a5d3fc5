"""Outputs: the old file or the new one, and nothing of the user's touched beside it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from gfl.cli import test as test_command
from gfl.cli.command import write_json
from gfl.config import parse_config
from gfl.drawing import save_picture
from gfl.engine.checkpoint import save_checkpoint
from gfl.engine.keeper import unfinished
from gfl.errors import UserError
from gfl.files import beside, replacing


def test_a_file_is_replaced_in_one_move(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with replacing(path) as place:
        place.write_text("new")
        assert place.parent == tmp_path and place.suffix == ".txt" and path.read_text() == "old"
    assert path.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(OSError, match="full"), replacing(path) as place:
        place.write_text("half")
        raise OSError("full")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_files_beside_an_output_stay(tmp_path):
    """Whatever their names: a user's `results.json.tmp` is a file like any other."""
    names = ("results.json.tmp", "a.png.tmp", "a.tmp.png")
    for name in names:
        (tmp_path / name).write_text("mine")
    write_json(str(tmp_path / "results.json"), {"AP": 0.5})
    save_picture(tmp_path / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert json.loads((tmp_path / "results.json").read_text()) == {"AP": 0.5}
    assert sorted(os.listdir(tmp_path)) == sorted(("a.png", "results.json", *names))
    assert all((tmp_path / name).read_text() == "mine" for name in names)


def test_a_reader_that_has_seen_enough_is_no_traceback():
    """What a command prints goes into a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, REPOSITORY / "tools" / "env.py"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 141 and done.stderr == ""


def test_checkpoints_and_predictions_touch_nothing_beside_them_either(tmp_path):
    (tmp_path / "best.pt.tmp").write_text("mine")
    save_checkpoint(tmp_path / "best.pt", {"step": 1})
    assert sorted(os.listdir(tmp_path)) == ["best.pt", "best.pt.tmp"]
    assert (tmp_path / "best.pt.tmp").read_text() == "mine"


def test_parts_that_a_killed_process_left_are_found(tmp_path):
    part = beside(tmp_path / "last.pt")
    for name in (part.name, ".last.mine.pt", "last.pt"):
        (tmp_path / name).write_text("x")
    assert unfinished(tmp_path) == [part]


@pytest.mark.parametrize("option", ["--results", "--json"])
def test_an_evaluation_does_not_write_over_its_data(option, checkpoint, folder, capsys):
    """Not the file it reads, not another split's, not a picture."""
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    picture = next(path for path in kept if path.suffix == ".png")
    for path in (folder / "annotations" / "val.json", picture):
        assert test_command.main([str(checkpoint), option, str(path)]) == 2
        assert f"{path} is a file of the data set" in capsys.readouterr().err
    assert kept == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    elsewhere = {"images": "a", "annotations": str(folder / "own.json")}
    data = parse_config({"data": {"train": elsewhere, "path": None}}).data
    with pytest.raises(UserError, match="own.json is a file of the data set"):
        data.spare(None, folder / "own.json")


def test_a_picture_that_its_format_can_not_hold_is_a_message(tmp_path):
    with pytest.raises(UserError, match="holds no picture of 70000 x 1"):
        save_picture(tmp_path / "wide.jpg", np.zeros((1, 70000, 3), np.uint8))
    assert os.listdir(tmp_path) == []
