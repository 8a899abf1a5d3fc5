"""Sizes, batches and epochs that fit data and machine, each rule by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders import measured, write_formats
from torch import nn

from gfl.automatic import network_without_content
from gfl.config import load_config
from gfl.data.fitting import fitting_reg_max, fitting_side, fitting_val_fraction
from gfl.data.layout import find_format
from gfl.engine.budget import fitting_batch, fitting_epochs
from gfl.engine.footprint import image_bytes, weight_bytes
from gfl.engine.free_memory import UNKNOWN, free_bytes, room_for_images
from gfl.errors import UserError

MIB, GIB = 2**20, 2**30


def side_of(shorter: list[int], size=(480, 640), **more) -> tuple[int, str]:
    """`fitting_side` at stride 8 of as many pictures as objects, given the objects' short sides."""
    boxes = np.array([[10, 20, 10 + side, 20 + 3 * side] for side in shorter], np.float32)
    sizes = np.tile(np.array(size, np.int32), (len(shorter), 1))
    return fitting_side(boxes, np.arange(len(shorter)), sizes, 8, **more)


@pytest.mark.parametrize(
    ("shorter", "size", "largest", "side", "words"),
    [
        # 8 * 640 / 10 = 512 makes 10 pixels 8.
        ([10] * 4, (480, 640), None, 512, "90% of the objects are 8 pixels"),
        ([10] * 18 + [2] * 2, (480, 640), None, 512, "from 512 on"),
        ([10] * 17 + [9] * 3, (480, 640), None, 576, "from 576 on"),  # 568.9, rounded up
        ([100] * 4, (480, 640), None, 320, "from 64 on; 320 is the least"),
        ([100] * 4, (150, 200), None, 224, "320 is the least, but pictures are no larger than 224"),
        ([4] * 4, (480, 640), None, 640, "would need 1280; 100% of the pictures are no larger"),
        ([10] * 4, (1000, 2000), None, 640, "0% of the objects are 8 pixels"),
        ([10] * 4, (1000, 2000), None, 640, "90% would need 1600; data.auto_largest is the bound"),
        ([10] * 4, (1000, 2000), 1024, 1024, "data.auto_largest is the bound"),
        ([10] * 4, (1000, 2000), 4096, 1600, "from 1600 on"),
        ([3] * 4, (20, 30), None, 64, ""),
        ([], (480, 640), None, None, ""),
    ],
)
def test_side(shorter, size, largest, side, words):
    if side is None:
        nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64)
        assert fitting_side(*nothing, np.array([[480, 640]]), 8)[0] == 320
        return
    found, reason = side_of(shorter, size, largest=largest)
    assert found == side and words in reason


def reg_max_of(*wh: tuple[int, int], size=320, strides=(8, 16, 32), **more) -> tuple[int, str]:
    """`fitting_reg_max` of boxes of these widths and heights in pictures of 320 x 320."""
    boxes = np.array([[0, 0, w, h] for w, h in wh], np.float32).reshape(-1, 4)
    sizes = np.full((len(boxes), 2), 320)
    return fitting_reg_max(boxes, sizes, (size, size), strides, 8.0, **more)


def test_reg_max():
    # sqrt(140 * 40) = 75 lies nearest to the anchor 64 of stride 8: 70 / 8 = 8.75, and 1.5.
    assert reg_max_of((140, 40))[0] == 11
    assert reg_max_of((140, 40), bin_width=0.5)[0] == 21
    # In pictures of 640: 150 is nearest to 128, of stride 16, where it is as far.
    assert reg_max_of((140, 40), size=640)[0] == 11
    assert reg_max_of((60, 60))[0] == 8  # 3.75 + 1.5, but 8 is the least
    assert reg_max_of((60, 60), least=12)[0] == 12
    found, reason = reg_max_of((300, 300), size=640, strides=(8,))  # 37.5 + 1.5
    assert found == 32 and "need 39 at stride 8" in reason and "100 % of all lie" in reason
    # One long side of 4000 is left out, five are not: a level's worst of a thousand.
    many = [(60, 60)] * 2000
    assert reg_max_of((140, 40), *many)[0] == 8
    assert reg_max_of(*[(140, 40)] * 5, *many)[0] == 11
    # A level of few objects counts as much as one of many: 160 / 16 + 1.5 at stride 16.
    assert reg_max_of((320, 60), *many)[0] == 12
    assert reg_max_of()[0] == 8


@pytest.mark.parametrize(
    ("images", "parts", "fit", "batch", "words"),
    [
        (1000, 1, 100, 16, "16 is the most"),
        (1000, 1, 5, 4, "no more fit"),
        (1000, 2, 5, 8, "no more fit; 2 parts of 4"),
        (1000, 3, 100, 12, "16 is the most; 3 parts of 4"),
        (1000, 32, 100, 32, "32 parts of 1"),
        (40, 1, 100, 4, "40 images make 8 steps"),
        (3, 1, 100, 1, "3 images make 8 steps"),
        (1000, 1, 0, 1, "not even one image fits"),
    ],
)
def test_batch(images, parts, fit, batch, words):
    found, reason = fitting_batch(images, parts, 10.0 * MIB, (fit + 0.5) * 10 * MIB)
    assert found == batch and words in reason and f"{fit} fit" in reason


def test_epochs_and_val_fraction():
    assert fitting_epochs(205, 16)[0] == 200  # 13 steps: 462 would be 6000 steps
    epochs, reason = fitting_epochs(1000, 16)
    assert epochs == 96 and "63 steps an epoch, 6048 in all" in reason
    assert fitting_epochs(117266, 16)[0] == 24
    assert fitting_val_fraction(199)[0] == 0.2 and fitting_val_fraction(200)[0] == 0.1


def test_free_memory_is_the_least_of_machine_and_container(tmp_path, monkeypatch):
    cpu = torch.device("cpu")
    for place in ("proc", "sys/fs/cgroup/memory"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9 kB\nMemAvailable:    4096 kB\n")
    assert free_bytes(cpu, tmp_path) == 4 * MIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    (tmp_path / "sys/fs/cgroup/memory.current").write_text("5\n")
    assert free_bytes(cpu, tmp_path) == 4 * MIB
    (tmp_path / "sys/fs/cgroup/memory.max").write_text(f"{3 * MIB}\n")
    assert free_bytes(cpu, tmp_path) == 3 * MIB - 5
    (tmp_path / "sys/fs/cgroup/memory.stat").write_text("anon 2\ninactive_file 3\nfile 3\n")
    assert free_bytes(cpu, tmp_path) == 3 * MIB - 2
    (tmp_path / "sys/fs/cgroup/memory.max").unlink()
    (tmp_path / "sys/fs/cgroup/memory/memory.limit_in_bytes").write_text("100")
    (tmp_path / "sys/fs/cgroup/memory/memory.usage_in_bytes").write_text("300")
    assert free_bytes(cpu, tmp_path) == 0
    (tmp_path / "sys/fs/cgroup/memory/memory.stat").write_text("total_inactive_file 260\n")
    assert free_bytes(cpu, tmp_path) == 60
    monkeypatch.setattr("os.sysconf", lambda name: {"SC_PHYS_PAGES": 10, "SC_PAGE_SIZE": 8}[name])
    assert free_bytes(cpu, tmp_path / "nowhere") == 40
    monkeypatch.delattr("os.sysconf")
    assert free_bytes(cpu, tmp_path / "nowhere") == UNKNOWN


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr("gfl.engine.free_memory.free_bytes", lambda device: 8 * GIB)
    assert room_for_images(torch.device("cpu"), GIB) == 3 * GIB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert room_for_images(torch.device("cpu"), GIB) == 0
    # Each process has a GPU of its own.
    assert room_for_images(torch.device("cuda", 0), GIB) == pytest.approx(5.4 * GIB)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, images):
        return SimpleNamespace(out=self.conv(images).relu())


def test_an_image_costs_what_autograd_keeps_of_it():
    model = Small().to("meta").eval()
    # Of one picture the input, 3 x 8 x 8, and what ReLU gives, 4 x 8 x 8, in 4 bytes; times 1.5.
    assert image_bytes(model, (8, 8)) == 1.5 * 4 * (3 + 4) * 64
    assert image_bytes(model, (16, 8)) == 2 * image_bytes(model, (8, 8))
    assert weight_bytes(model) == 5 * 4 * (4 * 3 * 9 + 4) and not model.training


def test_the_format_is_what_a_folder_holds(tmp_path):
    folders = write_formats(tmp_path, {"train": 1})
    for name, folder in folders.items():
        assert find_format(folder) == name
    assert find_format(folders["yolo"] / "data.yaml") == "yolo"
    (folders["coco"] / "data.yaml").write_text("names: [a]\n")
    with pytest.raises(UserError, match="COCO annotations and data.yaml: .*=coco or yolo"):
        find_format(folders["coco"])
    with pytest.raises(UserError, match="has none of .*found \\['coco', 'voc', 'yolo'\\]"):
        find_format(tmp_path)
    with pytest.raises(UserError, match="nowhere is no folder"):
        find_format(tmp_path / "nowhere")


def test_norms_of_all_processes_cost_as_much():
    """They refuse to compute without a GPU where there are processes."""
    sync = load_config("gfl_n", ["model.backbone.norm=sync"])
    networks = [network_without_content(config, 3) for config in (load_config("gfl_n"), sync)]
    assert not any(isinstance(m, nn.SyncBatchNorm) for m in networks[1].modules())
    own, theirs = (image_bytes(network, (64, 64)) for network in networks)
    assert own == theirs


PEAK = """
import sys, torch
from builders import make_targets, without_auto
from gfl import build
from gfl.config import load_config
from gfl.engine.train import train_step
from gfl.structures import Batch, ImageMeta

count, size = int(sys.argv[1]), (320, 320)
config = without_auto(load_config("gfl_s", ["train.precision=fp32"]))
state = build.build_state(config, 3, 100, torch.device("cpu"))
boxes = [[[10.0, 12.0, 70.0, 90.0], [100.0, 20.0, 150.0, 60.0]]] * count
batch = Batch(
    torch.zeros(count, 3, *size, dtype=torch.uint8),
    torch.tensor([size] * count),
    make_targets(boxes, [[0, 2]] * count),
    tuple(ImageMeta(i, size, size, (1.0, 1.0)) for i in range(count)),
)
parts = build.build_criterion(config), build.build_normalize(config, "cpu")
for _ in range(2):
    train_step(state, state.model, [batch], *parts, build.build_loop_options(config, 100))
print(mebibytes("VmHWM"))
"""


@pytest.mark.slow
def test_the_computed_cost_of_an_image_is_above_the_measured_one():
    """Within a factor of two; pytest -s prints both."""
    computed = image_bytes(network_without_content(load_config("gfl_s"), 3), (320, 320)) / MIB
    few, many = (measured(PEAK, count)[0] for count in (4, 12))
    print(f"computed {computed:.0f} MiB an image, measured {(many - few) / 8:.0f}")
    assert 1 < computed / ((many - few) / 8) < 2
