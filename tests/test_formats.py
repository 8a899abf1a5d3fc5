"""COCO, VOC and YOLO folders of the same data; classes and splits chosen in the config."""

import json
import random
import re

import pytest
from builders import tiny_values, write_coco, write_formats

import gfl
from gfl.build import build_dataset
from gfl.config import parse_config
from gfl.data.coco_layout import find_coco
from gfl.data.dataset import CocoDataset, DetectionDataset
from gfl.data.findings import Findings
from gfl.data.layout import find_format
from gfl.data.voc import read_voc
from gfl.data.yolo import YoloFolder
from gfl.errors import UserError

SPLITS = {"train": 6, "val": 3}
XML = "<annotation><size><width>128</width><height>96</height></size>{}</annotation>"
OBJECT = "<object><name>{}</name><bndbox>{}</bndbox>{}</object>"


def bndbox(*corners) -> str:
    names = ("xmin", "ymin", "xmax", "ymax")
    return "".join(f"<{n}>{v}</{n}>" for n, v in zip(names, corners, strict=False))


@pytest.fixture
def folders(tmp_path):
    return write_formats(tmp_path, SPLITS)


def config_of(path, format="coco", **data):
    values = tiny_values(path, epochs=1)
    values["data"] |= {"format": format, **data}
    return parse_config(values)


def dataset_of(path, format="coco", split="train", names=None, **data):
    return build_dataset(config_of(path, format, **data), split, names)


def entries(dataset) -> list:
    """What evaluation sees."""
    truth = dataset.ground_truth().dataset
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    rows = [[entry[key] for key in keys] for entry in truth["annotations"]]
    return [[i, c, [round(v, 9) for v in box], round(area, 6), k] for i, c, box, area, k in rows]


@pytest.mark.parametrize("split", ["train", "val"])
def test_three_formats_of_the_same_data_are_the_same(folders, split):
    coco, voc, yolo = (dataset_of(folders[name], name, split) for name in ("coco", "voc", "yolo"))
    assert len(coco) == SPLITS[split] and coco.report["objects"] == 2 * SPLITS[split]
    for other in (voc, yolo):
        assert other.class_names == coco.class_names == ("disc", "square")
        assert other.category_ids == coco.category_ids == (0, 1)
        assert other.image_ids.tolist() == coco.image_ids.tolist()
        assert other.sizes.tolist() == coco.sizes.tolist()
        assert entries(other) == entries(coco)
        assert other.report == coco.report and other.findings == ()
        for index in range(len(coco)):
            assert other[index].boxes.tolist() == coco[index].boxes.tolist()
            assert other[index].labels.tolist() == coco[index].labels.tolist()
            assert (other[index].image == coco[index].image).all()


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_one_epoch_trains(folders, tmp_path, format):
    outcome = gfl.train(config_of(folders[format], format), work_dir=tmp_path / "run")
    assert outcome["last"]["AP"] >= 0
    metrics, _ = gfl.evaluate(tmp_path / "run" / "best.pt", ["data.max_skipped=0.4"])
    assert metrics["AP"] == outcome["best"]["AP"]


# VOC


def write_page(folder, stem: str, *objects: str, extra: str = "") -> None:
    text = XML.format("".join(objects) + extra)
    (folder / "Annotations" / f"{stem}.xml").write_text(text)


def test_voc_pixels_count_from_one(folders):
    voc = folders["voc"]
    write_page(voc, "train_1", OBJECT.format("disc", bndbox(1, 1, 128, 96), ""))
    dataset = dataset_of(voc, "voc")
    assert dataset[0].boxes.tolist() == [[0, 0, 128, 96]]


def test_voc_difficult_objects_are_objects_and_counted(folders):
    voc = folders["voc"]
    hard = OBJECT.format("disc", bndbox(5, 5, 40, 40), "<difficult>1</difficult>")
    write_page(voc, "train_1", hard, OBJECT.format("square", bndbox(50, 5, 90, 40), ""))
    dataset = dataset_of(voc, "voc")
    assert len(dataset[0].boxes) == 2
    assert dataset.report["objects marked difficult (used as any other)"] == 1
    assert [row[4] for row in entries(dataset)[:2]] == [0, 0]


def test_voc_messy_pages(folders):
    voc = folders["voc"]
    good = OBJECT.format("disc", bndbox(5, 5, 40, 40), "")
    write_page(voc, "train_1", good, OBJECT.format("disc", bndbox(5, 5, 40), ""))
    write_page(voc, "train_2", good, OBJECT.format("", bndbox(5, 5, 40, 40), ""))
    (voc / "Annotations" / "train_3.xml").write_text("<annotation>")
    entity = '<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>'
    (voc / "Annotations" / "train_4.xml").write_text(entity)
    write_page(voc, "train_5", good, extra="<filename>other.jpg</filename>")
    with (voc / "ImageSets" / "Main" / "train.txt").open("a") as file:
        file.write("\nnowhere\n")
    dataset = dataset_of(voc, "voc")
    found = {finding.kind: finding.items for finding in dataset.findings}
    assert [item.split(":")[0] for item in found["bad_annotation_file"]] == [
        "train_3.xml", "train_4.xml", "nowhere.xml",
    ]  # fmt: skip
    assert len(found["bad_box"]) == len(found["unknown_category"]) == 1
    assert found["other_file_name"] == ("train_5.xml: says 'other.jpg'",)
    assert len(dataset) == 4
    with pytest.raises(UserError, match="data.policy.bad_annotation_file=skip"):
        dataset_of(voc, "voc", policy={"bad_annotation_file": "fail"})


def test_voc_messy_sizes_are_left_out_where_that_is_asked_for(folders):
    voc, wanted = folders["voc"], len(dataset_of(folders["voc"], "voc"))
    page = voc / "Annotations" / "train_1.xml"
    page.write_text(re.sub(r"<width>\d+", "<width>none", page.read_text()))
    assert len(dataset_of(voc, "voc")) == wanted
    dataset = dataset_of(voc, "voc", policy={"missing_size": "skip"})
    assert len(dataset) == wanted - 1
    assert dataset.report["images without a legible size left out"] == 1


def test_voc_file_names_do_not_leave_the_folder(folders):
    voc = folders["voc"]
    (voc / "secret.png").write_bytes((voc / "JPEGImages" / "train_1.png").read_bytes())
    good = OBJECT.format("disc", bndbox(5, 5, 40, 40), "")
    write_page(voc, "train_1", good, extra="<filename>../secret.png</filename>")
    with pytest.raises(UserError, match="outside their image folder"):
        dataset_of(voc, "voc")


def test_voc_without_lists_is_one_set(folders):
    voc = folders["voc"]
    for path in (voc / "ImageSets" / "Main").iterdir():
        path.unlink()
    assert len(dataset_of(voc, "voc")) == 9
    with pytest.raises(UserError, match="no val in ImageSets/Main.*data.val_fraction=0.1"):
        dataset_of(voc, "voc", "val")
    parts = [dataset_of(voc, "voc", split, val_fraction=0.3) for split in ("train", "val")]
    assert [len(part) for part in parts] == [6, 3]
    assert sorted([*parts[0].image_ids, *parts[1].image_ids]) == list(range(1, 10))


def test_voc_that_lacks_a_trained_class_has_no_objects_of_it(folders):
    """A VOC folder does not say which classes there are, only those of its objects."""
    voc, trained = folders["voc"], ("disc", "hexagon", "square")
    dataset = dataset_of(voc, "voc", "val", names=trained)
    assert dataset.class_names == trained and len(set(dataset.category_ids)) == 3
    assert set(dataset.objects()[1].tolist()) == {0, 2}
    names = {c["name"] for c in dataset.ground_truth().dataset["categories"]}
    assert names == set(trained)
    chosen = dataset_of(voc, "voc", "val", names=("hexagon", "disc"), classes=["hexagon", "disc"])
    assert set(chosen.objects()[1].tolist()) == {1}
    with pytest.raises(UserError, match=r"only here \['square'\]"):
        dataset_of(voc, "voc", "val", names=("disc", "hexagon"))
    with pytest.raises(UserError, match="data.classes names 'disk'"):  # nothing is known of it
        dataset_of(voc, "voc", classes=["disk"])


def test_voc_trainval_is_the_list_of_train_where_there_is_no_other(folders):
    lists = folders["voc"] / "ImageSets" / "Main"
    names = (lists / "train.txt").read_text().split()
    (lists / "trainval.txt").write_text("\n".join(names[:3]))
    assert len(dataset_of(folders["voc"], "voc")) == len(names) > 3
    for split in ("train", "val"):
        (lists / f"{split}.txt").unlink()
    assert len(dataset_of(folders["voc"], "voc")) == 3
    parts = [dataset_of(folders["voc"], "voc", s, val_fraction=0.3) for s in ("train", "val")]
    assert sum(len(part) for part in parts) == 3


def test_voc_train_without_a_list_beside_val_is_refused(folders):
    (folders["voc"] / "ImageSets" / "Main" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"no train in ImageSets/Main, only \['val'\]"):
        dataset_of(folders["voc"], "voc")


# YOLO


def rewrite(folder, text: str):
    (folder / "data.yaml").write_text(text)
    return folder


def test_yolo_entries_may_be_lists_of_files_and_of_folders(folders):
    yolo = folders["yolo"]
    (yolo / "train.txt").write_text("./images/train/train_2.png\nimages/train/train_1.png\n")
    names = "names: {0: disc, 1: square}\n"
    rewrite(yolo, names + "train: train.txt\n")
    assert len(dataset_of(yolo, "yolo")) == 2
    rewrite(yolo, names + "train: [train.txt, images/val]\n")
    assert len(dataset_of(yolo, "yolo")) == 5
    rewrite(yolo, names + f"path: {yolo}\ntrain: images\nnc: 2\n")
    assert len(dataset_of(yolo, "yolo")) == 9
    rewrite(yolo, names + "train: ../images/train\n")  # as exporters write it
    assert len(dataset_of(yolo / "data.yaml", "yolo")) == 6
    (yolo / "sub").mkdir()
    rewrite(yolo, names + "path: images\ntrain: train\n")
    assert dataset_of_fails(yolo) == "data.train has no object at all"


def dataset_of_fails(yolo) -> str:
    with pytest.raises(UserError) as caught:
        dataset_of(yolo, "yolo")
    return str(caught.value).split(" (")[0]


def test_yolo_rows(folders):
    yolo = folders["yolo"]
    label = yolo / "labels" / "train" / "train_1.txt"
    rows = [
        "0 0.5 0.5 0.25 0.5",
        "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75",  # four corners
        "1 0.5 0.5 0.25",
        "0 0.5 0.5 0.25 0.5 0.9",  # a score is no polygon
        "7 0.5 0.5 0.1 0.1",
        "1 nan 0.5 0.1 0.1",
        "x 0.5 0.5 0.1 0.1",
        "0 64 48 32 48",
    ]
    label.write_text("\n".join(rows) + "\n\n")
    dataset = dataset_of(yolo, "yolo")
    assert dataset.sizes[0].tolist() == [96, 128]
    assert dataset[0].boxes.tolist() == [[48, 24, 80, 72], [32, 24, 64, 72]]
    counts = {finding.kind: finding.count for finding in dataset.findings}
    assert counts == {
        "unknown_category": 2, "bad_box": 2, "not_finite_box": 1, "absurd_box": 1, "polygon": 1,
    }  # fmt: skip


def test_yolo_rows_with_keypoints_begin_with_their_box(folders):
    yolo = folders["yolo"]
    text = (yolo / "data.yaml").read_text()
    rewrite(yolo, text + "kpt_shape: [4, 2]\n")
    label = yolo / "labels" / "train" / "train_1.txt"
    label.write_text("0 0.5 0.5 0.25 0.5 0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9\n")
    assert dataset_of(yolo, "yolo")[0].boxes.tolist() == [[48, 24, 80, 72]]


def test_an_empty_yolo_entry_is_none(folders):
    """As a folder it would be the root, with the images of all splits."""
    yolo = rewrite(folders["yolo"], "names: [disc, square]\ntrain: images/train\nval: ''\n")
    with pytest.raises(UserError, match="no val in data.yaml"):
        dataset_of(yolo, "yolo", "val")


def test_yolo_image_without_labels_is_background(folders):
    (folders["yolo"] / "labels" / "train" / "train_1.txt").unlink()
    dataset = dataset_of(folders["yolo"], "yolo")
    assert len(dataset) == 6 and len(dataset[0].boxes) == 0
    assert dataset.report["images without label file (background)"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [a, a]\ntrain: images", "has a name twice"),
        ("names: [yes, no]\ntrain: images", "class 0 is named True: write text, in quotes"),
        ("names: [a, b]\nnc: 3\ntrain: images", "nc is 3, but names has 2 classes"),
        ("names: 3\ntrain: images", "expected the list of class names"),
        ("names: {x: a}\ntrain: images", "has the key 'x'"),
        ("names: [a]\nnames: [b]\ntrain: images", "key 'names' is there twice, on line 1 and on"),
        ("names: [a]\ntrain: nowhere", "no folder or list within"),
        ("names: [a]\ntrain: /", "no folder or list within"),
        ("names: [a]\ntrain: {a: b}", "expected a folder or a .txt list"),
        ("names: [a]\ntrain: labels", "has no image"),
        ("- a", "no keys and values"),
        ("a: !!python/name:os.system", "not valid YAML"),
        ("a: [", "not valid YAML"),
    ],
)
def test_yolo_file_that_is_wrong(folders, text, words):
    with pytest.raises(UserError) as caught:
        dataset_of(rewrite(folders["yolo"], text), "yolo")
    assert words in str(caught.value) and "data.yaml" in str(caught.value)


def test_yolo_lists_do_not_leave_the_folder(folders, tmp_path):
    yolo = folders["yolo"]
    outside = tmp_path / "secret.png"
    outside.write_bytes((yolo / "images" / "val" / "val_7.png").read_bytes())
    for line in ("../secret.png", str(outside), "./../secret.png"):
        (yolo / "train.txt").write_text(f"{line}\nimages/train/train_1.png\n")
        rewrite(yolo, "names: [disc, square]\ntrain: train.txt\n")
        with pytest.raises(UserError, match="outside their image folder"):
            dataset_of(yolo, "yolo")
    findings = Findings({"unsafe_path": "skip"})
    listing = YoloFolder(yolo).read("train", findings)
    assert len(DetectionDataset([listing], findings=findings)) == 1
    label = yolo / "labels" / "train" / "train_1.txt"
    label.unlink()
    label.symlink_to(outside)
    rewrite(yolo, "names: [disc, square]\ntrain: images\n")
    with pytest.raises(UserError, match="outside their image folder"):
        dataset_of(yolo, "yolo")


# Classes


def test_classes_are_chosen_by_name_in_the_order_given(folders):
    for format in ("coco", "voc", "yolo"):
        train = dataset_of(folders[format], format, classes=["square", "disc"])
        assert train.class_names == ("square", "disc") and train.category_ids == (1, 0)
        dataset = dataset_of(folders[format], format, classes=["square"])
        assert dataset.class_names == ("square",) and dataset.category_ids == (1,)
        assert dataset.report["objects"] == 6 and len(dataset) == 6
        assert dataset.report["boxes of classes that data.classes leaves out"] == 6
        assert {row[1] for row in entries(dataset)} == {1}


def test_unknown_class_names_the_nearest(folders):
    with pytest.raises(UserError, match=r"'squre', which .*; did you mean 'square'\?.*disc, sq"):
        dataset_of(folders["coco"], classes=["squre"])
    wrong_ones = (("disc", "expected a list"), ([], "at least 1"), (["a", "a"], "twice"))
    for wrong, words in wrong_ones:
        with pytest.raises(UserError, match=words):
            config_of(folders["coco"], classes=wrong)


# Splits


def names_of(dataset) -> list[str]:
    return sorted(image["file_name"] for image in dataset.ground_truth().dataset["images"])


def test_fraction_divides_the_same_way_whatever_the_order(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 40})
    path = folder / "annotations" / "train.json"
    found = []
    for _ in range(3):
        parts = [dataset_of(folder, split=s, val_fraction=0.25) for s in ("train", "val")]
        found.append([names_of(part) for part in parts])
        content = json.loads(path.read_text())
        random.Random(0).shuffle(content["images"])
        path.write_text(json.dumps(content))
    assert found[0] == found[1] == found[2]
    assert [len(part) for part in found[0]] == [30, 10]
    assert set(found[0][0]) & set(found[0][1]) == set()
    other = dataset_of(folder, split="val", val_fraction=0.25, split_seed=1)
    assert names_of(other) != found[0][1]
    # By sha256sum of "0/train_1.png" and so on, the ten smallest: it must hold on every machine.
    first = ["train_1.png", "train_12.png", "train_14.png"]
    assert [name.rsplit("/")[-1] for name in found[0][1]][:3] == first
    [finding] = dataset_of(folder, split="val", val_fraction=0.25).findings
    assert "10 of 40 images are val (data.val_fraction 0.25, data.split_seed 0)" in finding.items[0]


def test_fraction_beside_a_val_is_refused(folders):
    for format in ("coco", "voc", "yolo"):
        with pytest.raises(UserError, match="there is a val of its own"):
            dataset_of(folders[format], format, val_fraction=0.1)
    source = {"images": "a", "annotations": "b"}
    with pytest.raises(UserError, match="val and val_fraction are both set"):
        config_of(folders["coco"], val=source, val_fraction=0.1)
    with pytest.raises(UserError, match="format voc takes path alone, but val is set too"):
        config_of(folders["voc"], "voc", val=source)


def test_fraction_of_a_single_image_is_refused(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 1})
    with pytest.raises(UserError, match="has 1 image: data.val_fraction needs two"):
        dataset_of(folder, val_fraction=0.5)


def test_overfit_trains_and_evaluates_on_the_same_few(tmp_path):
    """Also where there is a val, and in every format; images with objects come first."""
    for format, folder in write_formats(tmp_path / "sets", {"train": 9, "val": 2}).items():
        train, val = (dataset_of(folder, format, split, overfit=4) for split in ("train", "val"))
        assert names_of(train) == names_of(val) and len(train) == 4
        assert all("val_" not in name for name in names_of(val))
        [finding] = train.findings
        assert "4 of 9 images are train and val alike" in finding.items[0]
    folder = write_coco(tmp_path / "empty", {"train": 9}, empty_every=3)
    assert dataset_of(folder, overfit=6).report["images without objects (kept)"] == 0
    assert len(dataset_of(folder, overfit=100)) == 9
    source = {"images": "a", "annotations": "b"}
    with pytest.raises(UserError, match="overfit and val are both set, but overfit needs no val"):
        config_of(folder, val=source, overfit=4)
    with pytest.raises(UserError, match="overfit and val_fraction are both set"):
        config_of(folder, val_fraction=0.1, overfit=4)


def test_a_voc_page_that_names_another_picture_goes_by_its_stem(folders):
    """After a renaming the old name may be that of a picture of another split."""
    voc = folders["voc"]
    good = OBJECT.format("disc", bndbox(5, 5, 40, 40), "")
    write_page(voc, "train_1", good, extra="<filename>val_7.png</filename>")
    names = sorted(path.stem for path in (voc / "JPEGImages").iterdir())
    assert any(name.startswith("val_") for name in names)
    other = next(name for name in names if name.startswith("val_"))
    write_page(voc, "train_1", good, extra=f"<filename>{other}.png</filename>")
    data = dataset_of(voc, "voc")
    files = [data.files_of(int(i))[0] for i in data.image_ids]
    assert any(file.endswith("train_1.png") for file in files)
    assert not any(other in file for file in files)


def test_yolo_lists_with_backslashes_keep_their_boxes(folders):
    yolo = folders["yolo"]
    want = len(dataset_of(yolo, "yolo").objects()[0])
    images = sorted((yolo / "images" / "train").iterdir())
    lines = [f"images\\train\\{image.name}" for image in images]
    (yolo / "train.txt").write_text("\n".join(lines))
    text = (yolo / "data.yaml").read_text()
    import re

    (yolo / "data.yaml").write_text(re.sub(r"(?m)^train:.*$", "train: train.txt", text))
    assert len(dataset_of(yolo, "yolo").objects()[0]) == want > 0


def test_each_part_has_an_image_whatever_the_fraction(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 4})
    for fraction, images in ((0.1, 1), (0.9, 3)):
        assert len(dataset_of(folder, split="val", val_fraction=fraction)) == images
        assert len(dataset_of(folder, split="train", val_fraction=fraction)) == 4 - images


def test_yolo_labels_take_the_place_of_the_last_folder_named_images(folders):
    yolo = folders["yolo"]
    (yolo / "images" / "more").mkdir()
    for kind in ("images", "labels"):
        (yolo / kind / "train").rename(yolo / "images" / "more" / kind)
    rewrite(yolo, "names: [disc, square]\ntrain: images/more/images\n")
    assert len(dataset_of(yolo, "yolo")[0].boxes) == 2


# Images that are lost with their annotation file


def lose_annotations(folders, format: str, count: int) -> None:
    """Cut off the annotation files of the first images of train."""
    place = {"voc": "Annotations", "yolo": "labels/train"}[format]
    for path in sorted((folders[format] / place).glob("train_*"))[:count]:
        path.write_bytes(b"\xff<annotation>")


@pytest.mark.parametrize("format", ["voc", "yolo"])
def test_images_whose_annotation_file_is_lost_count_as_left_out(folders, format):
    lose_annotations(folders, format, 4)
    with pytest.raises(UserError, match=r"4 of 6 images of .* data\.max_skipped"):
        dataset_of(folders[format], format)
    with pytest.raises(UserError, match=r"4 of 6 images"):
        dataset_of(folders[format], format, classes=["disc"])
    assert len(dataset_of(folders[format], format, max_skipped=0.7)) == 2


def test_images_whose_annotation_file_is_missing_count_as_left_out(folders):
    names = folders["voc"] / "ImageSets" / "Main" / "train.txt"
    names.write_text(names.read_text() + "".join(f"nowhere_{i}\n" for i in range(7)))
    with pytest.raises(UserError, match=r"7 of 13 images of .* data\.max_skipped"):
        dataset_of(folders["voc"], "voc")


def test_parts_of_a_set_have_its_share_of_lost_images(folders):
    """9 images of which 3 are left, 2 for train and 1 for val."""
    voc = folders["voc"]
    for path in (voc / "ImageSets" / "Main").iterdir():
        path.unlink()
    lose_annotations(folders, "voc", 6)
    for part, said in (("train", "4 of 6"), ("val", "2 of 3")):
        with pytest.raises(UserError, match=f"{said} images"):
            dataset_of(voc, "voc", part, val_fraction=0.34)
        assert len(dataset_of(voc, "voc", part, val_fraction=0.34, max_skipped=0.7)) > 0
    with pytest.raises(UserError, match="4 of 6 images"):
        dataset_of(voc, "voc", overfit=2)


# Links and places


def test_yolo_links_lead_to_each_folder_once(folders):
    """Links come last: labels lie where the folder itself is."""
    images = folders["yolo"] / "images" / "train"
    (images / "loop").symlink_to(".")
    (images / "a_link").symlink_to("real")
    (images / "real").mkdir()
    (folders["yolo"] / "labels" / "train" / "real").mkdir()
    for kind, ending in (("images", "png"), ("labels", "txt")):
        place = folders["yolo"] / kind / "train"
        (place / f"train_1.{ending}").rename(place / "real" / f"train_1.{ending}")
    dataset = dataset_of(folders["yolo"], "yolo")
    assert len(dataset) == 6 and dataset.findings == ()
    assert dataset.report["objects"] == 12
    assert sum("a_link" in name for name in names_of(dataset)) == 0


@pytest.mark.parametrize("line", [".", "./", "\\"])
def test_yolo_line_that_is_a_folder_is_a_missing_image(folders, line):
    yolo = rewrite(folders["yolo"], "names: [disc, square]\ntrain: train.txt\n")
    (yolo / "train.txt").write_text(f"{line}\nimages/train/train_1.png\n")
    dataset = dataset_of(yolo, "yolo", policy={"unsafe_path": "skip"})
    assert len(dataset) == 1 and len(dataset[0].boxes) == 2


def test_yolo_line_that_is_the_root_of_all_is_outside(folders):
    yolo = rewrite(folders["yolo"], "names: [disc, square]\ntrain: train.txt\n")
    (yolo / "train.txt").write_text("/\nimages/train/train_1.png\n")
    with pytest.raises(UserError, match="outside their image folder"):
        dataset_of(yolo, "yolo")


def read_at(place, kind: str, folders) -> None:
    """Read a place as a setting of that kind."""
    {
        "auto": lambda: find_format(place),
        "coco": lambda: find_coco(place, "train"),
        "images": lambda: CocoDataset([(place, folders["coco"] / "annotations" / "train.json")]),
        "json": lambda: CocoDataset([(folders["coco"] / "images", place)]),
        "voc": lambda: read_voc(place, "train", Findings()),
        "yolo": lambda: YoloFolder(place).read("train", Findings()),
    }[kind]()


@pytest.mark.parametrize("kind", ["auto", "coco", "images", "json", "voc", "yolo"])
def test_a_place_whose_name_is_too_long_is_refused(folders, kind):
    with pytest.raises(UserError, match="x{300}"):
        read_at(folders["coco"] / ("x" * 300), kind, folders)


@pytest.mark.parametrize(
    ("kind", "format", "closed", "words"),
    [
        ("auto", "voc", "", "cannot read folder .*: Permission denied"),
        ("coco", "coco", "", "no COCO annotations"),
        ("images", "coco", "images", "none of the 6 images"),
        ("voc", "voc", "", "has no Annotations"),
        ("voc", "voc", "Annotations", "cannot read folder .*Annotations: Permission denied"),
        ("voc", "voc", "JPEGImages", "cannot read folder .*JPEGImages: Permission denied"),
        ("yolo", "yolo", "", "cannot read .*data.yaml: Permission denied"),
        ("yolo", "yolo", "images/train", "cannot read folder .*train: Permission denied"),
    ],
)
def test_a_folder_that_may_not_be_read_is_refused(
    folders, obeys_permissions, kind, format, closed, words
):
    closed = folders[format] / closed
    closed.chmod(0)
    try:
        with pytest.raises(UserError, match=words):
            read_at(closed if kind == "images" else folders[format], kind, folders)
    finally:
        closed.chmod(0o700)
