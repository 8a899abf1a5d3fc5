"""What a user does with detections: filter, convert, draw."""

import json
import sys
import types

import numpy as np
import pytest
import torch

import gfl
from gfl.drawing import EMPTY, draw_boxes, enlarged, save_picture, tile_pictures
from gfl.structures import Detections


def detections(**changes) -> Detections:
    values = {
        "boxes": torch.tensor(
            [[10.0, 20.0, 50.0, 60.0], [0.0, 0.0, 8.0, 8.0], [5.0, 5.0, 9.0, 30.0]]
        ),
        "scores": torch.tensor([0.9, 0.5, 0.2]),
        "labels": torch.tensor([1, 0, 1]),
        "edge_std": torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 3),
        "names": ("cat", "dog"),
        "category_ids": (7, 3),
        **changes,
    }
    return Detections(**values)


def test_names_follow_the_labels():
    assert detections().class_names == ["dog", "cat", "dog"]


def test_it_prints_as_a_summary():
    assert repr(detections()) == "Detections(3: dog 2, cat 1; best score 0.90)"
    assert repr(detections().filter(0.99)) == "Detections(0)"


def test_filter_by_score_includes_its_bound():
    assert detections().filter(0.5).scores.tolist() == pytest.approx([0.9, 0.5])
    assert len(detections().filter(0.0)) == 3


def test_filter_uses_each_classs_own_threshold_or_the_default():
    assert detections().filter().scores.tolist() == pytest.approx([0.9, 0.5])
    found = detections(thresholds=(0.6, 0.1)).filter()
    assert found.class_names == ["dog", "dog"]
    assert found.thresholds == (0.6, 0.1) and found.names == ("cat", "dog")


def test_places_of_bins_need_as_many_bins_as_the_distributions():
    values = torch.rand(3, 4, 5)
    found = detections(distributions=values, edge_positions=values).filter(0.5)
    assert torch.equal(found.edge_positions, values[:2])
    with pytest.raises(ValueError, match="edge_positions"):
        detections(distributions=values, edge_positions=values[..., :4])


def test_filter_by_class():
    found = detections().filter(0.0, ["dog"])
    assert found.class_names == ["dog", "dog"]
    assert len(detections().filter(0.0, [])) == 0
    with pytest.raises(gfl.UserError, match="did you mean 'dog'"):
        detections().filter(0.0, ["dogs"])


def test_coco_entries_are_xywh_with_the_datas_ids():
    assert detections().to_coco(42)[0] == {
        "image_id": 42,
        "category_id": 3,
        "bbox": [10.0, 20.0, 40.0, 40.0],
        "score": pytest.approx(0.9),
    }
    assert [entry["category_id"] for entry in detections().to_coco(1)] == [3, 7, 3]
    assert detections().boxes[0].tolist() == [10, 20, 50, 60]  # not changed by it


def test_supervision_gets_boxes_names_and_doubt(monkeypatch):
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **values: values
    monkeypatch.setitem(sys.modules, "supervision", fake)
    got = detections().to_supervision()
    assert got["xyxy"].shape == (3, 4) and got["class_id"].tolist() == [1, 0, 1]
    assert got["data"]["class_name"].tolist() == ["dog", "cat", "dog"]
    assert got["data"]["edge_std"].shape == (3, 4)


def test_a_missing_supervision_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(gfl.UserError, match=r"gfl-detection\[supervision\]"):
        detections().to_supervision()


def test_drawing_leaves_the_image_alone_and_marks_the_box():
    image = np.zeros((80, 80, 3), np.uint8)
    drawn = detections().draw(image)
    assert not image.any() and drawn.shape == image.shape and drawn[60, 30].any()
    nothing = detections().filter(0.99).draw(image)
    assert not nothing.any()


def test_a_doubtful_side_has_a_band_of_one_deviation_and_a_sure_one_none():
    image = np.zeros((100, 100, 3), np.uint8)
    box, name = [[30, 30, 70, 70]], ["x"]
    drawn = draw_boxes(image, box, [0], name, edge_std=[[12.0, 0.4, 0.0, 0.0]])
    row = drawn[60].astype(int).sum(-1)
    assert row[19] > 0 and row[41] > 0 and row[17] == 0 and row[43] == 0  # 30 -+ 12, faded
    assert row[25] > row[19]
    assert row[60:68].max() == 0 and row[73:].max() == 0  # the right side has its line only


def test_boxes_beyond_the_image_are_drawn_as_far_as_they_go():
    image = np.zeros((20, 20, 3), np.uint8)
    boxes, deviations = [[-30.0, -30.0, 50.0, 50.0]], [[99.0, 99.0, 99.0, 99.0]]
    assert draw_boxes(image, boxes, [0], ["x"], [0.5], deviations).shape == image.shape


@pytest.mark.parametrize(
    "size, factor",
    [((400, 500), 1), ((800, 1333), 1), ((399, 500), 2), ((96, 128), 5), ((1, 1), 400)]
    + [((10, 500), 2), ((1, 3000), 1)],  # long ones stay handy
)
def test_small_pictures_are_enlarged_until_names_can_be_read(size, factor):
    image = np.arange(size[0] * size[1] * 3).astype(np.uint8).reshape(*size, 3)
    large, found = enlarged(image)
    assert found == factor and large.shape == (size[0] * factor, size[1] * factor, 3)
    assert np.array_equal(large[::factor, ::factor], image)


@pytest.mark.parametrize(
    "count, rows, columns",
    [(1, 1, 1), (2, 1, 2), (3, 1, 3), (4, 2, 2), (5, 2, 3), (7, 2, 4), (8, 2, 4), (16, 4, 4)],
)
def test_pictures_fill_their_grid(count, rows, columns):
    grid = tile_pictures([np.full((10, 20, 3), 9, np.uint8)] * count)
    assert grid.shape == (rows * 10, columns * 20, 3)
    assert (grid == 9).sum() == count * 600 and set(np.unique(grid)) <= {9, EMPTY}


def test_pictures_that_can_not_be_written_are_named(tmp_path):
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(gfl.UserError, match="a.xyz"):
        save_picture(tmp_path / "a.xyz", image)
    with pytest.raises(gfl.UserError, match="no_folder"):
        save_picture(tmp_path / "no_folder" / "a.png", image)


def test_results_of_a_numpy_image_id_are_json():
    found = Detections(
        torch.tensor([[1.0, 2, 4, 8]]),
        torch.tensor([0.5]),
        torch.tensor([0]),
        torch.zeros(1, 4),
        category_ids=(7,),
    )
    [entry] = json.loads(json.dumps(found.to_coco(np.int64(3))))
    assert entry == {"image_id": 3, "category_id": 7, "bbox": [1, 2, 3, 6], "score": 0.5}


@pytest.mark.parametrize("score", ["0.5", float("nan"), 2, -0.1])
def test_a_score_to_filter_by_is_a_number_from_0_to_1(score):
    empty = torch.zeros(0, 4)
    found = Detections(empty, empty[:, 0], empty[:, 0].long(), empty)
    with pytest.raises(gfl.UserError, match="expected a number from 0 to 1"):
        found.filter(score)


def test_the_mirror_image_of_detections_by_hand():
    places = [[10.0, 9, 8], [20, 19, 18], [30, 31, 32], [50, 51, 52]]
    one = Detections(
        boxes=torch.tensor([[10.0, 20, 30, 50]]),
        scores=torch.tensor([0.5]),
        labels=torch.tensor([1]),
        edge_std=torch.tensor([[1.0, 2, 3, 4]]),
        distributions=torch.arange(12.0).reshape(1, 4, 3),
        edge_positions=torch.tensor([places]),
    )
    got = one.mirrored(100)
    assert got.boxes.tolist() == [[70, 20, 90, 50]]
    assert got.edge_std.tolist() == [[3, 2, 1, 4]]
    assert got.distributions[0, :, 0].tolist() == [6, 3, 0, 9]
    mirrored = [[70, 69, 68], [20, 19, 18], [90, 91, 92], [50, 51, 52]]
    assert got.edge_positions[0].tolist() == mirrored
    assert one.edge_positions[0].tolist() == places
    again = got.mirrored(100)
    for name in ("boxes", "scores", "labels", "edge_std", "distributions", "edge_positions"):
        assert torch.equal(getattr(again, name), getattr(one, name)), name
