"""Two CPU processes give what one gives."""

import json
import os
import subprocess
import sys

import pytest
import torch
import yaml
from builders import tiny_values, write_coco
from conftest import REPOSITORY

from gfl.cli.test import main

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def run(*command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=ENVIRONMENT, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Each finds a free port: tests may run side by side.
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    # One padded shape: what is padded differently gives another group norm.
    size = (96, 96)
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": 8, "val": 5}, size)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The same config, 6 steps, by one process and by two; work directories by their number."""
    tmp = tmp_path_factory.mktemp("runs")
    # Frozen statistics, so that a process's batch-norm does not depend on its share.
    weights = tmp / "resnet18.pth"
    import torchvision

    torch.manual_seed(1)
    torch.save(torchvision.models.resnet18().state_dict(), weights)
    values = tiny_values(folder, epochs=3, eval_epochs=3)
    values["model"]["backbone"] = {"name": "resnet18", "pretrained": str(weights)}
    values["data"].update(augment={"flip_horizontal": 0.0}, group_by_aspect=False)
    (tmp / "c.yaml").write_text(yaml.safe_dump(values))
    train = [str(REPOSITORY / "tools/train.py"), str(tmp / "c.yaml"), "--work-dir"]
    run(*train, str(tmp / "1"))
    run(*TORCHRUN, *train, str(tmp / "2"))
    return tmp


def metrics(path) -> list[dict]:
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_does(trained):
    one, two = (metrics(trained / n) for n in "12")
    assert len(one) == len(two) == 7
    for a, b in zip(one[:2], two[:2], strict=True):
        for name in ("loss", "loss_cls", "loss_box", "loss_dfl", "grad_norm", "lr"):
            assert b[name] == pytest.approx(a[name], rel=1e-5), name
    weights = [torch.load(trained / n / "last.pt", weights_only=True)["model"] for n in "12"]
    for name, value in weights[0].items():
        assert torch.allclose(value, weights[1][name], rtol=1e-3, atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("switches", [["data.pad_to=[[96, 96]]"], ["train.compile=true"]])
def test_two_processes_train_alike_however_a_step_is_computed(trained, tmp_path, switches):
    """Gradients meet in DDP, counts of positives in the criterion, compiled or not."""
    command = [str(REPOSITORY / "tools/train.py"), str(trained / "c.yaml"), *switches]
    run(*TORCHRUN, *command, "train.checkpoint_activations=true", "--work-dir", str(tmp_path))
    wanted, got = metrics(trained / "2"), metrics(tmp_path)
    assert len(wanted) == len(got)
    for a, b in zip(wanted[:2], got[:2], strict=True):
        for name in ("loss", "loss_cls", "loss_box", "loss_dfl", "grad_norm", "lr"):
            assert b[name] == pytest.approx(a[name], rel=1e-4), name


def test_the_log_says_how_the_batch_is_divided(trained):
    assert "batch: 4 = 2 processes x 1 parts x 2 images" in (trained / "2" / "log.txt").read_text()


@pytest.mark.slow
def test_two_processes_train_what_is_not_frozen(folder, tmp_path):
    """DDP stops at a parameter that no gradient reaches: it must not be told of any."""
    values = tiny_values(folder, epochs=1, freeze=["backbone.body.stage2"], lr_factors={"head": 2})
    values["model"]["backbone"] = {"name": "timm/hrnet_w18_small", "pretrained": False}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    script = str(REPOSITORY / "tools/train.py")
    run(*TORCHRUN, script, str(tmp_path / "c.yaml"), "--work-dir", str(tmp_path / "run"))
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["step"] == 2
    counts = {k: int(v) for k, v in last["model"].items() if "num_batches_tracked" in k}
    # Every other norm, of the maps that are not used too, has seen the two steps.
    assert {k.split(".")[2] for k, v in counts.items() if v == 0} == {"stage2"}
    assert {v for k, v in counts.items() if ".stage2." not in k} == {2}


def test_ap_does_not_depend_on_processes_or_batch_size(trained):
    checkpoint = str(trained / "1" / "last.pt")
    for name, size in (("a", 1), ("b", 4)):
        results = ["--results", str(trained / "one.json"), f"train.eval_batch_size={size}"]
        assert main([checkpoint, "--json", str(trained / f"{name}.json"), *results]) == 0
    test = (str(REPOSITORY / "tools/test.py"), checkpoint, "--json", str(trained / "c.json"))
    run(*TORCHRUN, *test, "--results", str(trained / "r.json"))
    a, b, c = (json.loads((trained / f"{name}.json").read_text()) for name in "abc")
    assert b["AP"] == pytest.approx(a["AP"], abs=1e-6) and c["AP"] == pytest.approx(
        a["AP"], abs=1e-6
    )
    ids = {entry["image_id"] for entry in json.loads((trained / "r.json").read_text())}
    alone = {entry["image_id"] for entry in json.loads((trained / "one.json").read_text())}
    assert ids == alone and len(ids) > 1


GRADIENTS = """
import sys, torch
from builders import make_targets, pyramid, random_boxes
from gfl.assigner import ATSSAssigner
from gfl.distributed import process_group, rank, world_size
from gfl.losses import GFLCriterion
from gfl.losses.distillation import LocalizationDistillation
from gfl.models.box_representation import GeneralBox
from gfl.structures import Predictions
boxes = [random_boxes(n, 192, 256, seed=n) for n in (3, 0, 7, 1)]
labels = [[i % 3 for i in range(len(b))] for b in boxes]
torch.manual_seed(0)
grid = pyramid(192, 256)
cls, box = torch.randn(4, 1024, 3) - 4, torch.randn(4, 1024, 68)
taught = torch.randn(4, 1024, 68)
with process_group("cpu"):
    share = slice(rank() * 4 // world_size(), (rank() + 1) * 4 // world_size())
    c, b = cls[share].clone().requires_grad_(), box[share].clone().requires_grad_()
    targets = make_targets(boxes[share], labels[share], size=(192, 256))
    criterion = GFLCriterion(
        ATSSAssigner(), GeneralBox(16), distillation=LocalizationDistillation(17)
    )
    teacher = Predictions(cls[share], taught[share], grid)
    losses = criterion(Predictions(c, b, grid), targets, teacher)
    (sum(losses.values()) / world_size()).backward()
    torch.save({"losses": {k: v.detach() for k, v in losses.items()}, "cls": c.grad, "box": b.grad},
               f"{sys.argv[1]}/{world_size()}_{rank()}.pt")
"""


@pytest.mark.slow  # the losses and weights of a whole training are compared above
def test_criterion_gradients_of_two_processes_are_those_of_one(tmp_path):
    """DDP averages: each process's gradient over their number, side by side, is the whole."""
    script = tmp_path / "gradients.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY / 'tests')!r})\n" + GRADIENTS
    )
    run(str(script), str(tmp_path))
    run(*TORCHRUN, str(script), str(tmp_path))
    whole = torch.load(tmp_path / "1_0.pt", weights_only=True)
    halves = [torch.load(tmp_path / f"2_{r}.pt", weights_only=True) for r in (0, 1)]
    for name in ("cls", "box"):
        joined = torch.cat([half[name] for half in halves])
        assert torch.allclose(joined, whole[name], rtol=1e-5, atol=1e-9), name
    assert whole["losses"]["loss_ld"] > 0 and whole["losses"]["loss_ld_region"] > 0
    for name, value in whole["losses"].items():
        mean = sum(half["losses"][name] for half in halves) / 2
        assert torch.allclose(mean, value, rtol=1e-5), name
