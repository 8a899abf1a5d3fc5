"""Large images in pieces: windows, and merging what was found in them."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from gfl.predictor import Detector
from gfl.structures import Detections
from gfl.tiling import merge, windows


def found(*rows) -> Detections:
    """Rows of (box, score, label)."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    labels = torch.tensor([row[2] for row in rows], dtype=torch.int64)
    return Detections(boxes, scores, labels, torch.ones_like(boxes), names=("a", "b"))


@pytest.mark.parametrize("size", [(50, 50), (100, 100), (101, 240), (4000, 6000), (30, 1000)])
@pytest.mark.parametrize(("tile", "overlap"), [(100, 0.25), (1024, 0.2), (64, 0.0)])
def test_windows_cover_everything_and_overlap(size, tile, overlap):
    places = windows(size, tile, overlap)
    covered = np.zeros((-(-size[0] // 5) + 1, -(-size[1] // 5) + 1), bool)
    for x1, y1, x2, y2 in places:
        assert 0 <= x1 < x2 <= size[1] and 0 <= y1 < y2 <= size[0]
        assert x2 - x1 == min(tile, size[1]) and y2 - y1 == min(tile, size[0])
        covered[y1 // 5 : -(-y2 // 5), x1 // 5 : -(-x2 // 5)] = True
    assert covered[: -(-size[0] // 5), : -(-size[1] // 5)].all()
    columns = sorted({place[0] for place in places})
    for left, right in zip(columns, columns[1:], strict=False):
        assert left + tile - right >= int(tile * overlap)


def test_an_image_of_one_tile_is_one_window():
    assert windows((90, 100), 100, 0.25) == [(0, 0, 100, 90)]


LEFT, RIGHT = (0, 0, 100, 100), (60, 0, 160, 100)


def test_an_object_seen_whole_in_two_windows_is_one():
    parts = [found(([65, 20, 90, 50], 0.8, 0)), found(([5, 20, 30, 50], 0.9, 0))]
    got = merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)
    assert len(got) == 1 and got.scores.item() == pytest.approx(0.9)
    assert got.boxes[0].tolist() == [65, 20, 90, 50]


def test_a_cut_part_gives_way_to_the_whole_even_with_a_better_score():
    parts = [found(([80, 20, 100, 50], 0.95, 0)), found(([20, 20, 90, 50], 0.6, 0))]
    got = merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)
    assert got.boxes.tolist() == [[80, 20, 150, 50]]
    # With a larger share of the object its IoU is above the threshold: it must not suppress.
    parts = [found(([80, 20, 100, 50], 0.95, 0)), found(([20, 20, 50, 50], 0.6, 0))]
    got = merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)
    assert got.boxes.tolist() == [[80, 20, 110, 50]]


def test_a_part_of_another_class_or_place_stays():
    parts = [
        found(([80, 20, 100, 50], 0.5, 1), ([80, 70, 100, 90], 0.4, 0)),
        found(([20, 20, 90, 50], 0.6, 0)),
    ]
    got = merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)
    assert got.scores.tolist() == pytest.approx([0.6, 0.5, 0.4])


def test_the_images_own_border_cuts_nothing():
    parts = [found(([0, 0, 30, 30], 0.9, 0)), found(([80, 60, 100, 100], 0.8, 0))]
    got = merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)
    assert len(got) == 2


def test_nothing_found_and_the_limit():
    assert len(merge([found(), found()], [LEFT, RIGHT], (100, 160), 0.6, 100)) == 0
    rows = [([x, 5, x + 8, 13], 0.5 + x / 1000, 0) for x in range(0, 90, 10)]
    got = merge([found(*rows), found()], [LEFT, RIGHT], (100, 160), 0.6, 3)
    assert got.scores.tolist() == pytest.approx([0.58, 0.57, 0.56])


def test_the_places_of_the_bins_move_with_the_boxes():
    one = found(([5, 20, 30, 50], 0.9, 0))
    positions = torch.arange(12.0).reshape(1, 4, 3)
    one = replace(one, distributions=torch.full((1, 4, 3), 1 / 3), edge_positions=positions)
    got = merge([one], [(60, 7, 160, 107)], (200, 200), 0.6, 100)
    assert got.boxes.tolist() == [[65, 27, 90, 57]]
    assert got.edge_positions[0, :, 0].tolist() == [60, 10, 66, 16]
    assert torch.equal(got.distributions, one.distributions)


class Bright(Detector):
    """Finds bright squares by their pixels, in place of a network, as `predict` would."""

    def __init__(self):
        options = type("Options", (), {"nms_iou": 0.6, "max_per_image": 1000})
        self.config = type("Config", (), {"postprocess": options})
        self.largest = 0

    def predict(self, images, batch_size=8, score_threshold=None, distributions=False):
        import cv2

        results = []
        for image in images:
            self.largest = max(self.largest, image.size)
            count, _, stats, _ = cv2.connectedComponentsWithStats(
                (image[..., 0] > 200).astype(np.uint8)
            )
            rows = [
                ([x, y, x + w, y + h], 0.5 + area / 1e6, 0)
                for x, y, w, h, area in stats[1:count].tolist()
                if image.shape[1] < 3000 or w > 300  # far away only large ones are seen
            ]
            results.append(found(*rows))
        return results


def test_no_object_is_lost_or_doubled_at_a_seam_of_a_large_image():
    rng = np.random.default_rng(0)
    image = np.zeros((4000, 6000, 3), np.uint8)
    truth = []
    for y in range(60, 3700, 300):
        for x in range(60, 5700, 300):
            w, h = rng.integers(8, 230, 2)
            dx, dy = rng.integers(0, 60, 2)
            image[y + dy : y + dy + h, x + dx : x + dx + w] = 255
            truth.append([x + dx, y + dy, x + dx + w, y + dy + h])
    detector = Bright()
    got = detector.predict_tiled(image, tile=1024, overlap=0.25)
    assert sorted(got.boxes.tolist()) == sorted([float(v) for v in box] for box in truth)


def test_an_object_larger_than_the_overlap_is_found_in_the_whole_view():
    image = np.zeros((3100, 3100, 3), np.uint8)
    image[500:2600, 400:2500] = 255
    got = Bright().predict_tiled(image, tile=1024, overlap=0.25)
    assert [400.0, 500.0, 2500.0, 2600.0] in got.boxes.tolist()
    assert len(got.filter(0.0)) < 8  # pieces of its inside, that no border tells apart
