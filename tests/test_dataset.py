"""COCO files to samples: class mapping, cleaning, refusals, images, ground truth, memory."""

import contextlib
import copy
import io
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from builders import write_coco
from conftest import assert_close
from PIL import Image
from pycocotools.cocoeval import COCOeval

from gfl.data.dataset import CocoDataset, read_image
from gfl.data.findings import Findings
from gfl.errors import UserError

SIZE = (40, 60)
CATEGORIES = [{"id": 3, "name": "square"}, {"id": 7, "name": "disc"}]
CLEAN = {"images": 2, "objects": 2, "crowd regions": 0, "images without objects (kept)": 0}


@pytest.fixture
def folder(tmp_path):
    """Two black pictures of SIZE; the json files come from `write`."""
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        cv2.imwrite(str(tmp_path / "images" / name), np.zeros((*SIZE, 3), np.uint8))
    return tmp_path


def content(*annotations: dict, categories=CATEGORIES) -> dict:
    """A COCO dict of a.png (id 10) and b.png (id 20); default: one object in each."""
    first = {"id": 1, "image_id": 10, "category_id": 7, "bbox": [4, 6, 10, 12]}
    second = {"id": 2, "image_id": 20, "category_id": 3, "bbox": [1, 2, 3, 4]}
    return {
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in ((10, "a.png"), (20, "b.png"))
        ],
        "annotations": copy.deepcopy(list(annotations) or [first, second]),
        "categories": copy.deepcopy(categories),
    }


def write(folder: Path, values, name: str = "file.json") -> tuple[Path, Path]:
    """A source; text and bytes are written as they are."""
    if not isinstance(values, bytes):
        values = json.dumps(values).encode()
    (folder / name).write_bytes(values)
    return folder / "images", folder / name


def load(folder: Path, values=None, class_names=None, **policy) -> CocoDataset:
    """The data set of one file."""
    source = write(folder, content() if values is None else values)
    return CocoDataset([source], class_names, Findings(policy))


def refusal(folder: Path, values, class_names=None, **policy) -> str:
    """The message with which a file is refused."""
    with pytest.raises(UserError) as caught:
        load(folder, values, class_names, **policy)
    return str(caught.value)


def truth_of(dataset: CocoDataset):
    """Its ground truth, without what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        return dataset.ground_truth()


def ap_of_perfect_detections(dataset: CocoDataset) -> float:
    """AP of the ground truth's own boxes; 1 where pycocotools reads the file as it is meant."""
    truth = truth_of(dataset)
    with contextlib.redirect_stdout(io.StringIO()):
        results = truth.loadRes(
            [
                {"score": 0.9, **{key: entry[key] for key in ("image_id", "category_id", "bbox")}}
                for entry in truth.dataset["annotations"]
            ]
        )
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[0]


# Categories


@pytest.mark.parametrize(
    "ids",
    [(3, 7, 90), (0, 1, 2), (1, 2, 3), (91, 5, 40)],
    ids=["gaps", "from 0", "from 1", "no order"],
)
def test_category_ids_map_to_labels_in_file_order(folder, ids):
    categories = [{"id": number, "name": name} for number, name in zip(ids, "xyz", strict=True)]
    annotations = [
        {"image_id": 10, "category_id": ids[label], "bbox": [label, 0, 5, 5]} for label in (2, 0, 1)
    ]
    dataset = load(folder, content(*annotations, categories=categories))
    assert dataset.class_names == ("x", "y", "z")
    assert dataset.category_ids == ids
    sample = dataset[0]
    assert sample.labels.tolist() == [2, 0, 1]
    assert sample.labels.dtype == np.int64
    assert sample.boxes[:, 0].tolist() == [2, 0, 1]


def test_other_ids_and_order_of_the_same_names_are_matched_by_name(folder):
    train = load(folder)
    categories = [{"id": 0, "name": "disc"}, {"id": 44, "name": "square"}]
    annotation = {"image_id": 10, "category_id": 44, "bbox": [0, 0, 5, 5]}
    values = content(annotation, {**annotation, "category_id": 0}, categories=categories)
    val = load(folder, values, train.class_names)
    assert val.class_names == train.class_names == ("square", "disc")
    assert val.category_ids == (44, 0)
    assert val[0].labels.tolist() == [0, 1]


def test_different_names_stop_with_both(folder):
    categories = [{"id": 3, "name": "Square"}, {"id": 7, "name": "disc"}]
    message = refusal(folder, content(categories=categories), ("square", "disc"))
    assert "file.json differ from the training classes" in message
    assert "only here ['Square'], missing here ['square']" in message
    message = refusal(folder, content(categories=CATEGORIES[:1]), ("square", "disc"))
    assert "only here [], missing here ['disc']" in message
    assert "['square '], missing here ['square']" in refusal(
        folder, content(categories=[{"id": 3, "name": "square "}]), ("square",)
    )


def test_many_different_names_are_named_in_part(folder):
    message = refusal(folder, content(), [f"class{i:02d}" for i in range(80)])
    assert "only here ['disc', 'square'], missing here ['class00', 'class01'" in message
    assert "'class09', ... 70 more]" in message and "class10" not in message
    categories = [{"id": i, "name": f"class{i:02d}"} for i in range(80)]
    annotation = {"image_id": 10, "category_id": 99, "bbox": [0, 0, 5, 5]}
    message = refusal(folder, content(annotation, categories=categories))
    assert "9: 'class09'} and 70 more" in message and "class10" not in message


def test_class_list_that_is_a_plain_string_stops(folder):
    message = refusal(folder, content(), "square")
    assert "only here ['disc', 'square']" in message


@pytest.mark.parametrize(
    ("second", "words"),
    [({"id": 3, "name": "disc"}, "category id 3"), ({"id": 7, "name": "square"}, "'square'")],
)
def test_category_listed_twice(folder, second, words):
    message = refusal(folder, content(categories=[CATEGORIES[0], second]))
    assert f"{words} occurs twice" in message
    assert "file.json" in message


# Several files


def test_two_sources_are_concatenated_and_matched_by_name(folder):
    (folder / "more" / "images").mkdir(parents=True)
    picture = np.full((20, 30, 3), 9, np.uint8)
    cv2.imwrite(str(folder / "more" / "images" / "c.png"), picture)
    other = {
        "images": [{"id": 30, "file_name": "c.png", "height": 20, "width": 30}],
        "annotations": [{"id": 1, "image_id": 30, "category_id": 3, "bbox": [5, 5, 9, 9]}],
        "categories": [{"id": 3, "name": "disc"}, {"id": 8, "name": "square"}],
    }
    dataset = CocoDataset([write(folder, content()), write(folder / "more", other)])
    assert len(dataset) == 3
    assert dataset.image_ids.tolist() == [10, 20, 30]
    assert dataset.sizes.tolist() == [[40, 60], [40, 60], [20, 30]]
    assert dataset.category_ids == (3, 7)
    assert [dataset[i].labels.tolist() for i in range(3)] == [[1], [0], [1]]
    assert dataset[2].image[0, 0].tolist() == [9, 9, 9]
    assert dataset.report["objects"] == 3
    truth = truth_of(dataset)
    assert [entry["category_id"] for entry in truth.dataset["annotations"]] == [7, 3, 7]
    assert [entry["id"] for entry in truth.dataset["annotations"]] == [1, 2, 3]
    assert truth.dataset["categories"] == CATEGORIES
    assert ap_of_perfect_detections(dataset) == pytest.approx(1)


def test_merged_ground_truth_needs_distinct_image_ids(folder):
    sources = [write(folder, content(), name) for name in ("x.json", "y.json")]
    dataset = CocoDataset(sources)
    assert len(dataset) == 4  # fine for training
    with pytest.raises(UserError, match="share image ids"):
        dataset.ground_truth()


def test_merged_ground_truth_leaves_unknown_categories_out(folder):
    values = content()
    values["annotations"].append({"image_id": 10, "category_id": 99, "bbox": [0, 0, 5, 5]})
    other = content({"image_id": 11, "category_id": 3, "bbox": [0, 0, 5, 5]})
    other["images"] = [{**other["images"][0], "id": 11}]
    dataset = CocoDataset([write(folder, values, "x.json"), write(folder, other, "y.json")])
    assert len(truth_of(dataset).anns) == 3


# Cleaning


def test_clean_file(folder):
    dataset = load(folder)
    assert dict(dataset.report) == CLEAN
    sample = dataset[0]
    assert sample.boxes.tolist() == [[4, 6, 14, 18]]
    assert sample.boxes.dtype == np.float32
    assert sample.labels.tolist() == [1]
    assert sample.ignore_boxes.shape == (0, 4)
    assert sample.image.shape == (*SIZE, 3)
    assert sample.image_id == 10


def test_images_without_objects_are_kept_and_counted(folder):
    dataset = load(folder, content({"image_id": 20, "category_id": 3, "bbox": [0, 0, 5, 5]}))
    assert len(dataset) == 2
    assert dataset.report["images without objects (kept)"] == 1
    assert dataset[0].boxes.shape == (0, 4)
    assert dataset[0].labels.shape == (0,)
    assert dataset[1].boxes.shape == (1, 4)


def test_no_annotation_at_all_is_legal(folder):
    dataset = load(folder, {**content(), "annotations": []})
    assert dict(dataset.report) == {**CLEAN, "objects": 0, "images without objects (kept)": 2}
    assert dataset[1].boxes.shape == dataset[1].ignore_boxes.shape == (0, 4)


def test_images_without_objects_of_the_builder(tmp_path):
    write_coco(tmp_path / "set", {"train": 6}, empty_every=3)
    source = (tmp_path / "set" / "images", tmp_path / "set" / "annotations" / "train.json")
    dataset = CocoDataset([source])
    assert [len(dataset[i].boxes) for i in range(6)] == [2, 2, 0, 2, 2, 0]
    assert dataset.report["images without objects (kept)"] == 2


def test_crowd_goes_to_the_ignore_boxes(folder):
    crowd = {"image_id": 10, "category_id": 3, "bbox": [0, 0, 20, 20], "iscrowd": 1}
    thing = {"image_id": 10, "category_id": 7, "bbox": [30, 5, 8, 9], "iscrowd": 0}
    dataset = load(folder, content(crowd, thing, {**crowd, "bbox": [40, 20, 10, 10]}))
    sample = dataset[0]
    assert sample.boxes.tolist() == [[30, 5, 38, 14]]
    assert sample.labels.tolist() == [1]
    assert sample.ignore_boxes.tolist() == [[0, 0, 20, 20], [40, 20, 50, 30]]
    assert dataset.report["crowd regions"] == 2
    assert dataset.report["objects"] == 1


def test_boxes_are_clipped_dropped_and_counted(folder):
    bad = {
        "over the right bottom corner": [50, 30, 100, 100],
        "over the left top corner": [-5, -6, 10, 10],
        "half a pixel over, not worth a count": [0, 0, 60.5, 40],
        "exactly 1 pixel": [10, 10, 1, 1],
        "under 1 pixel": [10, 10, 0.99, 20],
        "under 1 pixel after clipping": [59.5, 10, 20, 20],
        "outside": [70, 10, 20, 20],
        "negative width": [30, 10, -10, 20],
        "not a number": [float("nan"), 10, 20, 20],
        "infinite": [10, 10, float("inf"), 20],
    }
    annotations = [{"image_id": 10, "category_id": 3, "bbox": box} for box in bad.values()]
    dataset = load(folder, content(*annotations))
    kept = [[50, 30, 60, 40], [0, 0, 5, 4], [0, 0, 60, 40], [10, 10, 11, 11]]
    assert dataset[0].boxes.tolist() == kept
    assert dataset[0].labels.tolist() == [0] * 4
    assert dataset.report["boxes clipped to their image"] == 2
    assert dataset.report["boxes under 1 pixel left out"] == 2
    assert dataset.report["boxes wholly outside their image left out"] == 1
    assert dataset.report["boxes without positive width and height left out"] == 1
    assert dataset.report["boxes that are not finite left out"] == 2
    assert dataset.report["objects"] == 4


def test_boxes_of_unknown_categories_and_images_are_counted(folder):
    known = {"image_id": 10, "category_id": 3, "bbox": [0, 0, 5, 5]}
    other = {**known, "bbox": [1, 0, 5, 5]}
    dataset = load(
        folder,
        content(known, {**known, "category_id": 99}, {**known, "image_id": 99}, other),
    )
    assert dataset.report["boxes of unknown categories left out"] == 1
    assert dataset.report["boxes of unknown images left out"] == 1
    assert len(dataset[0].boxes) == 2


@pytest.mark.parametrize("key", ["category_id", "image_id"])
def test_no_annotation_that_maps_stops(folder, key):
    values = content()
    for annotation in values["annotations"]:
        annotation[key] = 99
    message = refusal(folder, values)
    assert "file.json: none of its 2 annotations" in message
    assert "left out': 2" in message
    assert "{3: 'square', 7: 'disc'}" in message


# Files that are wrong


def test_missing_files_are_named(folder):
    images, annotations = write(folder, content())
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist: set data\.path"):
        CocoDataset([(folder / "nowhere", annotations)])
    with pytest.raises(UserError, match=r"cannot read annotations .*nowhere\.json: No such file"):
        CocoDataset([(images, folder / "nowhere.json")])
    (images / "b.png").unlink()
    dataset = CocoDataset([(images, annotations)])
    assert dataset.image_ids.tolist() == [10]
    assert dataset.report["images whose file is missing left out"] == 1
    with pytest.raises(UserError, match=r"1 images whose file is missing, .*images/b\.png"):
        CocoDataset([(images, annotations)], findings=Findings({"missing_image": "fail"}))
    (images / "a.png").unlink()
    with pytest.raises(UserError, match=r"none of the 2 images .* The first would be .*/a\.png"):
        CocoDataset([(images, annotations)])


def test_image_that_vanishes_after_loading(folder):
    dataset = load(folder)
    (folder / "images" / "b.png").unlink()
    assert dataset[0].image_id == 10
    with pytest.raises(UserError, match=r"cannot read image .*b\.png: No such file"):
        dataset[1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: b"{", "is not valid JSON"),
        (lambda v: b"\xff\xfe{", "is not valid JSON"),
        (lambda v: b"", "is not valid JSON"),
        (lambda v: [1, 2], "has no list 'images'"),
        (lambda v: "text", "has no list 'images'"),
        (lambda v: {**v, "images": {}}, "has no list 'images'"),
        (lambda v: {"images": v["images"]}, "has no list 'annotations'"),
        (lambda v: {**v, "categories": None}, "has no list 'categories'"),
        (lambda v: {**v, "images": [{"id": 1}]}, "images[0] lacks file_name"),
        (lambda v: {**v, "images": v["images"] + [3]}, "images[2] lacks id, file_name"),
        (lambda v: {**v, "annotations": [{"image_id": 10}]}, "none of its 1 annotations can"),
        (lambda v: b"[" * 100_000, "is not valid JSON"),
        (lambda v: {**v, "categories": [{"id": 3}]}, "categories[0] lacks name"),
        (lambda v: {**v, "categories": [], "annotations": []}, "no categories or no images"),
        (lambda v: {**v, "images": [], "annotations": []}, "no categories or no images"),
    ],
)
def test_json_that_is_not_coco(folder, change, words):
    message = refusal(folder, change(content()))
    assert "file.json" in message
    assert words in message


@pytest.mark.parametrize("box", [[1, 2, 3], [1, 2, 3, 4, 5], [], "1234", None, [1, 2, "x", 4]])
def test_messy_bbox_that_is_not_four_numbers(folder, box):
    values = content()
    values["annotations"][1]["bbox"] = box
    dataset = load(folder, values)
    assert dataset.report["boxes that are not four numbers left out"] == 1
    assert len(dataset[0].boxes) == 1 and len(dataset[1].boxes) == 0
    message = refusal(folder, values, bad_box="fail")
    assert f"file.json: annotations[1] (b.png): bbox is {box!r}, expected four" in message


def test_image_id_listed_twice(folder):
    values = content()
    values["images"][1]["id"] = 10
    message = refusal(folder, values)
    assert "file.json" in message
    assert "image id 10" in message


@pytest.mark.parametrize("index", [-1, 2])
def test_index_beyond_the_ends_is_an_error(folder, index):
    with pytest.raises(IndexError):
        load(folder)[index]


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("images", "id", "a"),
        ("images", "id", 2**70),
        ("images", "id", True),
        ("images", "file_name", None),
        ("images", "file_name", ""),
        ("categories", "name", ["square"]),
        ("categories", "id", 1.5),
    ],
)
def test_value_of_a_wrong_type_is_no_traceback(folder, part, key, value):
    values = content()
    if key == "id":
        values["annotations"][0]["image_id"] = value
    values[part][0][key] = value
    message = refusal(folder, values)
    assert "file.json" in message
    assert repr(value) in message


@pytest.mark.parametrize(
    ("part", "key", "value", "kind"),
    [
        ("images", "width", None, "missing_size"),
        ("images", "height", "40", "missing_size"),
        ("images", "height", -1, "missing_size"),
        ("images", "id", "10", "number_as_text"),
        ("annotations", "category_id", "7", "number_as_text"),
        ("annotations", "bbox", ["4", 6, 10, 12], "number_as_text"),
        ("annotations", "iscrowd", "0", "number_as_text"),
        ("annotations", "area", "120.0", "number_as_text"),
    ],
)
def test_messy_value_that_is_plain_is_repaired(folder, part, key, value, kind):
    values = content()
    values[part][0][key] = value
    dataset = load(folder, values)
    assert [(finding.kind, finding.count) for finding in dataset.findings] == [(kind, 1)]
    want = load(folder)
    assert dataset.sizes.tolist() == want.sizes.tolist()
    for index in range(2):
        assert dataset[index].boxes.tolist() == want[index].boxes.tolist()
        assert dataset[index].labels.tolist() == want[index].labels.tolist()
    assert repr(value)[:9] in refusal(folder, values, **{kind: "fail"})
    dataset = load(folder, values, **{kind: "skip"})
    if part == "images":
        assert dataset.image_ids.tolist() == want.image_ids.tolist()[1:]
    else:
        assert [len(dataset[index].boxes) for index in range(2)] == [0, 1]


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("category_id", [3], "unknown_category"),
        ("category_id", None, "unknown_category"),
        ("category_id", True, "unknown_category"),
        ("image_id", {}, "unknown_image"),
        ("iscrowd", "perhaps", "bad_annotation"),
        ("iscrowd", 2, "bad_annotation"),
    ],
)
def test_messy_value_that_is_not_plain_leaves_the_annotation_out(folder, key, value, kind):
    values = content()
    values["annotations"][0][key] = value
    dataset = load(folder, values)
    assert (dataset.findings[0].kind, dataset.findings[0].count) == (kind, 1)
    assert [len(dataset[index].boxes) for index in range(2)] == [0, 1]
    assert f"{key} is {value!r}" in refusal(folder, values, **{kind: "fail"})


@pytest.mark.parametrize("value", [7.0, False, None])
def test_messy_value_that_needs_no_word(folder, value):
    values = content()
    values["annotations"][0]["category_id" if value == 7 else "iscrowd"] = value
    assert load(folder, values).findings == ()


def test_messy_area_is_computed_where_it_is_no_area(folder):
    values = content()
    for annotation, area in zip(values["annotations"], (-1, float("nan")), strict=True):
        annotation["area"] = area
    areas = [entry["area"] for entry in truth_of(load(folder, values)).dataset["annotations"]]
    assert areas == [120, 12]


def test_messy_ids_of_annotations(folder):
    values = content()
    values["annotations"][1]["id"] = 1
    dataset = load(folder, values)
    assert [finding.kind for finding in dataset.findings] == ["duplicate_annotation_id"]
    assert [len(dataset[index].boxes) for index in range(2)] == [1, 1]
    assert len(load(folder, values, duplicate_annotation_id="skip")[1].boxes) == 0


def test_messy_files_of_fractions_or_corners_are_refused_or_converted(folder):
    boxes = [[10, 20, 20, 10], [30, 5, 25, 30], [2, 3, 20, 30], [5, 25, 50, 10], [40, 20, 9, 9]]
    fractions = [[x / 60, y / 40, w / 60, h / 40] for x, y, w, h in boxes]
    corners = [[x, y, x + w, y + h] for x, y, w, h in boxes]
    for wrong, kind, said in (
        (fractions, "normalised_file", "5 of 5 boxes are within 0..1.5"),
        (corners, "xyxy_file", "4 of 5 boxes would reach out of their image"),
    ):
        entries = [{"id": 1 + i, "image_id": 10, "category_id": 3} for i in range(5)]
        values = content(*[entry | {"bbox": b} for entry, b in zip(entries, wrong, strict=True)])
        message = refusal(folder, values)
        assert said in message and f"data.policy.{kind}=repair" in message
        want = [[x, y, x + w, y + h] for x, y, w, h in boxes]
        assert_close(load(folder, values, **{kind: "repair"})[0].boxes, want, atol=1e-4)


def test_messy_boxes_far_out_and_of_one_pixel_images(folder):
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((1, 1, 3), np.uint8))
    first = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [0, 0, 1, 1]}
    far = {"id": 2, "image_id": 20, "category_id": 3, "bbox": [-1e9, -1e9, 2e9, 2e9]}
    huge = {"id": 3, "image_id": 20, "category_id": 3, "bbox": [1e308, 5, 1e308, 9]}
    fraction = {"id": 4, "image_id": 20, "category_id": 3, "bbox": [0.1, 0.2, 0.3, 0.4]}
    good = {"id": 5, "image_id": 20, "category_id": 3, "bbox": [1, 2, 3, 4]}
    values = content(first, far, huge, fraction, good)
    values["images"][0].update(width=1, height=1)
    dataset = load(folder, values)
    assert dataset[0].boxes.tolist() == [[0, 0, 1, 1]]
    assert dataset[1].boxes.tolist() == [[1, 2, 4, 6]]
    kinds = [finding.kind for finding in dataset.findings]
    assert kinds == ["not_finite_box", "normalised_box", "absurd_box"]
    assert load(folder, values, absurd_box="repair")[1].boxes.tolist()[0] == [0, 0, 60, 40]


def test_messy_repeated_boxes_are_trained_once_and_evaluated_as_listed(folder):
    box = {"image_id": 10, "category_id": 3, "bbox": [1, 2, 3, 4]}
    other, small = {**box, "category_id": 7}, {**box, "bbox": [5, 5, 0.5, 9]}
    entries = [{"id": i, **entry} for i, entry in enumerate((box, other, box, small), start=1)]
    dataset = load(folder, content(*entries))
    assert dataset[0].labels.tolist() == [0, 1]
    assert dataset.report["repeated boxes left out"] == 1
    assert len(truth_of(dataset).anns) == 4


def test_messy_file_listed_twice(folder):
    values = content()
    values["images"].append({**values["images"][0], "id": 30})
    values["annotations"].append({"id": 9, "image_id": 30, "category_id": 3, "bbox": [1, 1, 9, 9]})
    dataset = load(folder, values)
    assert dataset.image_ids.tolist() == [10, 20]
    assert len(dataset[0].boxes) == 1
    assert len(load(folder, values, duplicate_file="repair")[0].boxes) == 2
    assert "image ids 10 and 30" in refusal(folder, values, duplicate_file="fail")


def test_messy_images_too_many_to_go_on(folder):
    values = content()
    values["images"] += [{**values["images"][0], "id": i, "file_name": f"{i}"} for i in (1, 2, 3)]
    message = refusal(folder, values)
    assert "3 of 5 images" in message and "data.max_skipped" in message
    for entry in values["images"][1:]:
        entry.update(file_name=f"{entry['id']}.png", width=None)
    assert "4 of 5 images" in refusal(folder, values, missing_size="skip")


def test_messy_image_listed_again_is_no_image_that_is_lost(folder):
    values = content()
    values["images"] += [values["images"][0]] * 4
    assert len(load(folder, values)) == 2


# Places


@pytest.mark.parametrize("name", ["../secret.png", "ABSOLUTE", "link.png", "sub/link.png", "..\\s"])
def test_messy_file_names_do_not_leave_the_folder(folder, name):
    images = folder / "images"
    secret = folder / "secret.png"
    (images / "a.png").rename(secret)
    (folder / "s").write_bytes(secret.read_bytes())
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "link.png").write_bytes(secret.read_bytes())
    (images / "link.png").symlink_to(secret)
    (images / "sub").symlink_to(folder / "elsewhere")
    values = content()
    values["images"][0]["file_name"] = str(secret) if name == "ABSOLUTE" else name
    message = refusal(folder, values)
    assert "1 images outside their image folder" in message
    assert "data.policy.unsafe_path=skip" in message
    assert load(folder, values, unsafe_path="skip").image_ids.tolist() == [20]


def test_messy_file_names_that_stay_within_the_folder(folder):
    (folder / "images" / "sub").mkdir()
    (folder / "images" / "a.png").rename(folder / "images" / "sub" / "a.png")
    (folder / "images" / "link.png").symlink_to(folder / "images" / "sub" / "a.png")
    (folder / "linked").symlink_to(folder / "images")
    for name in ("sub/a.png", "sub/../sub/a.png", "link.png", "sub\\a.png"):
        values = content()
        values["images"][0]["file_name"] = name
        _, annotations = write(folder, values)
        dataset = CocoDataset([(folder / "linked", annotations)])
        assert len(dataset) == 2
        backslash = [finding.kind for finding in dataset.findings]
        assert backslash == (["other_file_name"] if "\\" in name else [])


@pytest.mark.parametrize("name", ["a\0b.png", "\ud800.png", "x" * 5000, "sub", "."])
def test_messy_file_names_that_no_file_has(folder, name):
    (folder / "images" / "sub").mkdir()
    values = content()
    values["images"][0]["file_name"] = name
    dataset = load(folder, values)
    assert dataset.report["images whose file is missing left out"] == 1


# Images


def test_messy_size_that_differs_from_the_json(folder):
    values = content()
    values["images"][0].update(width=SIZE[0], height=SIZE[1])
    dataset = load(folder, values)
    assert dataset.sizes.tolist() == [list(SIZE), list(SIZE)]
    assert "60 x 40 pixels, stated 40 x 60" in dataset.findings[0].items[0]
    assert dataset[0].image.shape == (*SIZE, 3)
    assert "60 x 40" in refusal(folder, values, wrong_size="fail")
    # Boxes that fit the stated size only: the file was shrunk, nobody knows how.
    values["images"][0].update(width=120, height=80)
    values["annotations"][0]["bbox"] = [50, 50, 60, 20]
    dataset = load(folder, values)
    assert dataset.image_ids.tolist() == [20]
    assert dataset.findings[0].kind == "boxes_of_other_size"


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_messy_boxes_drawn_before_turning(folder, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", SIZE[::-1]).save(folder / "images" / "a.jpg", exif=exif)
    values = content()
    values["images"][0]["file_name"] = "a.jpg"  # 60 x 40 as stored, 40 x 60 upright
    dataset = load(folder, values)
    assert dataset.image_ids.tolist() == [20]
    items = {finding.kind: finding.items for finding in dataset.findings}
    assert "before turning upright" in items["boxes_of_other_size"][0]


def test_image_that_changes_after_loading(folder):
    dataset = load(folder)
    cv2.imwrite(str(folder / "images" / "a.png"), np.zeros((9, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"a\.png is 8 x 9 pixels, but was 60 x 40"):
        dataset[0]


@pytest.mark.parametrize("damage", [b"", b"not an image", "half"])
def test_unreadable_image_names_the_file(folder, damage):
    dataset = load(folder)
    path = folder / "images" / "a.png"
    path.write_bytes(path.read_bytes()[:20] if damage == "half" else damage)
    with pytest.raises(UserError, match=r"images/a\.png is not a readable image: replace it"):
        dataset[0]


def test_channels_are_red_green_blue(folder):
    for name, color in (("red", (255, 0, 0)), ("blue", (0, 0, 255))):
        Image.new("RGB", (5, 4), color).save(folder / f"{name}.png")
        assert (read_image(str(folder / f"{name}.png")) == color).all()


def test_gray_palette_and_transparent_pictures_have_three_channels(folder):
    for mode, color in (("L", 7), ("RGBA", (7, 7, 7, 0)), ("1", 1), ("P", 0), ("I;16", 7 << 8)):
        Image.new(mode, (5, 4), color).save(folder / "picture.png")
        image = read_image(str(folder / "picture.png"))
        assert (image.shape, image.dtype) == ((4, 5, 3), np.uint8), mode


@pytest.mark.parametrize(
    ("orientation", "place"),
    [(1, "left top"), (3, "right bottom"), (6, "right top"), (8, "left bottom")],
)
def test_rotated_photo_is_turned_upright(folder, orientation, place):
    # Stored 60 x 40 with a red square in its left top corner. EXIF 6 asks for a quarter turn
    # clockwise, which brings that corner to the right top; 8 for one the other way round.
    stored = np.zeros((*SIZE, 3), np.uint8)
    stored[:16, :16] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored).save(folder / "images" / "a.jpg", exif=exif, quality=95)
    upright = SIZE[::-1] if orientation in (6, 8) else SIZE
    values = content()
    values["images"][0].update(file_name="a.jpg", height=upright[0], width=upright[1])
    image = load(folder, values)[0].image
    assert image.shape == (*upright, 3)
    corners = {
        "left top": image[4, 4],
        "right top": image[4, -5],
        "left bottom": image[-5, 4],
        "right bottom": image[-5, -5],
    }
    for name, pixel in corners.items():
        assert_close(pixel, (255, 0, 0) if name == place else (0, 0, 0), atol=12)


def test_path_with_blanks_and_letters_of_other_languages(folder):
    name = "bild \u00e4 \u56fe.png"
    (folder / "images" / "a.png").rename(folder / "images" / name)
    values = content()
    values["images"][0]["file_name"] = name
    assert load(folder, values)[0].image.shape == (*SIZE, 3)


# Ground truth


def test_ground_truth_supplies_what_pycocotools_needs(folder):
    truth = truth_of(load(folder))
    assert [
        (entry["id"], entry["area"], entry["iscrowd"]) for entry in truth.dataset["annotations"]
    ] == [(1, 120, 0), (2, 12, 0)]
    assert [entry["bbox"] for entry in truth.imgToAnns[20]] == [[1, 2, 3, 4]]
    assert ap_of_perfect_detections(load(folder)) == pytest.approx(1)


def test_ground_truth_keeps_what_the_file_says(folder):
    annotation = {"id": 5, "image_id": 10, "category_id": 3, "bbox": [0, 0, 90, 9], "iscrowd": 1}
    dataset = load(folder, content({**annotation, "area": 77}))
    [entry] = truth_of(dataset).dataset["annotations"]
    assert entry == {**annotation, "area": 77, "id": 1}  # not clipped either
    assert dataset.report["boxes clipped to their image"] == 1


@pytest.mark.parametrize(
    "ids",
    [
        pytest.param((1, 2), id="from 1"),
        pytest.param(
            (0, 1),
            id="from 0",
        ),
        pytest.param(
            (5, 5),
            id="twice",
        ),
        pytest.param(
            (2, None),
            id="given and missing",
        ),
    ],
)
def test_perfect_detections_have_ap_1_whatever_the_annotation_ids(folder, ids):
    values = content()
    for annotation, number in zip(values["annotations"], ids, strict=True):
        if number is not None:
            annotation["id"] = number
    dataset = load(folder, values)
    assert len(truth_of(dataset).anns) == 2
    assert ap_of_perfect_detections(dataset) == pytest.approx(1)


# Memory and processes


def python_objects(dataset: CocoDataset) -> dict[str, int]:
    """Length of each attribute that is a Python container."""
    return {
        name: len(value)
        for name, value in vars(dataset).items()
        if isinstance(value, list | tuple | dict | set)
    }


def test_annotations_are_held_in_flat_arrays(folder):
    annotation = {"image_id": 10, "category_id": 3, "bbox": [0, 0, 5, 5]}
    small = load(folder, content(annotation))
    boxes = [[k % 50, k // 50, 5, 5] for k in range(500)]
    large = load(folder, content(*[{**annotation, "bbox": box} for box in boxes]))
    assert python_objects(small) == python_objects(large)
    arrays = {name: value for name, value in vars(large).items() if isinstance(value, np.ndarray)}
    assert all(value.dtype != object for value in arrays.values())
    grown = {name for name, value in arrays.items() if value.nbytes > vars(small)[name].nbytes}
    assert {arrays[name].shape for name in grown} == {(500, 4), (500,)}
    others = set(vars(large)) - set(arrays) - set(python_objects(large))
    assert others == {"_masks"}
    assert all(isinstance(value, np.ndarray) for value in vars(large._masks).values())


def test_more_images_grow_arrays_only(tmp_path):
    found = []
    for count in (2, 8):
        write_coco(tmp_path / str(count), {"train": count})
        place = tmp_path / str(count)
        found.append(CocoDataset([(place / "images", place / "annotations" / "train.json")]))
    small, large = found
    assert (len(small), len(large)) == (2, 8)
    assert python_objects(small) == python_objects(large)


def test_pickled_dataset_gives_the_same_samples(folder):
    dataset = load(folder)
    copied = pickle.loads(pickle.dumps(dataset))
    assert copied.class_names == dataset.class_names
    assert copied.report == dataset.report
    for index in range(2):
        got, want = copied[index], dataset[index]
        assert (got.image == want.image).all()
        assert got.boxes.tolist() == want.boxes.tolist()
        assert got.labels.tolist() == want.labels.tolist()
        assert got.image_id == want.image_id


BOXES = [[10, 20, 20, 10], [30, 5, 25, 30], [2, 3, 20, 30], [5, 25, 50, 10], [40, 20, 9, 9]]


@pytest.mark.parametrize("kind", ["normalised_file", "xyxy_file"])
def test_messy_areas_of_converted_files_are_those_of_the_boxes(folder, kind):
    """Stated as the wrong form has them; COCO's sizes go by them."""
    wrong = [[x / 60, y / 40, w / 60, h / 40] for x, y, w, h in BOXES]
    if kind == "xyxy_file":
        wrong = [[x, y, x + w, y + h] for x, y, w, h in BOXES]
    entries = [
        {"id": 1 + i, "image_id": 10, "category_id": 3, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(wrong)
    ]
    dataset = load(folder, content(*entries), **{kind: "repair"})
    areas = [entry["area"] for entry in truth_of(dataset).dataset["annotations"]]
    assert areas == pytest.approx([w * h for *_, w, h in BOXES])


def test_messy_areas_of_fractions_that_are_pixels_already_stay(folder):
    entry = {"id": 1, "image_id": 10, "category_id": 3, "bbox": [0.1, 0.1, 0.2, 0.2]}
    areas = ({"area": 80}, {"area": 0.04}, {})
    entries = [{**entry, "id": i, **area} for i, area in enumerate(areas, start=1)]
    dataset = load(folder, content(*entries), normalised_file="repair")
    found = [entry["area"] for entry in truth_of(dataset).dataset["annotations"]]
    # 0.04 of 60 x 40 pixels, and 12 x 8 pixels where no area is stated.
    assert found == pytest.approx([80, 96, 96])


def test_messy_three_boxes_that_reach_out_are_no_file_of_corners(folder):
    corners = [[x, y, x + w, y + h] for x, y, w, h in BOXES[:3]]
    entries = [
        {"id": 1 + i, "image_id": 10, "category_id": 3, "bbox": box}
        for i, box in enumerate(corners)
    ]
    kinds = {finding.kind for finding in load(folder, content(*entries)).findings}
    assert kinds == {"clipped_box"}
