"""`tools/predict.py` and `gfl`: sources, outputs, and what must not happen to a user's files."""

import json
import signal
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch

import gfl
import gfl.structures
from gfl import predicting
from gfl.cli.main import COMMANDS
from gfl.cli.main import main as gfl_main
from gfl.cli.predict import main
from gfl.models.published_weights import read_state_dict
from gfl.predicting import Prediction, predict_sources
from gfl.sources import Source, Video, VideoWriter, find_sources


def run(checkpoint, *arguments):
    return main([str(checkpoint), *map(str, arguments), "--device", "cpu"])


def test_a_folder(checkpoint, pictures, tmp_path, capsys):
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


def test_what_was_printed_as_json(checkpoint, pictures, tmp_path, capsys):
    out, file = tmp_path / "out", tmp_path / "summary.json"
    assert run(checkpoint, pictures, "--out", out, "--no-pictures", "--json", file) == 0
    summary, printed = json.loads(file.read_text()), capsys.readouterr().out
    assert f"{summary['images']} images, {summary['detections']} detections" in printed
    assert sum(summary["per_class"].values()) == summary["detections"] > 0
    assert list(summary["skipped"]) == [str(pictures / "broken.jpg")]


@pytest.mark.parametrize("name", ["CHECKPOINT", "a.png", "out/predictions.json", "out/a.png"])
def test_the_summary_falls_on_no_other_file(name, checkpoint, pictures, tmp_path, capsys):
    place = {"CHECKPOINT": checkpoint, "a.png": pictures / "a.png"}.get(name, tmp_path / name)
    (tmp_path / "out").mkdir()
    before = [checkpoint.read_bytes(), (pictures / "a.png").read_bytes()]
    options = ("--out", tmp_path / "out", "--json", place)
    assert run(checkpoint, pictures / "a.png", *options) == 2
    assert str(place) in capsys.readouterr().err and not any((tmp_path / "out").iterdir())
    assert before == [checkpoint.read_bytes(), (pictures / "a.png").read_bytes()]


def test_score_and_classes_limit_what_is_written(checkpoint, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    options = ("--score", "0.4", "--classes", "disc", "--no-pictures")
    assert run(checkpoint, pictures / "a.png", "--out", out, *options) == 0
    [entry] = json.loads((out / "predictions.json").read_text())
    assert all(f["score"] >= 0.4 and f["class_name"] == "disc" for f in entry["detections"])
    assert sorted(out.iterdir()) == [out / "predictions.json"]
    assert run(checkpoint, pictures / "a.png", "--out", out, "--classes", "disk") == 2
    assert "did you mean 'disc'" in capsys.readouterr().err


def test_same_names_from_two_folders_are_kept_apart(checkpoint, pictures, tmp_path):
    out = tmp_path / "out"
    sources = (pictures / "a.png", pictures / "below" / "a.png")
    assert run(checkpoint, *sources, "--out", out) == 0
    assert {f.name for f in out.iterdir()} == {"a.png", "a_2.png", "predictions.json"}


def test_a_source_is_never_written_over(checkpoint, pictures, capsys):
    before = (pictures / "a.png").read_bytes()
    assert run(checkpoint, pictures, "--out", pictures) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert (pictures / "a.png").read_bytes() == before
    assert not (pictures / "predictions.json").exists()


def test_a_video_becomes_a_video(checkpoint, pictures, tmp_path):
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
    assert [entry["drawn"] for entry in entries] == ["clip.mp4"] * 4


def test_endings_that_become_one_are_kept_apart(checkpoint, pictures, tmp_path):
    (pictures / "a.gif").write_bytes((pictures / "a.png").read_bytes())
    found = find_sources([str(pictures)], tmp_path / "out")
    names = [str(source.name) for source in found]
    assert len(set(names)) == len(names) == 5 and {"a.png", "a_2.png"} <= set(names)


def test_an_earlier_outcome_inside_the_folder_is_no_source(checkpoint, pictures):
    for _ in range(2):
        assert run(checkpoint, pictures, "--out", pictures / "drawn") == 0
        entries = json.loads((pictures / "drawn" / "predictions.json").read_text())
        assert len(entries) == 3


def test_a_broken_video_loses_no_picture(checkpoint, pictures, tmp_path, capsys):
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    out = tmp_path / "out"
    assert run(checkpoint, pictures / "a.png", tmp_path / "bad.mp4", "--out", out) == 0
    assert "skipped" in (error := capsys.readouterr().err) and "bad.mp4" in error
    assert len(json.loads((out / "predictions.json").read_text())) == 1


def test_scores_below_the_configs_threshold_can_be_had(checkpoint, pictures, tmp_path):
    counts = []
    for score in ("0.0", "0.05", "0.5"):
        assert run(checkpoint, pictures / "a.png", "--out", tmp_path, "--score", score) == 0
        [entry] = json.loads((tmp_path / "predictions.json").read_text())
        counts.append(len(entry["detections"]))
    assert counts == sorted(counts, reverse=True)


def test_tiles(checkpoint, pictures, tmp_path):
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
def test_mistakes_are_one_message(arguments, says, checkpoint, pictures, tmp_path, capsys):
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


def test_a_video_in_a_folder_below(checkpoint, pictures, tmp_path, capsys):
    frame = cv2.imread(str(pictures / "a.png"))
    for old in (pictures / "below").iterdir():
        old.unlink()
    code, size = cv2.VideoWriter_fourcc(*"mp4v"), frame.shape[1::-1]
    film = cv2.VideoWriter(str(pictures / "below" / "film.mp4"), code, 5, size)
    for _ in range(3):
        film.write(frame)
    film.release()
    out = tmp_path / "out"
    assert run(checkpoint, pictures, "--out", out) == 0
    assert "film.mp4" not in capsys.readouterr().err
    assert len(list(Video(Source(str(out / "below" / "film.mp4"), "film")))) == 3
    assert [file.name for file in (out / "below").iterdir()] == ["film.mp4"]


class _Detects:
    """A detector that finds nothing, and is stopped at an image, by Ctrl-C as a rule."""

    class_names, category_ids = ("square", "disc"), (3, 7)

    def __init__(self, stop_at, stop=KeyboardInterrupt):
        self.left, self.stop = stop_at, stop

    def predict(self, images, *_, **__):
        for _ in images:
            self.left -= 1
            if self.left < 0:
                raise self.stop
        empty = torch.zeros(0, 4)
        none = gfl.structures.Detections(empty, empty[:, 0], empty[:, 0].long(), empty)
        return [replace(none, names=self.class_names, category_ids=(3, 7)) for _ in images]


class _Frames:
    rate, length = 5.0, None

    def __init__(self, source):
        pass

    def __iter__(self):
        while True:
            yield np.zeros((64, 96, 3), np.uint8)

    def missing(self, wanted):
        return None


def test_ctrl_c_ends_a_camera_and_keeps_what_it_saw(tmp_path, monkeypatch):
    monkeypatch.setattr("gfl.predicting.Video", _Frames)
    sources = find_sources(["0"], tmp_path)
    summary = predict_sources(_Detects(3), sources, Prediction(str(tmp_path), batch_size=1))
    assert summary["images"] == 3
    assert len(json.loads((tmp_path / "predictions.json").read_text())) == 3
    assert len(list(Video(Source(str(tmp_path / "camera_0.mp4"), "film")))) == 3


def test_sigterm_keeps_what_was_found(checkpoint, pictures, tmp_path, monkeypatch):
    out, before = tmp_path / "out", signal.getsignal(signal.SIGTERM)

    def detect_twice(self, images):
        detect_twice.left -= 1
        if not detect_twice.left:
            signal.raise_signal(signal.SIGTERM)
        return detect(self, images)

    detect, detect_twice.left = predicting._Run._detect, 3
    monkeypatch.setattr(predicting._Run, "_detect", detect_twice)
    arguments = pictures, "--out", out, "--batch-size", 1
    assert run(checkpoint, *arguments) == 130
    assert len(json.loads((out / "predictions.json").read_text())) == 2
    assert signal.getsignal(signal.SIGTERM) == before
    monkeypatch.undo()
    assert run(checkpoint, *arguments) == 0  # its own pictures may be drawn anew


def test_ctrl_c_leaves_no_part_of_a_video(tmp_path, monkeypatch):
    monkeypatch.setattr("gfl.predicting.Video", _Frames)
    (tmp_path / "film.mp4").write_bytes(b"an earlier one")
    (tmp_path / "predictions.json").write_text(json.dumps([{**ENTRY, "drawn": "film.mp4"}]))
    source = Source("elsewhere/film.mp4", "film.mp4")
    for _ in range(2):  # it stays known as of an earlier run
        with pytest.raises(KeyboardInterrupt):
            predict_sources(_Detects(3), [source], Prediction(str(tmp_path), batch_size=1))
    assert (tmp_path / "film.mp4").read_bytes() == b"an earlier one"
    assert {file.name for file in tmp_path.iterdir()} == {"film.mp4", "predictions.json"}
    entries = json.loads((tmp_path / "predictions.json").read_text())
    assert [entry["drawn"] for entry in entries] == [None] * 3
    assert entries[0]["drawn_before"] == ["film.mp4"]


def test_what_was_found_before_memory_ran_out_is_kept(pictures, tmp_path):
    out = tmp_path / "out"
    detector = _Detects(2, gfl.UserError("out of memory"))
    sources = find_sources([str(pictures / "a.png"), str(pictures / "b.png")] * 2, out)
    for _ in range(2):  # the same command again is no stranger to its own outputs
        with pytest.raises(gfl.UserError, match="out of memory"):
            predict_sources(detector, sources, Prediction(str(out), batch_size=1))
        detector.left = 2
        assert len(json.loads((out / "predictions.json").read_text())) == 2


def test_pictures_that_no_earlier_run_has_written_are_not_replaced(checkpoint, pictures, capsys):
    """In the folder of the outputs, which may even lie below the sources."""
    out = pictures / "below"
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(checkpoint, pictures, "--out", out) == 2
    assert "choose another folder" in capsys.readouterr().err
    assert run(checkpoint, pictures / "a.png", "--out", out) == 2
    assert "says that an earlier run has drawn it" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


# What every entry of predictions.json has had from the first version on.
ENTRY = {"source": "a.png", "width": 128, "height": 90, "detections": []}


def files_below(folder) -> dict:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "content",
    [
        b'[{"my": 1}]',
        b'[{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]',
        b'{"source": 1, "width": 1, "height": 1, "detections": []}',
        b"\xff no JSON",
        b"[" * 100_000,
    ],
    ids=["other", "coco", "dict", "bytes", "deep"],
)
@pytest.mark.parametrize("options", [(), ("--no-pictures",)])
def test_predictions_of_another_tool_are_not_replaced(
    content, options, checkpoint, pictures, tmp_path, capsys
):
    out = tmp_path / "mine"
    out.mkdir()
    (out / "predictions.json").write_bytes(content)
    (out / "a.png").write_bytes(b"the user's own")
    before = files_below(out)
    assert run(checkpoint, pictures / "a.png", "--out", out, *options) == 2
    assert f"{out / 'predictions.json'} is not of gfl predict" in capsys.readouterr().err
    assert files_below(out) == before


@pytest.mark.parametrize("entry", [ENTRY, {**ENTRY, "drawn": None}, {**ENTRY, "drawn": "b.png"}])
def test_a_picture_that_no_earlier_run_has_drawn_is_not_replaced(
    entry, checkpoint, pictures, tmp_path, capsys
):
    """An older predictions.json says of no picture that it was drawn."""
    out = tmp_path / "home"
    out.mkdir()
    (out / "predictions.json").write_text(json.dumps([entry]))
    (out / "a.png").write_bytes(b"the user's own")
    before = files_below(out)
    assert run(checkpoint, pictures / "a.png", "--out", out) == 2
    assert f"{out / 'a.png'} exists" in capsys.readouterr().err
    assert files_below(out) == before
    assert run(checkpoint, pictures / "a.png", "--out", out, "--no-pictures") == 0
    assert (out / "a.png").read_bytes() == b"the user's own"


def test_what_earlier_runs_have_drawn_is_drawn_again(checkpoint, pictures, tmp_path, capsys):
    out = tmp_path / "out"

    def names(*arguments) -> list:
        """What the entries say, after a run."""
        assert run(checkpoint, *arguments, "--out", out) == 0, capsys.readouterr().err
        entries = json.loads((out / "predictions.json").read_text())
        assert all("drawn_before" not in entry for entry in entries[1:])
        return [*(entry["drawn"] for entry in entries), entries[0].get("drawn_before")]

    assert names(pictures) == ["a.png", "b.png", "below/a.png", None]
    (out / "a.png").write_bytes(b"")
    assert names(pictures / "a.png") == ["a.png", ["b.png", "below/a.png"]]
    assert (out / "a.png").stat().st_size > 100
    assert names(pictures / "a.png", "--no-pictures") == [None, ["a.png", "b.png", "below/a.png"]]
    (out / "a.png").unlink()
    assert names(pictures / "b.png") == ["b.png", ["below/a.png"]]
    (out / "a.png").write_bytes(b"the user's own by now")
    assert run(checkpoint, pictures, "--out", out) == 2
    assert (out / "a.png").read_bytes() == b"the user's own by now"


def test_a_page_of_another_tool_is_not_replaced(checkpoint, pictures, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = (pictures / "a.png", "--out", out, "--html")
    assert run(checkpoint, *arguments) == run(checkpoint, *arguments) == 0
    (out / "predictions.html").write_text("<title>Predictions</title> of the user's")
    before = files_below(out)
    assert run(checkpoint, *arguments) == 2
    assert f"{out / 'predictions.html'} is not of gfl predict" in capsys.readouterr().err
    assert files_below(out) == before
    assert run(checkpoint, *arguments[:-1]) == 0


def clip(path, shape=(64, 96, 3), frames: int = 30):
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 5.0, shape[1::-1])
    for number in range(frames):
        writer.write(np.full(shape, 8 * number, np.uint8))
    writer.release()
    return path


@pytest.mark.parametrize(
    ("name", "frames", "told"), [("whole", None, False), ("cut", None, True), ("cut", 5, False)]
)
def test_a_video_that_is_cut_off_is_told(name, frames, told, tmp_path):
    whole = clip(tmp_path / "whole.avi")
    (tmp_path / "cut.avi").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    source = Source(str(tmp_path / f"{name}.avi"), f"{name}.mp4")
    wish = Prediction(str(tmp_path / "out"), batch_size=4, frames=frames)
    summary = predict_sources(_Detects(100), [source], wish)
    assert summary["images"] > 0
    reasons = list(summary["skipped"].values())
    assert ["of 30 frames could be read" in text for text in reasons] == [True] * told


def test_a_video_without_a_frame_is_told(tmp_path):
    """Of one frame that is due: it is missing all the same."""
    whole = clip(tmp_path / "whole.avi", frames=1).read_bytes()
    (tmp_path / "cut.avi").write_bytes(whole[: whole.index(b"movi") + 12])
    source = Source(str(tmp_path / "cut.avi"), "cut.mp4")
    summary = predict_sources(_Detects(9), [source], Prediction(str(tmp_path / "out")))
    assert summary["images"] == 0
    assert summary["skipped"] == {source.path: "no frame could be read: it is empty or damaged"}


@pytest.mark.parametrize(
    ("stated", "taken"),
    [(90000, 25), (1e6, 25), (float("nan"), 25), (-1, 25), (0, 25), (1000, 1000), (30, 30)],
)
def test_a_video_of_a_strange_rate_is_written(stated, taken, tmp_path, monkeypatch):
    class Stating:
        def __init__(self, path):
            self.capture = capture(path)

        def __getattr__(self, name):
            return getattr(self.capture, name)

        def get(self, what):
            return float(stated) if what == cv2.CAP_PROP_FPS else self.capture.get(what)

    capture = cv2.VideoCapture
    source = Source(str(clip(tmp_path / "film.avi", frames=3)), "film.mp4")
    with monkeypatch.context() as patched:
        patched.setattr(cv2, "VideoCapture", Stating)
        summary = predict_sources(_Detects(9), [source], Prediction(str(tmp_path / "out")))
    assert summary["skipped"] == {} and summary["images"] == 3
    written = Video(Source(str(tmp_path / "out" / "film.mp4"), "film"))
    assert written.rate == pytest.approx(taken) and len(list(written)) == 3


@pytest.fixture(params=["long", "closed"])
def unreachable(request, tmp_path, obeys_permissions):
    """A path that no file can have, or whose folder lets nobody in; without an ending."""
    if request.param == "long":
        yield tmp_path / ("x" * 300)
        return
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    yield folder / "x"
    folder.chmod(0o700)


@pytest.mark.parametrize(
    "use",
    [
        lambda path: find_sources([f"{path}"], "out"),
        lambda path: find_sources([f"{path}.jpg"], "out"),
        lambda path: find_sources([f"{path}*.jpg"], "out"),
        lambda path: predict_sources(_Detects(1), [Source("a", "a.png")], Prediction(f"{path}")),
        lambda path: gfl.load(f"{path}.pt"),
        lambda path: gfl.load(f"{path}.pt2"),
        lambda path: gfl.load(f"{path}.onnx"),
        lambda path: read_state_dict(path),
        lambda path: gfl.export("nowhere.pt", f"{path}.pt2"),
    ],
    ids="name picture pattern out checkpoint program onnx weights export".split(),
)
def test_a_path_that_can_not_be_reached_is_one_message(use, unreachable):
    with pytest.raises(gfl.UserError) as refusal:
        use(unreachable)
    assert str(refusal.value)


def test_a_video_that_lacks_frames_is_not_put_in_place(tmp_path):
    """As on a full disk, of which OpenCV says nothing."""
    path = tmp_path / "film.mp4"
    path.write_bytes(b"an earlier one")
    with pytest.raises(gfl.UserError, match="0 of 3 frames are in the file"):
        with VideoWriter(path, 5.0) as writer:
            for _ in range(3):
                writer.write(np.zeros((64, 96, 3), np.uint8))
            writer._writer.release()
            writer._temporary.write_bytes(writer._temporary.read_bytes()[:100])
    assert path.read_bytes() == b"an earlier one" and len(list(tmp_path.iterdir())) == 1
