"""Data sets as users really have them: what becomes of every defect."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from builders import tiny_values
from conftest import REPOSITORY
from judge_messy import Judged, outcome_table
from messy_set import write_messy_set

import gfl
from gfl.config import parse_config
from gfl.data.image import read_image

# Folders of the same form as the project's own set, made elsewhere.
FOLDERS = [folder for folder in os.environ.get("GFL_MESSY", "").split(os.pathsep) if folder]


@pytest.fixture(scope="module", params=FOLDERS or ["seed 0", "seed 1"])
def judged(request, tmp_path_factory):
    if FOLDERS:
        return Judged(Path(request.param))
    folder = tmp_path_factory.mktemp("messy") / "set"
    return Judged(write_messy_set(folder, int(request.param[-1])))


def test_messy_verdicts_are_those_of_the_manifest(judged):
    assert len(judged.rows) > 80
    wrong = [
        (part, entry["defects" if part != "files" else "file"], verdict, kinds)
        for part, entry, verdict, kinds in judged.rows
        if verdict not in entry["acceptable"]
    ]
    assert wrong == []


def boxes_of(dataset) -> list:
    rows = []
    for index in range(len(dataset)):
        sample = dataset[index]
        names = [dataset.class_names[label] for label in sample.labels.tolist()]
        objects = [
            (sample.image_id, name, *np.round(box, 2).tolist())
            for name, box in zip(names, sample.boxes, strict=True)
        ]
        regions = [
            (sample.image_id, "crowd", *np.round(b, 2).tolist()) for b in sample.ignore_boxes
        ]
        rows += objects + regions
    return sorted(rows)


def test_messy_what_is_used_is_what_is_expected(judged):
    got, want = judged.dataset, judged.expected
    assert got.image_ids.tolist() == want.image_ids.tolist()
    assert got.sizes.tolist() == want.sizes.tolist()
    assert got.class_names == want.class_names and got.category_ids == want.category_ids
    assert boxes_of(got) == boxes_of(want)
    assert len(boxes_of(got)) > 60
    assert [f.kind for f in want.findings if f.policy == "skip"] == []


def test_messy_colours_are_right(judged):
    probed = 0
    for entry in judged.manifest["images"]:
        if entry["expected"] not in ("use", "repair_warn"):
            continue
        image = read_image(str(judged.folder / "images" / entry["on_disk"]))
        assert list(image.shape[1::-1]) == entry["true_size"], entry["file_name"]
        for x, y, *color in entry["probes"]:
            gap = np.abs(image[y, x].astype(int) - color).max()
            assert gap <= entry["probe_tol"], (entry["file_name"], x, y)
            probed += 1
    assert probed > 100


def test_messy_table_in_the_documentation_is_the_outcome(tmp_path):
    table = outcome_table([Judged(write_messy_set(tmp_path / "set"))])
    assert table in (REPOSITORY / "docs" / "data.md").read_text(encoding="utf-8")


def test_messy_set_trains_an_epoch_with_finite_losses(judged, tmp_path):
    values = tiny_values(judged.folder, epochs=1, batch_size=8)
    source = {"images": str(judged.folder / "images")}
    source["annotations"] = str(judged.folder / "annotations" / "messy.json")
    values["data"] |= {"path": None, "train": source, "val_fraction": 0.3}
    outcome = gfl.train(parse_config(values), work_dir=tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    losses = [json.loads(line)["loss"] for line in lines if '"loss"' in line]
    assert len(losses) > 2 and np.isfinite(losses).all()
    assert outcome["last"]["AP"] >= 0
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "images whose file is missing left out" in log and "data.val_fraction 0.3" in log
