"""`tools/predict.py` and `gfl`: sources, outputs, and what must not happen to a user's files."""

import json

import cv2
import numpy as np
import pytest
from test_predictor import checkpoint, folder  # noqa: F401

import gfl
from gfl.cli.main import COMMANDS
from gfl.cli.main import main as gfl_main
from gfl.cli.predict import main
from gfl.sources import Source, Video, find_sources


@pytest.fixture
def pictures(folder, tmp_path):  # noqa: F811
    """Three pictures, one in a folder below, one that is broken, one that is no picture."""
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    files = sorted((folder / "images").iterdir())
    for target, file in zip(("a.png", "b.png", "below/a.png"), files, strict=False):
        (place / target).write_bytes(file.read_bytes())
    (place / "broken.jpg").write_bytes(b"no picture")
    (place / "notes.txt").write_text("mine")
    return place


def run(checkpoint, *arguments):  # noqa: F811
    return main([str(checkpoint), *map(str, arguments), "--device", "cpu"])


def test_a_folder(checkpoint, pictures, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    before = {f: f.read_bytes() for f in pictures.rglob("*") if f.is_file()}
    assert run(checkpoint, pictures, "--out", out) == 0
    printed = capsys.readouterr()
    assert "3 images" in printed.out and "broken.jpg" in printed.err
    entries = json.loads((out / "predictions.json").read_text())
    assert [entry["source"] for entry in entries] == [
        str(pictures / name) for name in ("a.png", "b.png", "below/a.png")
    ]
    first = entries[0]
    height, width = cv2.imread(str(pictures / "a.png")).shape[:2]
    assert (first["width"], first["height"]) == (width, height)
    assert len(first["detections"]) > 3
    for found in first["detections"]:
        assert found["class_name"] in ("square", "disc") and found["category_id"] in (3, 7)
        assert len(found["box"]) == len(found["edge_std"]) == 4
        assert 0 <= found["box"][0] < found["box"][2] <= width + 1e-3
    for name in ("a.png", "b.png", "below/a.png"):
        assert cv2.imread(str(out / name)).shape == cv2.imread(str(pictures / name)).shape
    assert {f: f.read_bytes() for f in pictures.rglob("*") if f.is_file()} == before
    assert not (out / "notes.txt").exists()


def test_score_and_classes_limit_what_is_written(checkpoint, pictures, tmp_path, capsys):  # noqa: F811
    out = tmp_path / "out"
    options = ("--score", "0.4", "--classes", "disc", "--no-pictures")
    assert run(checkpoint, pictures / "a.png", "--out", out, *options) == 0
    [entry] = json.loads((out / "predictions.json").read_text())
    assert all(f["score"] >= 0.4 and f["class_name"] == "disc" for f in entry["detections"])
    assert sorted(out.iterdir()) == [out / "predictions.json"]
    assert run(checkpoint, pictures / "a.png", "--out", out, "--classes", "disk") == 2
    assert "did you mean 'disc'" in capsys.readouterr().err


def test_same_names_from_two_folders_are_kept_apart(checkpoint, pictures, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    sources = (pictures / "a.png", pictures / "below" / "a.png")
    assert run(checkpoint, *sources, "--out", out) == 0
    assert {f.name for f in out.iterdir()} == {"a.png", "a_2.png", "predictions.json"}


def test_a_source_is_never_written_over(checkpoint, pictures, capsys):  # noqa: F811
    before = (pictures / "a.png").read_bytes()
    assert run(checkpoint, pictures, "--out", pictures) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (pictures / "a.png").read_bytes() == before
    assert not (pictures / "predictions.json").exists()


def test_a_video_becomes_a_video(checkpoint, pictures, tmp_path):  # noqa: F811
    video = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, (128, 90))
    frame = cv2.resize(cv2.imread(str(pictures / "a.png")), (128, 90))
    for shift in range(5):
        writer.write(np.roll(frame, shift * 10, axis=1))
    writer.release()
    out = tmp_path / "out"
    assert run(checkpoint, video, "--out", out, "--batch-size", 2, "--frames", 4) == 0
    drawn = list(Video(Source(str(out / "clip.mp4"), out)))
    assert len(drawn) == 4 and drawn[0].shape == (90, 128, 3)
    entries = json.loads((out / "predictions.json").read_text())
    assert [entry["frame"] for entry in entries] == [0, 1, 2, 3]


def test_endings_that_become_one_are_kept_apart(checkpoint, pictures, tmp_path):  # noqa: F811
    (pictures / "a.gif").write_bytes((pictures / "a.png").read_bytes())
    found = find_sources([str(pictures)], tmp_path / "out")
    names = [str(source.name) for source in found]
    assert len(set(names)) == len(names) == 5 and {"a.png", "a_2.png"} <= set(names)


def test_an_earlier_outcome_inside_the_folder_is_no_source(checkpoint, pictures):  # noqa: F811
    for _ in range(2):
        assert run(checkpoint, pictures, "--out", pictures / "drawn") == 0
        entries = json.loads((pictures / "drawn" / "predictions.json").read_text())
        assert len(entries) == 3


def test_a_broken_video_loses_no_picture(checkpoint, pictures, tmp_path, capsys):  # noqa: F811
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    assert run(checkpoint, pictures / "a.png", tmp_path / "bad.mp4", "--out", out) == 0
    assert "skipped" in (error := capsys.readouterr().err) and "bad.mp4" in error
    assert len(json.loads((out / "predictions.json").read_text())) == 1


def test_scores_below_the_configs_threshold_can_be_had(checkpoint, pictures, tmp_path):  # noqa: F811
    counts = []
    for score in ("0.0", "0.05", "0.5"):
        assert run(checkpoint, pictures / "a.png", "--out", tmp_path, "--score", score) == 0
        [entry] = json.loads((tmp_path / "predictions.json").read_text())
        counts.append(len(entry["detections"]))
    assert counts == sorted(counts, reverse=True)


def test_tiles(checkpoint, pictures, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    assert run(checkpoint, pictures / "a.png", "--out", out, "--tile", 64, "--overlap", 0.3) == 0
    [entry] = json.loads((out / "predictions.json").read_text())
    assert entry["detections"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.jpg"], "nowhere.jpg is no file"),
        (["EMPTY"], "holds no image"),
        (["BROKEN"], "none of the 1 sources"),
        (["TEXT"], "neither image nor video"),
        (["OK", "--tile", "3"], "--tile"),
        (["OK", "--overlap", "1.5"], "--overlap"),
        (["OK", "--batch-size", "0"], "--batch-size"),
        (["OK", "--html", "--html-limit", "0"], "--html-limit"),
        (["99"], "none of the 1 sources"),
        (["OK", "--score", "1.5"], "--score"),
        (["OK", "--frames", "0"], "--frames"),
        (["OK", "--classes", "squar"], "did you mean 'square'"),
    ],
)
def test_mistakes_are_one_message(arguments, says, checkpoint, pictures, tmp_path, capsys):  # noqa: F811
    (tmp_path / "empty").mkdir()
    places = {
        "EMPTY": tmp_path / "empty",
        "BROKEN": pictures / "broken.jpg",
        "TEXT": pictures / "notes.txt",
        "OK": pictures / "a.png",
    }
    arguments = [str(places.get(a, a)) for a in arguments]
    assert run(checkpoint, *arguments, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_sources_in_order(pictures):
    found = find_sources([str(pictures / "b.png"), str(pictures / "*.png"), "0"], "out")
    assert [source.name.name for source in found] == ["b.png", "a.png", "b_2.png", "camera_0.mp4"]
    assert found[-1].camera == 0 and found[-1].is_video


def test_the_console_command(capsys):
    assert gfl_main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert gfl_main(["--version"]) == 0 and gfl.__version__ in capsys.readouterr().out
    assert gfl_main([]) == 2
    capsys.readouterr()
    assert gfl_main(["trian"]) == 2
    assert "did you mean 'train'" in capsys.readouterr().err
    for command in COMMANDS:
        with pytest.raises(SystemExit) as end:
            gfl_main([command, "-h"])
        assert end.value.code == 0
