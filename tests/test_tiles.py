"""Training and evaluation on tiles: what they show, that small pictures change nothing, AP."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from builders import make_targets, tiny_config, tiny_values, write_coco

import gfl
from gfl import build
from gfl.assigner import ATSSAssigner, TaskAlignedAssigner, WithoutIgnored
from gfl.automatic import choose_sizes
from gfl.build.tiles import build_tile_views, tile_lines
from gfl.cli.check_data import main as check_data
from gfl.cli.predict import main as predict
from gfl.config import parse_config
from gfl.data.dataset import Sample
from gfl.data.sampler import EvalSampler
from gfl.data.tile_layout import tile_places
from gfl.data.tiles import TiledDataset, TileViews, cut_boxes
from gfl.engine.checkpoint import save_checkpoint
from gfl.errors import UserError
from gfl.grid import make_grid
from gfl.predictor import detector_of
from gfl.structures import Candidates, Detections
from gfl.tiling import TileJoin, Tiling


class Drawn:
    """Pictures whose pixels say where they are: (row, column, 0).

    Args:
        pictures: (h, w), boxes and crowd regions of each.
    """

    class_names, category_ids = ("a", "b"), (1, 2)

    def __init__(self, *pictures):
        self.sizes = np.array([size for size, *_ in pictures], np.int32)
        self.image_ids = np.arange(len(pictures)) + 10
        self.pictures, self.read = pictures, []

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> Sample:
        self.read.append(index)
        (height, width), boxes, crowd = self.pictures[index]
        rows, columns = np.mgrid[:height, :width]
        image = np.stack((rows, columns, 0 * rows), -1).astype(np.uint8)
        boxes, crowd = (np.array(part, np.float32).reshape(-1, 4) for part in (boxes, crowd))
        return Sample(image, boxes, np.arange(len(boxes)) % 2, crowd, index + 10)

    def objects(self):
        samples = [self[index] for index in range(len(self))]
        index = np.repeat(np.arange(len(self)), [len(sample.boxes) for sample in samples])
        boxes = np.concatenate([sample.boxes for sample in samples])
        return boxes, np.concatenate([sample.labels for sample in samples]), index

    def mask_of(self, index: int, row: int) -> np.ndarray:
        sample = self[index]
        mask = np.zeros(sample.image.shape[:2], np.uint8)
        x1, y1, x2, y2 = sample.boxes[row].astype(int)
        mask[y1:y2, x1:x2] = 1
        return mask


# The layout and the cut ---------------------------------------------------------------------------

# Width 160, tiles of 100 that overlap by 40: they start at 0 and 60.
SIZE, PLACES = (100, 160), [(0, 0, 100, 100), (60, 0, 160, 100)]


def test_the_layout_worked_by_hand():
    assert tile_places(SIZE, 100, 0.4, False) == PLACES
    assert tile_places(SIZE, 100, 0.4, True) == [*PLACES, (0, 0, 160, 100)]
    assert tile_places((90, 100), 100, 0.4, True) == [(0, 0, 100, 90)]


@pytest.mark.parametrize(
    ("box", "part", "whole", "kept", "remain"),
    [
        ([65, 20, 90, 50], [5, 20, 30, 50], True, True, False),
        ([70, 10, 71, 11], [10, 10, 11, 11], True, True, False),  # small, but nothing is cut off
        ([50, 20, 90, 50], [0, 20, 30, 50], False, True, False),  # 30 of 40 columns
        ([30, 20, 70, 50], [0, 20, 10, 50], False, True, False),  # a quarter: just enough
        ([20, 20, 70, 50], [0, 20, 10, 50], False, False, True),  # a fifth
        ([57, 20, 61.5, 50], [0, 20, 1.5, 50], False, False, False),  # too thin to be seen
        ([0, 0, 10, 10], None, False, False, False),
    ],
)
def test_a_cut_worked_by_hand(box, part, whole, kept, remain):
    parts, *said = cut_boxes(np.array([box], np.float32), np.array(PLACES[1]))
    assert [bool(one[0]) for one in said] == [whole, kept, remain]
    assert part is None or parts[0].tolist() == part


def test_the_tiles_of_a_picture_worked_by_hand():
    objects = [[65, 20, 90, 50], [20, 20, 70, 50], [45, 60, 105, 70]]
    tiles = TiledDataset(Drawn((SIZE, objects, [[50, 0, 140, 10]])), 100, 0.4)
    left, right = tiles[0], tiles[1]
    assert left.boxes.tolist() == [[65, 20, 90, 50], [20, 20, 70, 50], [45, 60, 100, 70]]
    assert right.boxes.tolist() == [[5, 20, 30, 50], [0, 60, 45, 70]]
    assert (left.labels.tolist(), right.labels.tolist()) == ([0, 1, 0], [0, 0])
    assert left.ignore_boxes.tolist() == [[50, 0, 100, 10]]  # the crowd region, cut
    assert right.ignore_boxes.tolist() == [[0, 0, 80, 10], [0, 20, 10, 50]]  # and a fifth
    assert right.image.shape == (100, 100, 3) and right.image[7, 3].tolist() == [7, 63, 0]
    assert right.image.base is None, "a batch of tiles would hold the whole pictures"
    assert (left.image_id, right.image_id) == (10, 10)
    assert list(tiles.counts.values()) == [2, 0, 0, 3, 2, 1, 1]
    assert tiles.longest_cut == 60
    boxes, labels, index = tiles.objects()
    assert boxes.tolist() == left.boxes.tolist() + right.boxes.tolist()
    assert (labels.tolist(), index.tolist()) == ([0, 1, 0, 0, 0], [0, 0, 0, 1, 1])
    # Row 1 of the right tile is row 2 of the picture.
    mask = tiles.mask_of(1, 1)
    assert mask.shape == (100, 100) and mask[60:70, :45].all() and mask.sum() == 450
    with pytest.raises(IndexError):
        tiles[2]


def test_the_whole_picture_is_one_more_tile():
    objects = [[10, 20, 150, 50]]
    tiles = TiledDataset(Drawn((SIZE, objects, [])), 100, 0.4, show_whole=True)
    assert tiles.sizes.tolist() == [[100, 100], [100, 100], [100, 160]]
    assert tiles[2].boxes.tolist() == objects
    assert tiles.counts["objects whole in no tile"] == 0


@pytest.mark.parametrize(("tile", "overlap"), [(100, 0.2), (64, 0.37), (33, 0.5)])
def test_objects_smaller_than_the_overlap_are_whole_in_a_tile(tile, overlap):
    rng = np.random.default_rng(tile)
    pictures = []
    for _ in range(20):
        size = rng.integers(20, 400, 2)
        low = rng.uniform(0, size[::-1] - 1, (30, 2))
        high = np.minimum(low + rng.uniform(0.1, tile * overlap, (30, 2)), size[::-1])
        pictures.append((tuple(size.tolist()), np.concatenate((low, high), 1), []))
    data = Drawn(*pictures)
    tiles = TiledDataset(data, tile, overlap)
    assert tiles.counts["objects whole in no tile"] == 0
    assert len(tiles) > 5 * len(data)


# Tiles without objects ----------------------------------------------------------------------------


def empty_and_full() -> Drawn:
    """Ten tiles, of which the first holds an object, and an empty picture of one tile."""
    return Drawn(((100, 1000), [[10, 10, 30, 30]], []), ((50, 60), [], []))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.34, 3), (1.0, 9)])
def test_a_share_of_the_empty_tiles_stays_and_an_empty_small_picture_does(share, kept):
    tiles = TiledDataset(empty_and_full(), 100, 0.0, keep_empty=share)
    assert len(tiles) == 2 + kept
    assert tiles.counts["tiles without objects (kept)"] == kept
    assert tiles.counts["tiles without objects (left out)"] == 9 - kept
    assert (tiles.image == 1).sum() == 1
    assert [len(tiles[number].boxes) for number in range(len(tiles))] == [1] + [0] * (kept + 1)
    assert tiles.places[:-1, 0].tolist() == sorted(tiles.places[:-1, 0].tolist())


def test_which_ones_stay_is_decided_by_the_seed():
    places = [
        TiledDataset(empty_and_full(), 100, 0.0, keep_empty=0.34, seed=seed).places.tolist()
        for seed in (0, 0, 2)
    ]
    assert places[0] == places[1] != places[2]


def test_without_any_object_there_is_nothing_to_cut():
    tiles = TiledDataset(Drawn((SIZE, [], [])), 100, 0.4)
    assert len(tiles) == 2 and tiles[1].boxes.shape == (0, 4) == tiles.objects()[0].shape
    assert TiledDataset(Drawn((SIZE, [], [])), 100, 0.4, keep_empty=0).sizes.shape == (0, 2)


# Batches ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(
        tmp_path_factory.mktemp("coco") / "set", {"train": 8, "val": 4}, (96, 128), empty_every=4
    )


def tiled_config(folder, tiles: dict | None, data: dict | None = None, **train):
    values = tiny_values(folder, **train)
    values["data"] |= {"tiles": tiles, **(data or {})}
    return parse_config(values)


SMALL = {"size": 64, "overlap": 0.25}


def batches_of(config, epoch: int = 0, first: int = 0) -> list:
    loader = build.build_train_loader(config, build.build_dataset(config, "train"))
    loader.batch_sampler.set_position(epoch, first)
    found = [batch.to("cpu") for batch in loader]
    loader.close()
    return found


def assert_same_batches(got: list, want: list) -> None:
    assert len(got) == len(want) > 0
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.images, other.images) and one.metas == other.metas
        for name in vars(one.targets):
            assert torch.equal(getattr(one.targets, name), getattr(other.targets, name)), name


MIXED = {"flip_vertical": 0.5, "mosaic": 0.5, "mixup": 0.3, "scale_jitter": [0.5, 1.5], "crop": 0.3}


@pytest.mark.parametrize("augment", [{}, MIXED], ids=["plain", "mixed"])
def test_pictures_no_larger_than_a_tile_give_the_same_batches(folder, augment):
    data = {"augment": augment}
    plain = batches_of(tiled_config(folder, None, data))
    tiles = {"size": 128, "keep_empty": 0.0}
    assert_same_batches(batches_of(tiled_config(folder, tiles, data)), plain)


def test_cache_device_workers_and_a_later_start_give_the_same_tiles(folder, tmp_path):
    data = {"augment": MIXED, "repeat_factor": 1.0}
    config = tiled_config(folder, SMALL, data)
    want = batches_of(config, epoch=1)
    assert want[0].images.shape[2:] == (96, 96) and want[0].targets.present.any()
    assert_same_batches(batches_of(config, epoch=1, first=2), want[2:])
    for more in ({"cache": "ram"}, {"cache": str(tmp_path), "workers": 1}):
        again = batches_of(tiled_config(folder, SMALL, data | more), epoch=1)
        assert_same_batches(again, want)
    native = batches_of(tiled_config(folder, SMALL, data | {"resize_on_device": True}), epoch=1)
    assert_same_batches(native, want)


# Regions to ignore --------------------------------------------------------------------------------

GRID = make_grid(((4, 4), (2, 2)), (8, 16))


def test_locations_in_a_region_count_for_nothing_but_positives_stay():
    # Centres of stride 8 at 0, 8, 16, 24, of stride 16 at 0 and 16. In (5, 0) to (24, 12) lie
    # (8, 0), (16, 0), (8, 8), (16, 8) and of stride 16 (16, 0): locations 1, 2, 5, 6 and 17.
    # The object owns 5 and 6.
    region = torch.tensor([[[5.0, 0.0, 24.0, 12.0]], [[0.0, 0.0, 0.0, 0.0]]])
    targets = make_targets([[[3, 4, 20, 12.5]], []], size=(32, 32))
    targets = type(targets)(
        **{
            **vars(targets),
            "ignore_boxes": region,
            "ignore_present": torch.tensor([[True], [False]]),
        }
    )
    plain = ATSSAssigner(top_k=3, anchor_scale=1.0)
    found = WithoutIgnored(plain)(GRID, targets)
    assert (found.weight[0] == 0).nonzero().flatten().tolist() == [1, 2, 17]
    assert (found.weight[1] == 1).all()
    assert torch.equal(found.gt_index, plain(GRID, targets).gt_index)
    asked = WithoutIgnored(TaskAlignedAssigner())
    assert asked.needs_candidates
    scores, boxes = torch.rand(2, 20, 2), torch.zeros(2, 20, 4)
    assert asked(GRID, targets, Candidates(scores, boxes)).weight[0, [1, 2, 17]].tolist() == [0] * 3


def test_only_a_training_on_tiles_ignores_by_centres(folder):
    assert isinstance(build.build_criterion(tiled_config(folder, SMALL)).assigner, WithoutIgnored)
    assert isinstance(build.build_criterion(tiny_config(folder)).assigner, ATSSAssigner)


# Evaluation ---------------------------------------------------------------------------------------


def test_each_process_takes_whole_pictures_in_order():
    sizes = [(100, 160 + 60 * (n % 3)) for n in range(7)]
    data = Drawn(*((size, [], []) for size in sizes))
    views = TileViews(data, 100, 0.4, show_whole=True)
    seen = []
    for rank in range(2):
        sampler = EvalSampler(views.sizes, lambda size: size, 3, 100, rank, 2, views.image)
        keys = [key.index for batch in sampler for key in batch]
        firsts = [batch[0].index for batch in sampler]
        assert firsts == sorted(firsts)
        assert set(views.image[keys]) == set(range(rank, 7, 2))
        assert all(len({tuple(views.sizes[k.index]) for k in batch}) == 1 for batch in sampler)
        seen += keys
    assert Counter(seen) == Counter(range(len(views)))


def test_tiles_that_come_in_order_decode_their_picture_once():
    data = Drawn((SIZE, [[5, 5, 20, 20]], []), ((100, 220), [], []))
    views = TileViews(data, 100, 0.4)
    for number in range(len(views)):
        tile = views[number]
        x1, y1, _, _ = views.places[number]
        assert tile.image_id == number and len(tile.boxes) == 0
        assert tile.image[0, 0].tolist() == [y1, x1, 0]
    assert data.read == [0, 1] and len(views) == 5


def found(*rows) -> Detections:
    """Rows of (box, score)."""
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4)
    scores = torch.tensor([row[1] for row in rows], dtype=torch.float32)
    return Detections(boxes, scores, torch.zeros(len(rows), dtype=torch.int64), boxes * 0)


def test_a_join_gives_a_picture_once_all_of_its_tiles_have_come():
    views = TileViews(Drawn((SIZE, [], []), ((90, 100), [], [])), 100, 0.4)
    join = TileJoin(views, [10, 11], 0.6, 100)
    seen = {0: found(([65, 20, 90, 50], 0.8)), 1: found(([5, 20, 30, 50], 0.9)), 2: found()}
    assert join(1, seen[1]) == {}
    assert list(join(2, seen[2])) == [11]
    joined = join(0, seen[0])
    assert list(joined) == [10] and joined[10].boxes.tolist() == [[65, 20, 90, 50]]
    assert joined[10].scores.item() == pytest.approx(0.9) and join.found == {}


def test_the_order_in_which_tiles_come_does_not_matter():
    views = TileViews(Drawn((SIZE, [], [])), 100, 0.4)
    parts = [found(([5, 5, 20, 20], 0.5)), found(([50, 50, 80, 80], 0.5))]
    for order in ((0, 1), (1, 0)):
        join = TileJoin(views, [10], 0.6, 100)
        *_, joined = [join(number, parts[number]) for number in order]
        assert joined[10].boxes.tolist() == [[5, 5, 20, 20], [110, 50, 140, 80]]


@pytest.fixture(scope="module")
def content(folder):
    """An untrained network that detects something everywhere, as a checkpoint holds it."""
    torch.manual_seed(1)
    config = tiled_config(folder, SMALL, {"test_size": {"short": 64, "long": 64}})
    model = build.build_model(config, 2)
    torch.nn.init.normal_(model.head.cls_out.weight, std=0.5)
    torch.nn.init.normal_(model.head.box_out.weight, std=0.5)
    class_map = {"names": ["square", "disc"], "category_ids": [3, 7]}
    facts = {"weights": "raw", "class_map": class_map, "config": config.to_dict()}
    return {"model": model.state_dict(), **facts, "step": 1, "epoch": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, content)
    return path


def judged(checkpoint, *overrides, **options):
    return gfl.evaluate(checkpoint, list(overrides), say=lambda line: None, **options)


def test_evaluating_small_pictures_on_tiles_is_evaluating_them(checkpoint):
    plain = judged(checkpoint, "data.tiles=null")
    assert len(plain[1]) > 20
    assert judged(checkpoint, "data.tiles.size=128") == plain
    assert judged(checkpoint)[1] != plain[1]


@pytest.mark.parametrize("whole", [False, True])
def test_results_are_those_of_predict_tiled(folder, checkpoint, content, whole):
    """Whose tiles are those of the training, unless others are stated."""
    _, results = judged(checkpoint, f"data.tiles.whole={str(whole).lower()}")
    # As it was trained: folded norms would change the last digits.
    detector = detector_of(content, "content", "cpu", False, False, False)
    data = build.build_dataset(detector.config, "val")
    want = []
    for index in range(len(data)):
        stated = {"whole": True} if whole else {}
        want += detector.predict_tiled(data.path(index), batch_size=1, **stated).to_coco(
            int(data.image_ids[index])
        )
    assert len(results) == len(want) > 20
    for one, other in zip(results, sorted(want, key=lambda e: e["image_id"]), strict=True):
        assert one["image_id"] == other["image_id"]
        assert one["score"] == pytest.approx(other["score"], abs=1e-5)
        assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)


def test_mirrored_tiles_are_joined_as_well(checkpoint):
    _, plain = judged(checkpoint, "data.tiles=null", flip=True)
    assert judged(checkpoint, "data.tiles.size=128", flip=True)[1] == plain


def test_what_is_not_stated_is_that_of_the_training():
    trained = parse_config({"data": {"tiles": {"size": 512, "overlap": 0.3}}}).data.tiles
    assert Tiling.chosen(None, None, None, None) == (1024, 0.25, True)
    assert Tiling.chosen(trained, None, None, None) == (512, 0.3, False)
    assert Tiling.chosen(trained, 256, None, True) == (256, 0.3, True)


def test_predict_takes_the_tiles_of_the_training(checkpoint, folder, tmp_path, capsys):
    picture = str(next((folder / "images").glob("val_*.png")))
    outcomes = []
    for number, words in enumerate(([], ["--tile", "64", "--overlap", "0.25"], ["--tile", "0"])):
        out = tmp_path / str(number)
        status = predict([str(checkpoint), picture, "--out", str(out), "--no-pictures", *words])
        said = capsys.readouterr().err
        assert status == 0 and ("as in training" in said) == (not words)
        [entry] = json.loads((out / "predictions.json").read_text())
        outcomes.append(entry["detections"])
    assert outcomes[0] == outcomes[1] != outcomes[2]


# What is said, chosen and refused -----------------------------------------------------------------


def test_a_training_says_what_became_of_tiles_and_objects(folder):
    config = tiled_config(folder, {"size": 64, "overlap": 0.1})
    tiles = build.build_tiles(config, build.build_dataset(config, "train"))
    first, counts, warning = tile_lines(config, tiles)
    assert first.startswith(
        f"data.tiles: {len(tiles)} tiles of 64 x 64 pixels at most, overlap 0.1"
    )
    assert first.endswith("data.train_size makes 96 x 96 of one")
    assert f"{tiles.counts['clipped boxes']} clipped boxes" in counts
    lost = tiles.counts["objects whole in no tile"]
    assert 0 < lost < 12
    assert (
        warning.startswith(f"WARNING: {lost} of 12 objects are whole in no tile")
        and "6." in warning
    )
    assert build.build_tiles(config, tiles) is tiles
    limited = config.with_values({"postprocess.max_per_image": 1})
    [line] = tile_lines(limited, tiles.whole)
    assert "up to 2 objects" in line and "keeps 1" in line
    assert tile_lines(config, tiles.whole) == tile_lines(tiny_config(folder), tiles.whole) == []


def test_auto_looks_at_tiles_as_large_as_they_are_cut(folder):
    values = {"train_size": "auto", "test_size": "auto"}
    config = tiled_config(folder, {"size": 80}, values)
    tiles = build.build_tiles(config, build.build_dataset(config, "train"))
    chosen, choices = choose_sizes(config, tiles, torch.device("cpu"))
    assert chosen.data.train_size.model_dump() == {"short": 80, "long": 80}
    assert chosen.data.test_size == chosen.data.train_size
    assert "tiles.size" in choices[0].reason


def test_the_data_check_counts_tiles_and_covers_their_boxes(folder, tmp_path, capsys):
    config, file = tmp_path / "config.json", tmp_path / "found.json"
    values = tiny_values(folder)
    values["data"] |= {"tiles": {"size": 64, "overlap": 0.1}}
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(values))
    assert check_data([str(config), "--json", str(file)]) == 0
    report = json.loads(file.read_text())["splits"]
    data = tiled_config(folder, values["data"]["tiles"])
    tiles = build.build_tiles(data, build.build_dataset(data, "train"))
    assert report["train"]["tiles"]["counts"] == tiles.counts
    assert "whole in no tile" in capsys.readouterr().out
    assert report["train"]["counts"]["objects"] == 12 and report["val"]["tiles"] == {}
    edges = sum(level["edges"] for level in report["train"]["reg_max"])
    assert edges == 4 * len(tiles.objects()[0]) > 4 * 12


class Bare:
    """Samples, and nothing that tiles could be made from."""

    class_names, category_ids, sizes = ("a",), (1,), np.zeros((1, 2), np.int32)


def test_what_does_not_go_together_is_refused(folder, checkpoint):
    for data, why in (
        ({"tiles": SMALL, "reduced_decoding": True}, "reduced_decoding"),
        ({"tiles": SMALL, "auto_largest": 320, "train_size": "auto"}, "auto_largest"),
        ({"tiles": {"size": 32}}, "size"),
        ({"tiles": {"overlap": 0.95}}, "overlap"),
    ):
        with pytest.raises(UserError, match=why):
            parse_config({"data": data})
    with pytest.raises(UserError, match=r"Bare has no objects.*data\.tiles=null"):
        build.build_train_loader(tiled_config(folder, SMALL), Bare())
    from gfl.analysis.collect import collect

    with pytest.raises(UserError, match=r"trained on tiles.*data\.tiles=null"):
        collect(checkpoint, [], "val", say=lambda line: None)


# A training ---------------------------------------------------------------------------------------


def test_a_training_on_tiles(folder, tmp_path):
    more = {"cache": "ram", "augment": {"mosaic": 0.5}, "train_size": {"short": 64, "long": 64}}
    more["test_size"] = more["train_size"]
    tiles = {"size": 64, "overlap": 0.5, "keep_empty": 0.5}
    config = tiled_config(folder, tiles, more, epochs=1, eval_batch_size=8)
    outcome = gfl.train(config, work_dir=tmp_path)
    log = (tmp_path / "log.txt").read_text()
    count = int(log.split("data.tiles: ")[1].split()[0])
    assert f"{-(-count // 4)}" in log and count > 8
    assert "data.cache:" in log and "8 decoded pictures" in log
    assert (tmp_path / "train_batches" / "batch_0.jpg").exists()
    assert (tmp_path / "predictions.jpg").exists()
    again, results = judged(tmp_path / "best.pt")
    assert again["AP"] == outcome["last"]["AP"]
    val = build.build_dataset(config, "val")
    assert {entry["image_id"] for entry in results} <= set(val.image_ids.tolist())
    views, _ = build_tile_views(config, val)
    assert len(views) > 2 * len(val)


def test_of_a_crowd_region_every_part_stays_in_a_tile():
    """10 of 70 columns: less than what an object needs."""
    tiles = TiledDataset(Drawn((SIZE, [], [[0, 0, 70, 10]])), 100, 0.4)
    assert tiles[1].ignore_boxes.tolist() == [[0, 0, 10, 10]]
