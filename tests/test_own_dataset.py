"""Data sets of a program: items alone are enough, and numbers are those of the same files."""

import json

import numpy as np
import pytest
import torch
from builders import tiny_values, write_coco

import gfl
from gfl.build import build_dataset
from gfl.config import parse_config
from gfl.data.dataset import Sample
from gfl.data.own_dataset import OwnDataset, completed
from gfl.errors import UserError


class Items:
    """Any object with a length and items; not even a torch Dataset."""

    def __init__(self, items, **attributes):
        self.items = items
        for name, value in attributes.items():
            setattr(self, name, value)

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def picture(height: int, width: int) -> np.ndarray:
    return np.zeros((height, width, 3), np.uint8)


def test_items_by_hand():
    regions = [[0, 0, 10, 20]]
    items = [
        (picture(40, 60), [[1, 2, 11, 22], [5, 5, 6, 8]], [1, 0]),
        (picture(30, 20), [], [], regions, 9),
        (picture(10, 10), torch.tensor([[0.5, 0, 9, 10]]), torch.tensor([1])),
    ]
    found = OwnDataset(Items(items, class_names=("cat", "dog")))
    assert found.class_names == ("cat", "dog") and found.category_ids == (1, 2)
    assert found.sizes.tolist() == [[40, 60], [30, 20], [10, 10]]
    assert found.image_ids.tolist() == [1, 9, 3]
    assert found.report == {"images": 3, "objects": 3}
    boxes, labels, index = found.objects()
    assert boxes.tolist() == [[1, 2, 11, 22], [5, 5, 6, 8], [0.5, 0, 9, 10]]
    assert labels.tolist() == [1, 0, 1] and index.tolist() == [0, 0, 2]
    assert found[1].ignore_boxes.tolist() == regions and found[1].boxes.shape == (0, 4)
    truth = found.ground_truth().dataset
    assert truth["images"][1] == {"id": 9, "height": 30, "width": 20}
    keys = ("image_id", "category_id", "bbox", "area", "iscrowd")
    assert [tuple(entry[key] for key in keys) for entry in truth["annotations"]] == [
        (1, 2, [1, 2, 10, 20], 200, 0),
        (1, 1, [5, 5, 1, 3], 3, 0),
        (9, 1, [0, 0, 10, 20], 200, 1),
        (9, 2, [0, 0, 10, 20], 200, 1),
        (3, 2, [0.5, 0, 8.5, 10], 85, 0),
    ]


def test_classes_without_names_are_called_by_their_numbers():
    one = Items([(picture(8, 8), [[0, 0, 4, 4]], [2])])
    assert OwnDataset(one).class_names == ("0", "1", "2")
    assert OwnDataset(one, num_classes=5).class_names == ("0", "1", "2", "3", "4")
    assert OwnDataset(one, ("a", "b", "c")).class_names == ("a", "b", "c")
    assert len(OwnDataset(Items([])).objects()[0]) == 0


def test_what_is_complete_stays_as_it_is(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 3, "val": 1})
    dataset = build_dataset(parse_config(tiny_values(folder)), "train")
    assert completed(dataset) is dataset
    own = completed(Items([dataset[i] for i in range(3)], class_names=dataset.class_names))
    assert own.sizes.tolist() == dataset.sizes.tolist()
    assert own.image_ids.tolist() == dataset.image_ids.tolist()
    for mine, theirs in zip(own.objects(), dataset.objects(), strict=True):
        assert np.array_equal(mine, theirs)


IMAGE = picture(8, 8)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"image": IMAGE}, "item 0 of the data set is a dict, expected"),
        ((IMAGE, []), "is a tuple, expected"),
        ((IMAGE[..., 0], [], []), r"an image of shape \(8, 8\)"),
        ((IMAGE.astype(np.float32), [], []), "float32, expected"),
        ((picture(0, 60), [], []), r"shape \(0, 60, 3\), expected a height and width of 1 or more"),
        ((picture(60, 0), [], []), r"shape \(60, 0, 3\), expected a height"),
        ((IMAGE, [[0, 0, 4, 4]], []), "1 boxes and 0 labels"),
        ((IMAGE, [[4, 0, 4, 4]], [0]), "boxes without an area"),
        ((IMAGE, [], [], [[4, 0, 0, 4]]), "boxes without an area"),
        ((IMAGE, [[8, 0, 12, 4]], [0]), r"boxes that lie outside of the image of \(8, 8\)"),
        ((IMAGE, [[0, -4, 4, 0]], [0]), "boxes that lie outside of the image"),
        ((IMAGE, [[0, 0, 4, 4, 1]], [0]), r"boxes of shape \(1, 5\), not \(n, 4\)"),
        ((IMAGE, {"a": 1}, [0]), "item 0 of the data set can not be used"),
        ((IMAGE, [[0, 0, 4, 4]], ["cat"]), "can not be used .*cat.*, expected image, boxes"),
        ((IMAGE, [[0, 0, 4, 4]], [0.7]), "0.7 is no whole number"),
        ((IMAGE, [], [], None), "item 0 of the data set can not be used"),
        ((IMAGE, [], [], [], "1.jpg"), "item 0 of the data set can not be used .*1.jpg"),
        (Sample(IMAGE, [[4, 0, 4, 4]], [0], [], 1), "boxes without an area"),
        ((IMAGE, [[0, 0, 0.5, 0.5], [0.1, 0, 1, 1]], [0, 1]), "they seem to be fractions"),
        ((IMAGE, [[0, 0, np.nan, 4]], [0]), "boxes without an area"),
        ((IMAGE, [[0, 0, 4, 4]], [-1]), "the label -1"),
        ((IMAGE, [[0, 0, 4, 4]], [2]), "has the label 2, but its classes are 0 to 1"),
    ],
)
def test_items_that_are_none_are_named(item, message):
    with pytest.raises(UserError, match=message):
        OwnDataset(Items([item], class_names=("a", "b")))


def test_boxes_may_reach_beyond_the_image():
    own = OwnDataset(Items([(IMAGE, [[-2, -2, 0.5, 12]], [0])]))
    assert own.objects()[0].tolist() == [[-2, -2, 0.5, 12]]


def test_image_ids_that_occur_twice_are_refused_in_evaluation():
    item = (IMAGE, [], [], [], 7)
    dataset = OwnDataset(Items([item, item]))
    assert len(dataset) == 2
    with pytest.raises(UserError, match="occur twice"):
        dataset.ground_truth()


def test_data_sets_that_are_none_are_refused():
    with pytest.raises(UserError, match="a dict_keys, expected one with a length and items"):
        completed({}.keys())
    with pytest.raises(UserError, match="1 category_ids and 2 class_names"):
        completed(Items([(IMAGE, [], [])], class_names=("a", "b"), category_ids=(1,)))
    with pytest.raises(UserError, match="has no item"):
        completed(Items([], class_names=("a",), category_ids=(1,), sizes=np.zeros((0, 2))))


@pytest.mark.parametrize("ids", [np.array([7, 3]), torch.tensor([7, 3]), [7.0, np.int64(3)]])
def test_category_ids_become_plain_ints(ids):
    own = OwnDataset(
        Items([(IMAGE, [[0, 0, 4, 4]], [1])], class_names=("a", "b"), category_ids=ids)
    )
    assert own.category_ids == (7, 3) and json.dumps(own.category_ids) == "[7, 3]"
    assert json.loads(json.dumps(own.ground_truth().dataset))["annotations"][0]["category_id"] == 3


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (("1", "2"), "1 is no whole number"),
        (("cat", "dog"), r"are \('cat', 'dog'\) .*expected a whole number for each class"),
        ((1, 2.5), "2.5 is no whole number"),
        ((1, None), "expected a whole number for each class"),
        ((1, 2**70), "expected a whole number for each class"),
        (None, "are None .*expected a whole number for each class"),
        ((4, 4), r"are \[4, 4\], expected another for each class"),
    ],
)
def test_category_ids_that_are_none_are_refused(ids, message):
    items = Items([(IMAGE, [], [])], class_names=("a", "b"), category_ids=ids)
    with pytest.raises(UserError, match=message):
        completed(items)


def test_an_item_that_can_not_be_read_is_named():
    class Lost(Items):
        def __getitem__(self, index):
            raise FileNotFoundError("no such file: b.png")

    with pytest.raises(UserError, match=r"item 0 of the data set can not be read: .*b\.png"):
        OwnDataset(Lost([1]))


@pytest.mark.parametrize("whole", [True, False])
def test_other_classes_than_the_training_has_are_refused(tmp_path, whole):
    folder = write_coco(tmp_path / "set", {"train": 1, "val": 1})
    dataset = build_dataset(parse_config(tiny_values(folder)), "val")
    if not whole:
        dataset = Items([dataset[0]], class_names=dataset.class_names)
    assert completed(dataset, ("square", "disc"), evaluated=True).class_names == ("square", "disc")
    with pytest.raises(UserError, match="are square, disc, expected .* order: disc, square"):
        completed(dataset, ("disc", "square"), evaluated=True)


def test_only_evaluation_needs_the_ground_truth():
    item = Sample(IMAGE, np.zeros((0, 4)), np.zeros(0), np.zeros((0, 4)), 1)
    dataset = Items([item], class_names=("a",), category_ids=(1,), sizes=np.array([[8, 8]]))
    assert completed(dataset) is dataset
    assert isinstance(completed(dataset, evaluated=True), OwnDataset)


def test_a_training_on_plain_items_is_that_on_the_files(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 4, "val": 3})
    config = parse_config(tiny_values(folder, epochs=1))

    def plain(split: str) -> Items:
        samples = list(build_dataset(config, split))
        tuples = [(s.image, s.boxes, s.labels, s.ignore_boxes, s.image_id) for s in samples]
        return Items(tuples, class_names=("square", "disc"), category_ids=(3, 7))

    from_files = gfl.train(config, work_dir=tmp_path / "files")
    from_items = gfl.train(config, plain("train"), plain("val"), tmp_path / "items")
    assert from_items["last"]["AP"] == from_files["last"]["AP"]
    one, other = (torch.load(tmp_path / name / "last.pt") for name in ("files", "items"))
    for name, values in one["model"].items():
        assert torch.equal(values, other["model"][name]), name
    checkpoint = tmp_path / "items" / "last.pt"
    overrides = [f"data.path={folder}"]
    numbers, found = gfl.evaluate(checkpoint, overrides, say=lambda _: None)
    own = gfl.evaluate(checkpoint, overrides, dataset=plain("val"), say=lambda _: None)
    assert found == own[1] and numbers["AP"] == own[0]["AP"]
