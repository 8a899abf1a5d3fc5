"""Large images in pieces: windows, and merging what was found in them."""

import os
import subprocess
import sys
import weakref
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from builders import tiny_config
from conftest import REPOSITORY

from gfl.build import build_model
from gfl.config import parse_config
from gfl.data.tile_layout import windows
from gfl.predictor import Detector
from gfl.structures import Detections
from gfl.tiling import merge


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
    """Finds bright rectangles by their pixels, in place of a network.

    Args:
        noise: largest error of a side, pixels of the network input; scores are then random too.
    """

    def __init__(self, tile: int, noise: float = 0.0):
        size = {"short": tile, "long": tile}  # pieces are seen at their own size
        rules = {"nms_iou": 0.6, "max_per_image": 1000}
        config = parse_config({"data": {"test_size": size}, "postprocess": rules})
        self._describe(config, ("a", "b"), (1, 2))
        self.noise, self.rng = noise, np.random.default_rng(1)

    def _compute(self, batch, postprocess):
        return [
            self._look(image, meta) for image, meta in zip(batch.images, batch.metas, strict=True)
        ]

    def _look(self, image, meta):
        bright = (image[0].numpy() > 200).astype(np.uint8)
        count, _, stats, _ = cv2.connectedComponentsWithStats(bright)
        rows = []
        for x, y, w, h, area in stats[1:count].tolist():
            far_away = meta.scale[0] < 1
            if min(w, h) < (40 if far_away else 6):  # only large ones, and no slivers
                continue
            score = 0.5 + area / 1e7
            if self.noise:
                score = self.rng.uniform(0.1, 0.9)
            rows.append(([x, y, x + w, y + h], score, 0))
        seen = found(*rows)
        boxes = (
            seen.boxes + torch.from_numpy(self.rng.uniform(-1, 1, seen.boxes.shape)) * self.noise
        )
        return replace(seen, boxes=boxes.float() / torch.tensor(meta.scale * 2))


def scene(seed: int, cell: int = 300, largest: int = 236):
    """A picture of 6000 x 4000 pixels with a bright rectangle in each cell, and their boxes."""
    rng = np.random.default_rng(seed)
    image = np.zeros((4000, 6000, 3), np.uint8)
    truth = []
    for y in range(0, 4000 - cell + 1, cell):
        for x in range(0, 6000 - cell + 1, cell):
            w, h = (int(v) for v in rng.integers(12, largest, 2))
            left, top = (
                x + int(rng.integers(0, cell - 8 - w)),
                y + int(rng.integers(0, cell - 8 - h)),
            )
            image[top : top + h, left : left + w] = 255
            truth.append([left, top, left + w, top + h])
    return image, torch.tensor(truth, dtype=torch.float32)


def test_no_object_is_lost_or_doubled_at_a_seam_of_a_large_image():
    image, truth = scene(0)
    got = Bright(1024).predict_tiled(image, tile=1024, overlap=0.25)
    assert sorted(got.boxes.tolist()) == sorted(truth.tolist())


@pytest.mark.parametrize("seed", range(3))
def test_nor_where_each_piece_sees_it_a_little_differently(seed):
    image, truth = scene(seed)
    got = Bright(1024, noise=1.0).predict_tiled(image, tile=1024, overlap=0.25)
    assert len(got) == len(truth)
    gap = (got.boxes[:, None] - truth).abs().amax(-1)
    assert gap.amin(0).max() <= 1.01 and gap.amin(1).max() <= 1.01


def tiny_detector(folder) -> Detector:
    config = tiny_config(folder)
    return Detector(build_model(config, 2, load_pretrained=False), config, ("a", "b"), (1, 2))


def test_pieces_do_not_pile_up(tmp_path, monkeypatch):
    """Of 41 resized pieces, those of one batch are held, and of the next while it is made."""
    detector = tiny_detector(tmp_path)
    pieces, most = [], 0
    item = Detector._item

    def counted(self, image, number):
        nonlocal most
        sample, meta = item(self, image, number)
        pieces.append(weakref.ref(sample.image))
        most = max(most, sum(piece() is not None for piece in pieces))
        return sample, meta

    monkeypatch.setattr(Detector, "_item", counted)
    detector.predict_tiled(np.zeros((4000, 6000, 3), np.uint8), tile=1024, batch_size=4)
    assert len(pieces) == 41 and most <= 2 * 4


# Prints the peak of the process in MB before and after.
PEAK = """
import resource, sys
import numpy as np, torch
from gfl.build import build_model
from gfl.config import load_config
from gfl.predictor import Detector

config = load_config("bccd_r18", ["data.test_size={short: 160, long: 160}"])
names = ("a", "b", "c")
model = build_model(config, 3, load_pretrained=False)
detector = Detector(model, config, names, (1, 2, 3), "cpu")
image = np.random.default_rng(0).integers(0, 256, (4000, 6000, 3), np.uint8)
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
detector.predict_tiled(image, tile=int(sys.argv[1]), batch_size=4)
print(start // 1024, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_pieces():
    """Twelve times as many pieces, as large for the network, take no more memory."""
    peaks = {}
    # Blocks from this size on go back when they are freed, so that the peak is what is held.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    for tile, pieces in ((1024, 41), (300, 487)):
        assert len(windows((4000, 6000), tile, 0.25)) + 1 == pieces
        run = [sys.executable, "-c", PEAK, str(tile)]
        done = subprocess.run(
            run, capture_output=True, text=True, check=True, cwd=REPOSITORY, env=environment
        )
        start, peaks[pieces] = (int(word) for word in done.stdout.split())
        print(f"\n{pieces} pieces: {start} MB before, {peaks[pieces]} MB at most")
    # A resized piece is 77 kB: all of those that are more would be 34 MB.
    assert peaks[487] - peaks[41] < 17


def test_an_object_larger_than_the_overlap_is_found_in_the_whole_view():
    image = np.zeros((3100, 3100, 3), np.uint8)
    image[500:2600, 400:2500] = 255
    got = Bright(1024).predict_tiled(image, tile=1024, overlap=0.25)
    gap = (got.boxes - torch.tensor([400.0, 500.0, 2500.0, 2600.0])).abs().amax(1)
    assert gap.min() < 3100 / 1024  # a pixel of the whole view
    assert len(got.filter(0.0)) < 8  # pieces of its inside, that no border tells apart


@pytest.mark.parametrize(("edge", "left"), [(97.1, 1), (96.9, 2)])
def test_a_part_may_end_a_little_before_the_border(edge, left):
    parts = [found(([80, 20, edge, 50], 0.95, 0)), found(([20, 20, 90, 50], 0.6, 0))]
    assert len(merge(parts, [LEFT, RIGHT], (100, 160), 0.6, 100)) == left
