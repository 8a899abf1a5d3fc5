"""Outputs of commands: refused before the work where they can not be, replaced whole or not."""

import importlib
import os
from pathlib import Path

import pytest

import gfl
from gfl.benchmark.setting import setting
from gfl.cli.command import write_json
from gfl.drawing import save_picture
from gfl.exporting import drawn_picture


def refuse(command: str, *arguments) -> int:
    """The status of a command that must not get as far as to open its checkpoint."""
    return importlib.import_module(f"gfl.cli.{command}").main([str(a) for a in arguments])


@pytest.mark.parametrize("command", ["test", "export", "ablate", "train"])
def test_json_never_falls_on_what_is_read(command, tmp_path, capsys):
    source = tmp_path / "mine.yaml"
    source.write_text("precious")
    more = {"export": ["--out", tmp_path / "x.onnx"], "ablate": ["--out", tmp_path / "x"]}
    arguments = [source, *more.get(command, []), "--json", tmp_path / "." / "mine.yaml"]
    assert refuse(command, *arguments) == 2
    assert "is the source itself" in capsys.readouterr().err
    assert source.read_text() == "precious"


@pytest.mark.parametrize("command", ["check_data", "train", "lr_test", "ablate", "benchmark"])
def test_json_never_falls_on_a_config_or_on_the_data(command, folder, tmp_path, capsys):
    config, annotations = tmp_path / "mine.yaml", folder / "annotations" / "val.json"
    config.write_text(f"data: {{path: {folder}}}")
    before = config.read_text(), annotations.read_text()
    more = {"lr_test": ["--out", tmp_path / "x"], "ablate": ["--out", tmp_path / "x"]}
    first = ["--plan", config] if command == "benchmark" else [config, *more.get(command, [])]
    for place in [config] if command == "benchmark" else [config, annotations]:
        assert refuse(command, *first, "--json", place) == 2
    assert (config.read_text(), annotations.read_text()) == before
    assert not (tmp_path / "x").exists()
    for line in capsys.readouterr().err.splitlines():
        assert "is the source itself" in line or "is a file of the data set" in line


def test_numbers_are_printed_though_their_file_can_not_be_written(
    checkpoint, tmp_path, monkeypatch, capsys
):
    def full(path, content):
        raise gfl.UserError("cannot write: No space left on device")

    monkeypatch.setattr("gfl.cli.test.write_json", full)
    assert refuse("test", checkpoint, "--json", tmp_path / "x.json") == 2
    assert "AP50" in capsys.readouterr().out


def test_a_folder_of_others_is_refused_before_the_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    assert refuse("test", "best.pt", "--json", tmp_path / "x.json") == 2
    assert "its folder is not yours" in capsys.readouterr().err


def test_two_outputs_are_two_files(tmp_path, capsys):
    one = tmp_path / "x.onnx"
    assert refuse("test", "best.pt", "--results", one, "--json", one) == 2
    assert refuse("export", "best.pt", "--out", one, "--json", one) == 2
    assert capsys.readouterr().err.count("meant for both of two outputs") == 2


def test_an_export_is_no_folder_and_not_its_own_source(tmp_path, capsys):
    (tmp_path / "x.onnx").mkdir()
    (tmp_path / "mine.pt2").write_text("precious")
    assert refuse("export", "best.pt", "--out", tmp_path / "x.onnx") == 2
    assert refuse("export", tmp_path / "mine.pt2", "--out", tmp_path / "mine.pt2") == 2
    error = capsys.readouterr().err
    assert "it is a folder" in error and "is the source itself" in error
    assert (tmp_path / "mine.pt2").read_text() == "precious"
    with pytest.raises(gfl.UserError, match="it is one itself"):
        gfl.export("best.pt", tmp_path / "x.onnx")


@pytest.mark.parametrize("tolerance", [(-1, 0.1), (float("nan"), 0.1), (0.1, float("inf"))])
def test_a_tolerance_is_a_number_from_0_on(tolerance, tmp_path):
    with pytest.raises(gfl.UserError, match="tolerance is .*expected pixels"):
        gfl.export("best.pt", tmp_path / "x.onnx", tolerance=tolerance)


def test_an_opset_that_onnx_does_not_know_is_one_message(checkpoint, tmp_path):
    with pytest.raises(gfl.UserError, match="opset is 99, the installed onnx knows up to"):
        gfl.export(checkpoint, tmp_path / "x.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_ends_an_export_in_one_message(checkpoint, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gfl.exporting._write", full)
    with pytest.raises(gfl.UserError, match="x.onnx: No space left"):
        gfl.export(checkpoint, tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_plots_are_refused_before_the_evaluation(checkpoint, folder, tmp_path):
    (tmp_path / "plots").write_text("mine")
    heard = []
    with pytest.raises(gfl.UserError, match="cannot write to .*plots"):
        gfl.evaluate(checkpoint, say=heard.append, plots=tmp_path / "plots")
    assert heard == []
    (tmp_path / "more" / "f1.png").mkdir(parents=True)
    metrics, _ = gfl.evaluate(checkpoint, say=heard.append, plots=tmp_path / "more")
    assert heard[-1].startswith("WARNING: cannot write plots to ") and "AP" in metrics


def test_a_scale_that_no_memory_holds_is_one_message(checkpoint):
    with pytest.raises(gfl.UserError, match="short sides of 32 to 8192 pixels"):
        gfl.evaluate(checkpoint, scales=[100000])


@pytest.mark.parametrize(("flip", "scales", "views"), [(True, [96], 2), (True, [64, 96, 64], 4)])
def test_views_that_are_looked_at_are_counted(flip, scales, views, checkpoint):
    """The network's own short side, 96 pixels, and what comes twice are looked at once."""
    heard = []
    gfl.evaluate(checkpoint, say=heard.append, flip=flip, scales=scales)
    assert f"{views} views of each image merged" in heard[0]


def write_picture(path: Path) -> None:
    save_picture(path, drawn_picture())


@pytest.mark.parametrize("write", [lambda path: write_json(str(path), {"a": 1}), write_picture])
def test_a_full_disk_leaves_the_old_file(write, tmp_path, monkeypatch):
    path = tmp_path / "old.png"
    path.write_bytes(b"old")

    def full(self, content, *_, **__):
        with open(self, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    for name in ("write_text", "write_bytes"):
        monkeypatch.setattr(Path, name, full)
    with pytest.raises(gfl.UserError, match="No space left"):
        write(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]
    monkeypatch.undo()
    write(path)
    assert path.read_bytes() != b"old" and os.listdir(tmp_path) == ["old.png"]


def test_json_may_go_to_a_device():
    write_json("/dev/null", {"a": 1})
    assert not Path("/dev/null").is_file()


@pytest.mark.parametrize("size", [(0, 0), (-32, 32), (7, 9), (320, 1000000 * 32)])
def test_a_size_that_can_not_be_measured_is_one_message(size):
    with pytest.raises(gfl.UserError, match="multiples of 32 up to 16384"):
        setting("cpu", size=size)
