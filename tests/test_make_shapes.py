"""The sample that `gfl sample` and data/make_shapes.py draw."""

import errno
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from gfl import sample as ms
from gfl.cli.sample import main
from gfl.config import load_config
from gfl.data.masks import Masks
from gfl.errors import UserError
from gfl.sample import make_shapes
from gfl.sample_shapes import shape_mask


def contents(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = tmp_path_factory.mktemp("shapes") / "set"
    ms.make_shapes(out, 40, 20, seed=0)
    return out, {s: json.loads((out / "annotations" / f"{s}.json").read_text()) for s in ms.SPLITS}


def test_two_runs_write_the_same_bytes(tmp_path):
    for name in "ab":
        assert main(["--out", str(tmp_path / name), "--train", "4", "--val", "2"]) == 0
    first = contents(tmp_path / "a")
    assert len(first) == 8
    assert first == contents(tmp_path / "b")
    assert main(["--out", str(tmp_path / "a"), "--train", "4", "--val", "2"]) == 0
    assert contents(tmp_path / "a") == first


def test_more_pictures_leave_the_earlier_ones_unchanged(tmp_path, made):
    out, full = made
    ms.make_shapes(tmp_path, 5, 2, seed=0)
    for path in (tmp_path / "images").iterdir():
        assert path.read_bytes() == (out / "images" / path.name).read_bytes()
    for split in ms.SPLITS:
        part = json.loads((tmp_path / "annotations" / f"{split}.json").read_text())
        assert part["images"] == full[split]["images"][: len(part["images"])]
        assert part["annotations"] == full[split]["annotations"][: len(part["annotations"])]


def test_a_config_that_asks_for_the_sample_gets_it_whole_or_not_at_all(tmp_path, monkeypatch):
    data = load_config(
        "quickstart", [f"data.path={tmp_path / 'set'}", "data.draw_sample=true"]
    ).data
    full = OSError(errno.ENOSPC, "No space left on device")

    def broken(out):
        (out / "images").mkdir(parents=True)
        raise full

    with monkeypatch.context() as patch:
        patch.setattr(ms, "make_shapes", broken)
        with pytest.raises(UserError, match="cannot draw the sample into .*set: No space left"):
            ms.drawn_if_missing(data)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(ms, "make_shapes", lambda out: make_shapes(out, 3, 1))
    assert ms.drawn_if_missing(data) and not ms.drawn_if_missing(data)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
    assert (tmp_path / "set" / "annotations" / "train.json").exists()


def test_seed_and_split_matter():
    pictures = [ms.scene_at(*key)[0] for key in ((0, "train", 1), (1, "train", 1), (0, "val", 1))]
    for other in pictures[1:]:
        assert other.shape != pictures[0].shape or (other != pictures[0]).any()


def test_coco_content(made):
    out, splits = made
    image_ids, kinds, shapes = [], [], set()
    for split, content in splits.items():
        assert len(content["categories"]) >= 5
        known = {c["id"] for c in content["categories"]}
        assert {a["category_id"] for a in content["annotations"]} == known
        assert known != set(range(1, len(known) + 1))
        assert len({a["id"] for a in content["annotations"]}) == len(content["annotations"])
        sizes = {i["id"]: (i["width"], i["height"]) for i in content["images"]}
        image_ids += sizes
        shapes |= set(sizes.values())
        for image in content["images"]:
            assert (out / "images" / image["file_name"]).stat().st_size > 0
            count = sum(a["image_id"] == image["id"] for a in content["annotations"])
            kinds.append((split, "empty" if count == 0 else "crowded" if count >= 10 else "normal"))
        for a in content["annotations"]:
            x, y, w, h = a["bbox"]
            width, height = sizes[a["image_id"]]
            assert x >= 0 and y >= 0 and x + w <= width and y + h <= height
            assert min(w, h) >= ms.MIN_SIDE and 0 < a["area"] < (w + 40) * (h + 40)
            assert a["iscrowd"] == 0 and len(a["edge_blur"]) == 4
            assert 0 < min(a["edge_blur"]) and max(a["edge_blur"]) <= ms.MAX_BLUR
    assert len(set(image_ids)) == len(image_ids)
    assert shapes == {(256, 192), (192, 256)}
    for split in ms.SPLITS:
        for kind in ("empty", "crowded", "normal"):
            assert (split, kind) in kinds


def test_objects_stay_visible_and_some_are_partly_hidden():
    visible = [o["visible"] for i in range(40) for o in ms.scene_at(3, "train", i)[1]]
    assert min(visible) >= ms.MIN_VISIBLE - 1e-3
    assert np.mean(np.array(visible) < 0.95) > 0.1


def test_masks_show_the_visible_objects_and_do_not_overlap(made):
    for content in made[1].values():
        sizes = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
        covered = {key: np.zeros(size, int) for key, size in sizes.items()}
        for a in content["annotations"]:
            covered[a["image_id"]] += coco_mask.decode(a["segmentation"])
        assert max(c.max() for c in covered.values()) == 1
        boxes = np.array([a["bbox"] for a in content["annotations"]])
        boxes[:, 2:] += boxes[:, :2]
        of_boxes = np.array([sizes[a["image_id"]] for a in content["annotations"]])
        masks = Masks([a["segmentation"] for a in content["annotations"]], of_boxes, boxes)
        assert masks.known.mean() > 0.85


def test_a_mask_is_as_large_as_what_is_seen_of_the_object():
    objects = [o for i in range(40) for o in ms.scene_at(3, "train", i)[1]]
    seen = [coco_mask.area(o["segmentation"]) / (o["visible"] * o["area"]) for o in objects]
    assert len(seen) == 205 and max(seen) < 1.1 and 0.95 < np.median(seen) < 1.02


@pytest.mark.parametrize("name", sorted(ms.CATEGORIES))
def test_outlines_touch_their_box(name):
    for turn in range(4):
        mask = shape_mask(name, 200, 300, form=0.3, turn=turn)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert rows[0] <= 3 and rows[-1] >= 196 and cols[0] <= 3 and cols[-1] >= 296


@pytest.mark.parametrize("blur", [(0.4, 5.5, 6.0, 0.6), (5.0, 0.5, 0.5, 4.0), (2.0, 3.0, 2.5, 1.5)])
@pytest.mark.parametrize("box", [(30.3, 24.6, 70.2, 60.5), (40.0, 50.5, 40.25, 30.0)])
def test_edge_blur_is_the_spread_of_the_edge(box, blur):
    canvas = np.full((140, 160, 3), 20, np.float32)
    ms.paint(canvas, *ms.object_alpha("rectangle", box, blur), (220, 220, 220))
    alpha = (canvas[..., 0] - 20) / 200
    x, y, w, h = box
    cx, cy = int(x + w / 2), int(y + h / 2)
    row, col = alpha[cy] / alpha[cy, cx], alpha[:, cx] / alpha[cy, cx]
    profiles = (row[:cx], col[:cy], 1 - row[cx:], 1 - col[cy:])
    for k, (profile, start, edge) in enumerate(
        zip(profiles, (0, 0, cx, cy), (x, y, x + w, y + h), strict=True)
    ):
        weight = np.diff(profile)
        place = start + 1 + np.arange(len(weight))
        mean = (weight * place).sum() / weight.sum()
        spread = np.sqrt((weight * (place - mean) ** 2).sum() / weight.sum())
        assert abs(mean - edge) < 0.3
        assert abs(spread - blur[k]) < 0.15 * blur[k] + 0.3


def test_edge_blur_is_independent_of_size_class_and_the_other_edges(made):
    found = [a for content in made[1].values() for a in content["annotations"]]
    assert len(found) > 200
    blur = np.log([a["edge_blur"] for a in found])
    side = np.log([np.sqrt(a["bbox"][2] * a["bbox"][3]) for a in found])
    limit = 4 / np.sqrt(len(found))
    corr = np.corrcoef(np.column_stack([blur, side]).T) - np.eye(5)
    assert np.abs(corr).max() < limit
    category = np.array([a["category_id"] for a in found])
    for c in set(category.tolist()):
        own = blur[category == c]
        assert abs(own.mean() - blur.mean()) < 4 * blur.std() / np.sqrt(own.size)
    assert 0.35 < np.mean(np.exp(blur) < 0.8) < 0.55
    assert 0.35 < np.mean(np.exp(blur) > 3.4) < 0.55


@pytest.mark.parametrize("old", ['{"info": {"description": "mine"}}', "[]", "not json"])
def test_refuses_a_foreign_data_set(tmp_path, capsys, old):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "val.json").write_text(old)
    before = contents(tmp_path)
    assert main(["--out", str(tmp_path), "--train", "1", "--val", "1"]) == 2
    assert "val.json" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_refuses_other_arguments_and_foreign_images(tmp_path, capsys):
    assert main(["--out", str(tmp_path / "a"), "--train", "2", "--val", "1"]) == 0
    before = contents(tmp_path / "a")
    assert main(["--out", str(tmp_path / "a"), "--train", "3", "--val", "1"]) == 2
    assert contents(tmp_path / "a") == before
    (tmp_path / "b" / "images").mkdir(parents=True)
    photo = tmp_path / "b" / "images" / "train_000000.jpg"
    photo.write_bytes(b"mine")
    assert main(["--out", str(tmp_path / "b"), "--train", "2", "--val", "1"]) == 2
    assert photo.read_bytes() == b"mine"
    assert "train_000000.jpg" in capsys.readouterr().err


@pytest.mark.parametrize("bad", [["--seed", "-1"], ["--size", "20x20"], ["--size", "wide"]])
def test_bad_arguments(tmp_path, capsys, bad):
    assert main(["--out", str(tmp_path / "x"), *bad]) == 2
    assert capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_an_annotators_labels_spread_as_far_as_the_edges(tmp_path, made):
    """The same pictures and objects; each side is off by its blur, independent of the others."""
    exact_folder, exact = made
    out = tmp_path / "set"
    assert main(["--out", str(out), "--train", "40", "--val", "20", "--annotator"]) == 0
    for path in sorted((exact_folder / "images").iterdir()):
        assert (out / "images" / path.name).read_bytes() == path.read_bytes()
    off = []
    for split in ms.SPLITS:
        content = json.loads((out / "annotations" / f"{split}.json").read_text())
        images = {image["id"]: image for image in content["images"]}
        for mine, true in zip(content["annotations"], exact[split]["annotations"], strict=True):
            assert {**mine, "bbox": None} == {**true, "bbox": None}
            x, y, w, h = mine["bbox"]
            image = images[mine["image_id"]]
            assert w > 1 and h > 1 and x + w > 0 and y + h > 0
            assert x < image["width"] and y < image["height"]
            X, Y, W, H = true["bbox"]
            sides = np.array([x - X, y - Y, x + w - X - W, y + h - Y - H])
            off.append(sides / true["edge_blur"])
    off = np.array(off)
    limit = 4 / np.sqrt(len(off))
    assert abs(off.mean(0)).max() < limit and abs(off.std(0) - 1).max() < limit
    assert abs(np.corrcoef(off.T) - np.eye(4)).max() < 0.12 + limit
    with pytest.raises(FileExistsError, match="different data set"):
        ms.make_shapes(out, 40, 20)


def test_classes_by_colour(tmp_path):
    """Other classes, of which each has several shapes; boxes and pictures are as sound."""
    options = ["--out", str(tmp_path / "set"), "--train", "6", "--val", "2", "--seed", "7"]
    assert main([*options, "--by-colour"]) == 0
    out = tmp_path / "set"
    content = json.loads((out / "annotations" / "train.json").read_text())
    assert [c["name"] for c in content["categories"]] == list(ms.COLOURS)
    hues = {number: 60 * place for place, number in enumerate(ms.COLOURS.values())}
    far = 0
    for found in content["annotations"]:
        file = content["images"][found["image_id"] - 1]["file_name"]
        x, y, w, h = (round(v) for v in found["bbox"])
        picture = cv2.imread(str(out / "images" / file))[y : y + h, x : x + w].astype(np.float32)
        hsv = cv2.cvtColor(picture / 255, cv2.COLOR_BGR2HSV)
        near = abs((hsv[..., 0] - hues[found["category_id"]] + 180) % 360 - 180) < 35
        far += (near & (hsv[..., 1] > 0.3)).mean() < 0.2
    assert len(content["annotations"]) > 10 and far <= 0.2 * len(content["annotations"])
    assert main(options) == 2
