"""Damaged configs and annotation files end in a clean load or in one message, never otherwise."""

import json
import os
import random
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
import yaml
from builders import tiny_values, write_formats
from conftest import REPOSITORY
from fuzz import mutated_json, mutated_text, mutated_values

from gfl import data_check
from gfl.cli.check_data import main

COUNT = 1000
FOLDERS = 100
SLOWEST = 10  # seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four small pictures in COCO form, the same for train and val."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    for number in range(4):
        cv2.imwrite(str(folder / "images" / f"{number}.png"), np.zeros((40, 60, 3), np.uint8))
    for split in ("train", "val"):
        (folder / "annotations" / f"{split}.json").write_text(json.dumps(coco()))
    return folder


@pytest.fixture(autouse=True)
def equal_networks_are_made_once(monkeypatch):
    """A check looks at the strides of its network, which takes most of its time to make."""
    make, made = data_check.network_without_content, {}

    def once(config, num_classes):
        key = str(config.model), num_classes
        if key not in made:
            made[key] = make(config, num_classes)
        return made[key]

    monkeypatch.setattr(data_check, "network_without_content", once)


def coco() -> dict:
    return {
        "images": [
            {"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in range(4)
        ],
        "annotations": [
            {
                "id": i + 1, "image_id": i % 4, "category_id": 3 + i % 2,
                "bbox": [i, 2 * i, 12.5, 10], "area": 125, "iscrowd": i // 7,
            }
            for i in range(8)
        ],
        "categories": [{"id": 3, "name": "a"}, {"id": 4, "name": "b"}],
    }  # fmt: skip


def values_of(folder) -> dict:
    """A small config of many sections."""
    values = tiny_values(folder)
    values["data"] |= {"policy": {"missing_image": "fail"}, "mean": [1.0, 2.0, 3.0]}
    values["data"]["classes"] = ["a", "b"]
    return values


def config_of(folder, number: int) -> bytes:
    """The damaged config of a number."""
    rng = random.Random(number)
    values = values_of(folder)
    if number % 2:
        return mutated_text(yaml.safe_dump(values), rng)
    return yaml.safe_dump(mutated_values(values, rng), allow_unicode=True).encode(
        errors="surrogatepass"
    )


def annotations_of(number: int) -> bytes:
    """The damaged json of a number."""
    return mutated_json(coco(), random.Random(10_000 + number))


def ending(capsys, arguments: list) -> tuple[int, str]:
    """Status and stderr of a check; the rules that each end has to keep."""
    started = time.perf_counter()
    status = main([str(argument) for argument in arguments])
    took = time.perf_counter() - started
    error = capsys.readouterr().err
    assert took < SLOWEST
    assert status in (0, 2)
    assert error.startswith("error: ") == (status == 2)
    assert "Traceback" not in error
    return status, error


def test_fuzzed_configs_end_cleanly(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    statuses = []
    for number in range(COUNT):
        config = tmp_path / "config.yaml"
        config.write_bytes(config_of(folder, number))
        status, error = ending(capsys, [config, "--split", "train"])
        statuses.append(status)
        assert len(error) < 20_000, number
    assert 50 < statuses.count(0) < COUNT - 50


def test_fuzzed_annotations_end_cleanly_messy(folder, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(values_of(folder)))
    statuses = []
    for number in range(COUNT):
        annotations = tmp_path / "damaged.json"
        annotations.write_bytes(annotations_of(number))
        override = [f"data.train.images={folder / 'images'}"]
        override += [f"data.train.annotations={annotations}", "data.policy.missing_image=skip"]
        status, error = ending(capsys, [config, *override, "--split", "train"])
        statuses.append(status)
        assert "damaged.json" in error or status == 0 or "data.train" in error, (number, error)
    assert 50 < statuses.count(0) < COUNT - 50


@pytest.mark.parametrize(
    ("format", "victim"),
    [
        ("yolo", "data.yaml"),
        ("yolo", "labels/train/train_1.txt"),
        ("voc", "Annotations/train_1.xml"),
        ("voc", "ImageSets/Main/train.txt"),
    ],
)
def test_fuzzed_folders_end_cleanly_messy(tmp_path, capsys, format, victim):
    folder = write_formats(tmp_path, {"train": 2})[format]
    config = tmp_path / "config.yaml"
    values = tiny_values(folder)
    values["data"]["format"] = format
    config.write_text(yaml.safe_dump(values))
    good = (folder / victim).read_text()
    statuses = []
    for number in range(FOLDERS):
        (folder / victim).write_bytes(mutated_text(good, random.Random(20_000 + number)))
        statuses.append(ending(capsys, [config, "--split", "train"])[0])
    assert statuses.count(0) > 0
    assert statuses.count(2) > 0 or victim.startswith(("labels", "Annotations"))


@pytest.mark.slow
def test_fuzzed_commands_end_cleanly(folder, tmp_path):
    good = tmp_path / "good.yaml"
    good.write_text(yaml.safe_dump(values_of(folder)))
    tool = REPOSITORY / "tools" / "check_data.py"
    for number in range(20):
        config, annotations = tmp_path / "config.yaml", tmp_path / "damaged.json"
        config.write_bytes(config_of(folder, 2000 + number))
        annotations.write_bytes(annotations_of(2000 + number))
        overrides = [f"data.train.images={folder / 'images'}"]
        overrides += [f"data.train.annotations={annotations}"]
        for arguments in ([config], [good, *overrides]):
            done = subprocess.run(
                [sys.executable, tool, *map(str, arguments), "--split", "train"],
                capture_output=True,
                text=True,
                timeout=60,
                env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                cwd=tmp_path,
            )
            assert done.returncode in (0, 2), done.stderr
            assert "Traceback" not in done.stderr
            assert ("error: " in done.stderr) == (done.returncode == 2)
