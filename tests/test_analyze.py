"""`gfl analyze`: report.html and report.json of a checkpoint, and the stored temperature."""

import json
import math
import os
import re
import shutil

import numpy as np
import pytest
import torch
from builders import tiny_config, write_coco
from test_html_page import screen
from test_tide import KINDS

import gfl
import gfl.quality
from gfl.analysis.edge_blur import read_edge_blur
from gfl.analysis.gallery import _curve
from gfl.analysis.run import analyze, report_numbers
from gfl.analysis.sections import QUALITY_MODES
from gfl.analysis.temperature import KEY, stored_temperature
from gfl.build import build_model
from gfl.cli.analyze import main
from gfl.config import merge_values, parse_config
from gfl.engine.checkpoint import DamagedCheckpoint, save_checkpoint
from gfl.errors import UserError
from gfl.interop.export_metadata import describe
from gfl.predictor import detector_of

CATEGORIES = ((3, "square"), (7, "</b> & 'disc' \u00e9"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 images of two objects each; the edges of the first ones' objects have a stated blur."""
    path = write_coco(tmp_path_factory.mktemp("data") / "set", {"val": 40}, categories=CATEGORIES)
    file = path / "annotations" / "val.json"
    content = json.loads(file.read_text())
    for number, entry in enumerate(content["annotations"][:60]):
        entry["edge_blur"] = [0.5, 1.0 + number, 2.0, 3.0]
    file.write_text(json.dumps(content))
    return path


def write_checkpoint(path, folder, **model_values):
    """A network that sees boxes of about 40 pixels everywhere: some are right, none is learned."""
    changes = {"model": model_values, "postprocess": {"nms_iou": 0.6, "max_per_image": 300}}
    if model_values.get("box") == "dirac":
        changes["loss"] = {"dfl_weight": 0.0}
    values = merge_values(tiny_config(folder).to_dict(), changes)
    config = parse_config(values)
    torch.manual_seed(1)
    model = build_model(config, 2)
    torch.nn.init.normal_(model.head.cls_out.weight, std=0.02)
    torch.nn.init.zeros_(model.head.cls_out.bias)
    torch.nn.init.normal_(model.head.box_out.weight, std=0.2)
    if config.model.box == "general":
        bins = torch.arange(config.model.reg_max + 1.0)
        model.head.box_out.bias.data = (-(bins - 2.5).square()).repeat(4)
    else:  # distances are 4 exp(logit) strides
        model.head.box_out.bias.data.fill_(math.log(2.5 / 4))
        model.head.box_out.weight.data.mul_(0.1)
    names = [name for _, name in CATEGORIES]
    class_map = {"names": names, "category_ids": [i for i, _ in CATEGORIES]}
    content = {"model": model.state_dict(), "weights": "raw", "class_map": class_map}
    save_checkpoint(path, {**content, "config": config.to_dict(), "step": 1, "epoch": 1})
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, folder):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "best.pt", folder)


@pytest.fixture(scope="module")
def report(tmp_path_factory, checkpoint):
    """The numbers, and the folder of the report."""
    out = tmp_path_factory.mktemp("report") / "new" / "folder"
    return analyze(checkpoint, out, say=lambda message: None), out


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


def refuse(constant: str):
    raise AssertionError(f"{constant} is no JSON")


def test_the_report_holds_all_numbers(report, checkpoint):
    numbers, out = report
    text = (out / "report.json").read_text()
    assert json.loads(text, parse_constant=refuse) == numbers
    assert (numbers["images"], numbers["objects"]) == (40, 80)
    assert numbers["quality_mode"] == "joint" and numbers["box"] == "general"
    true = numbers["consistency"]["true"]
    assert true == numbers["errors"]["right"] > 40
    assert set(numbers["errors"]["kinds"]) == set(KINDS)
    clipped = numbers["doubt"]["clipped_left_out"]
    assert numbers["doubt"]["all"]["sides"] == numbers["coverage"]["sides"] == 4 * true - clipped
    assert sum(numbers["shapes"].values()) == 4 * true
    assert 0 < numbers["edge_blur"]["all"]["sides"] < 4 * true
    assert numbers["quality"] is None and numbers["coverage"]["stored"] is None
    metrics, _ = gfl.evaluate(checkpoint, say=lambda message: None)
    assert numbers["errors"]["AP50"] == pytest.approx(metrics["AP50"], abs=1e-12)


def test_the_page_needs_nothing_and_shows_what_the_numbers_say(report):
    numbers, out = report
    page = (out / "report.html").read_text()
    assert page.isascii() and "default-src 'none'" in page and "<script" not in page
    assert not re.search(r"https?:|<link|@import|url\(|src=", page)
    assert "</b> & 'disc'" not in page and "&lt;/b&gt; &amp; &#x27;disc&#x27; &#233;" in page
    assert numbers["coverage"]["plain"]["text"] in page.replace("&#x27;", "'")
    assert page.count('class="tile"') >= 12 and page.count("data:image/jpeg;base64,") >= 12
    assert page.count("<svg") == page.count("</svg>") > 18
    for word in ("Calibrated within", "NaN", "None", "inf"):
        assert word not in re.sub(r"base64,[^\"]*", "", page), word


def test_the_command_prints_and_writes_the_same_numbers(checkpoint, report, tmp_path, capsys):
    numbers, _ = report
    out, file = tmp_path / "out", tmp_path / "numbers.json"
    before = checkpoint.read_bytes()
    assert run(checkpoint, "--out", out, "--json", file) == 0
    assert json.loads(file.read_text()) == json.loads((out / "report.json").read_text()) == numbers
    printed = capsys.readouterr().out
    assert numbers["coverage"]["plain"]["text"] in printed
    assert f"{numbers['errors']['AP50']:.4f}" in printed
    for name in KINDS:
        assert f"{name} " in printed
    assert checkpoint.read_bytes() == before
    # Again: replaced, and nothing else is left there.
    with (out / "report.html").open("a") as page:
        page.write("old")
    assert run(checkpoint, "--out", out, "--images", 2) == 0
    assert sorted(path.name for path in out.iterdir()) == ["report.html", "report.json"]
    assert json.loads((out / "report.json").read_text())["images"] == 2
    assert "2 images" in (page := (out / "report.html").read_text()) and not page.endswith("old")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("missing.pt",), "does not exist"),
        (("CHECKPOINT", "--images", "0"), "expected 1 or more"),
        (("CHECKPOINT", "model.reg_mux=3"), "reg_mux"),
        (("CHECKPOINT", "model.reg_max=5"), "does not fit its config"),
        (("CHECKPOINT", "--split", "test"), "test"),
        (("CHECKPOINT", "--json", "CHECKPOINT"), "source itself"),
        (("CHECKPOINT", "--store-temperature", "--split", "test"), "fitted on val"),
        (("CHECKPOINT", "--store-temperature", "--images", "2"), "too few to fit"),
    ],
)
def test_mistakes_are_one_message(arguments, message, checkpoint, tmp_path, capsys):
    before = checkpoint.read_bytes()
    given = [str(checkpoint) if a == "CHECKPOINT" else a for a in arguments]
    assert run(*given, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error and "error: " in error and "Traceback" not in error
    assert checkpoint.read_bytes() == before
    assert not (tmp_path / "out" / "report.html").exists()


def test_a_folder_that_can_not_be_written_is_refused_before_the_work(
    checkpoint, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("gfl.analysis.run.collect", None)  # would be called
    (tmp_path / "file").write_text("mine")
    assert run(checkpoint, "--out", tmp_path / "file") == 2
    assert run(checkpoint, "--out", tmp_path / "file" / "below") == 2
    (tmp_path / "taken" / "report.html").mkdir(parents=True)
    assert run(checkpoint, "--out", tmp_path / "taken") == 2
    assert capsys.readouterr().err.count("cannot write to") == 3
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("name", ["report.html", "report.json"])
def test_a_report_of_another_tool_is_not_replaced(
    name, checkpoint, tmp_path, capsys, report, monkeypatch
):
    monkeypatch.setattr("gfl.analysis.run.collect", None)  # would be called
    out = tmp_path / "out"
    shutil.copytree(report[1], out)
    (out / name).write_text('{"gfl_version": "0.1.0", "mine": 1}')
    before = {path: path.read_bytes() for path in out.iterdir()}
    assert run(checkpoint, "--out", out) == 2
    assert f"{out / name} is not of gfl analyze" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_several_processes_are_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        analyze(checkpoint, tmp_path)


# What is not there


def numbers_of(checkpoint, out, *overrides, **options) -> dict:
    return analyze(checkpoint, out, list(overrides), say=lambda message: None, **options)


def test_no_detections(checkpoint, tmp_path):
    numbers = numbers_of(checkpoint, tmp_path, "postprocess.score_threshold=0.999", images=3)
    assert numbers["detections"] == 0 and numbers["errors"]["AP50"] == 0
    page = (tmp_path / "report.html").read_text()
    assert "There are no detections" in page and "No object was found correctly" in page


def test_images_without_objects(checkpoint, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    file = tmp_path / "set" / "annotations" / "val.json"
    content = json.loads(file.read_text())
    first = content["images"][0]["id"]
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != first]
    file.write_text(json.dumps(content))
    where = f"data.path={tmp_path / 'set'}"
    numbers = numbers_of(checkpoint, tmp_path / "out", where, images=1)
    assert numbers["objects"] == 0 < numbers["detections"]
    assert numbers["errors"]["AP50"] is None and numbers["doubt"]["all"]["sides"] == 0
    assert "The split has no object" in (tmp_path / "out" / "report.html").read_text()


def test_boxes_without_distributions(folder, tmp_path):
    dirac = write_checkpoint(tmp_path / "dirac.pt", folder, box="dirac")
    numbers = numbers_of(dirac, tmp_path, images=10)
    assert numbers["consistency"]["true"] > 5 and numbers["box"] == "dirac"
    assert numbers["shapes"] is None and "no distributions" in numbers["coverage"]["left_out"]
    assert numbers["doubt"]["all"]["rank_correlation"] is None
    page = (tmp_path / "report.html").read_text()
    assert page.count("gives no distributions") == 2 and "All deviations are 0" in page
    with pytest.raises(UserError, match="no distributions"):
        numbers_of(dirac, tmp_path, store=True)


def test_normal_distributions_in_narrow_bins(folder, tmp_path):
    gaussian = write_checkpoint(
        tmp_path / "gaussian.pt", folder, box="gaussian", bin_width=0.5, reg_max=16
    )
    numbers = numbers_of(gaussian, tmp_path, images=10)
    assert numbers["coverage"]["sides"] > 20 and numbers["coverage"]["temperature"] > 0
    assert sum(numbers["shapes"].values()) == 4 * numbers["consistency"]["true"]
    assert 'class="curve"' in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("mode", ["distribution_guided", "iou_branch"])
def test_a_quality_output_is_shown_by_itself(mode, folder, tmp_path):
    other = write_checkpoint(tmp_path / "other.pt", folder, quality=mode)
    numbers = numbers_of(other, tmp_path, images=4)
    quality = numbers["quality"]
    assert 0 < quality["on_background"] <= 160 and 0 < quality["on_object"] <= 160
    assert set(quality["wrong_pairs"]) == {"class", "quality", "product"}
    page = (tmp_path / "report.html").read_text()
    assert "The quality output" in page and QUALITY_MODES[mode][:40] in page


def test_true_blur_is_read_where_it_is_four_numbers(tmp_path):
    entries = [
        {"image_id": 1, "bbox": [1, 2, 3, 4], "edge_blur": [1, 2, 3, 4]},
        {"image_id": 2, "bbox": [1, 2, 3, 4], "edge_blur": [1, 2, 3]},
        {"image_id": 3, "bbox": [1, 2, 3, 4], "edge_blur": [1, 2, 3, "4"]},
        {"image_id": 4, "bbox": None, "edge_blur": [1, 2, 3, 4]},
        "nothing",
    ]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": entries}))
    (tmp_path / "b.json").write_text(json.dumps({"annotations": []}))
    files = [str(tmp_path / name) for name in ("a.json", "b.json", "none.json")]
    assert read_edge_blur((*files, str(tmp_path))) == {(1, 1, 2, 3, 4): [1, 2, 3, 4]}


def test_every_quality_mode_has_its_words():
    assert set(QUALITY_MODES) == set(gfl.quality.QUALITY_MODES)


# Temperature


def test_a_temperature_is_not_stored_in_another_file(
    checkpoint, folder, tmp_path, capsys, monkeypatch
):
    """A training may write a new best.pt meanwhile."""
    copy, real = tmp_path / "best.pt", report_numbers
    shutil.copy(checkpoint, copy)

    def written_meanwhile(*args):
        content = torch.load(copy, weights_only=True)
        save_checkpoint(copy, {**content, "step": 2})
        return real(*args)

    monkeypatch.setattr("gfl.analysis.run.report_numbers", written_meanwhile)
    assert run(copy, "--out", tmp_path / "out", "--store-temperature") == 2
    assert "has changed since it was analysed" in capsys.readouterr().err
    assert KEY not in torch.load(copy, weights_only=True)


def test_a_folder_that_is_not_ours_is_told_before_the_analysis(
    checkpoint, tmp_path, monkeypatch, capsys
):
    folder = str(checkpoint.resolve().parent)
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, how: str(path) != folder and real(path, how))
    assert run(checkpoint, "--out", tmp_path / "out", "--store-temperature") == 2
    assert "is not yours to write to. Copy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_stored_temperature_multiplies_the_doubt_alone(checkpoint, folder, tmp_path, capsys):
    copy = tmp_path / "best.pt"
    shutil.copy(checkpoint, copy)
    assert run(copy, "--out", tmp_path / "out", "--store-temperature") == 0
    assert "stored" in capsys.readouterr().err
    content = torch.load(copy, weights_only=True)
    old = torch.load(checkpoint, weights_only=True)
    entry, value = content.pop(KEY), json.loads((tmp_path / "out" / "report.json").read_text())
    assert entry["value"] == value["coverage"]["temperature"] == value["coverage"]["stored_now"]
    assert entry["value"] != 1 and entry["split"] == "val" and entry["images"] <= 40
    assert list(content) == list(old) and content["config"] == old["config"]
    for name, weights in old["model"].items():
        assert torch.equal(content["model"][name], weights), name

    files = sorted((folder / "images").iterdir())[:3]
    for options in ({}, {"distributions": True}):
        plain = gfl.load(checkpoint, "cpu").predict(files, **options)
        warm = gfl.load(copy, "cpu").predict(files, **options)
        for one, other in zip(plain, warm, strict=True):
            assert len(one) > 3
            for field in ("boxes", "scores", "labels"):
                assert torch.equal(getattr(one, field), getattr(other, field))
            assert torch.equal(other.edge_std, one.edge_std * entry["value"])
    ratio = warm[0].edge_interval(0.8).diff().div(plain[0].edge_interval(0.8).diff())
    torch.testing.assert_close(ratio, torch.full_like(ratio, entry["value"]), rtol=1e-3, atol=0)

    # The network's own doubt is what is measured again, and the stored temperature beside it.
    again = numbers_of(copy, tmp_path / "again")
    assert again["coverage"]["temperature"] == entry["value"]
    assert again["coverage"]["stored_temperature"] == entry["value"]
    assert again["coverage"]["plain"] == value["coverage"]["plain"]
    assert "stored temperature" in (tmp_path / "again" / "report.html").read_text()
    assert numbers_of(copy, tmp_path / "again", images=3)["coverage"]["stored"] is not None


def test_an_exported_file_says_its_temperature(checkpoint):
    content = torch.load(checkpoint, weights_only=True)
    detector = detector_of(content, "best.pt", "cpu")
    assert detector.temperature == 1 and KEY not in describe(content, detector, "raw", False, 18)
    entry = {"value": 1.5, "split": "val"}
    metadata = describe({**content, KEY: entry}, detector, "raw", False, 18)
    assert stored_temperature(metadata, "x.onnx") == 1.5


@pytest.mark.parametrize(
    "entry", [1.5, {}, {"value": 0.0}, {"value": float("nan")}, {"value": "2"}]
)
def test_a_temperature_that_is_none_is_damage(entry):
    with pytest.raises(DamagedCheckpoint, match="edge_temperature"):
        stored_temperature({KEY: entry}, "best.pt")


def test_a_public_file_gets_no_temperature(tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "public.pth")
    before = (tmp_path / "public.pth").read_bytes()
    assert run(tmp_path / "public.pth", "--out", tmp_path, "--store-temperature") == 2
    assert "convert" in capsys.readouterr().err
    assert (tmp_path / "public.pth").read_bytes() == before


# In a browser


@pytest.mark.browser
def test_a_browser_shows_the_page_without_complaint(browser, report, tmp_path):
    _, out = report
    browser.get((out / "report.html").as_uri())
    for width, height in ((1280, 900), (390, 844)):
        screen(browser, width, height)
        assert browser.execute_script("return document.scrollingElement.scrollWidth") <= width
        assert browser.save_screenshot(str(tmp_path / f"{width}.png"))
    for summary in browser.find_elements("css selector", "summary"):
        browser.execute_script("arguments[0].click()", summary)
    tiles = browser.find_elements("css selector", ".tile svg")
    assert len(tiles) >= 12 and all(tile.size["height"] > 80 for tile in tiles)
    assert browser.find_elements("css selector", ".dots.true")
    titles = [title.text for title in browser.find_elements("css selector", "h2")]
    assert len(titles) == 5 and "Does doubt mean blur?" in titles
    assert browser.get_log("browser") == []


def test_a_format_that_auto_finds_is_read(checkpoint, folder, tmp_path):
    assert run(checkpoint, "data.format=auto", "--out", tmp_path) == 0
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize("side", range(4))
def test_a_flat_distribution_over_many_bins_is_drawn_from_end_to_end(side):
    """401 bins: none has a probability that could be seen by itself."""
    positions, box = np.linspace(20.0, 60.0, 401), np.array([10.0, 30, 50, 70])
    drawn = _curve(np.full(401, 1 / 401), positions, box, side)
    assert drawn.count("L") == 402
    base = 50 if side % 2 == 0 else 30  # the middle of the box
    ends = (f"M20.0 {base}.0", f"60.0 {base}.0Z") if side % 2 == 0 else (f"M{base}.0 20.0",)
    assert all(end in drawn for end in ends)
