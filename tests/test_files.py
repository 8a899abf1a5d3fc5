"""Outputs: the old file or the new one, and nothing of the user's touched beside it."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import REPOSITORY

from gfl.cli.command import write_json
from gfl.drawing import save_picture
from gfl.files import replacing


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
