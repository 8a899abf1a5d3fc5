"""Stopping when AP no longer rises: the rule by hand, and two processes that stop together."""

import jobs
import pytest
import torch
from builders import tiny_values, write_coco
from test_train import metrics_of, run_train, write_config

from gfl.engine.early_stop import stopped_early


def test_the_rule_by_hand():
    best = {"AP": 0.5, "epoch": 4}
    assert stopped_early(best, 40, 10, None) is None
    assert stopped_early(best, 60, 10, 3) is None
    said = stopped_early(best, 70, 10, 3)
    assert "0.5000 of epoch 4, has not risen for 3 epochs (train.early_stop_epochs 3)" in said
    # Steps since the last evaluation are not yet judged: epoch 6 was the last one.
    assert stopped_early(best, 60, 10, 2) and stopped_early(best, 40, 10, 1) is None
    assert stopped_early({}, 0, 10, 1) is None


@pytest.mark.slow
def test_two_processes_stop_together_and_a_resume_says_why(tmp_path, capsys):
    folder, work_dir = write_coco(tmp_path / "set", {"train": 4, "val": 2}), tmp_path / "run"
    # Weights that hardly move: the first evaluation stays the best.
    values = tiny_values(folder, epochs=4, lr=1e-12, early_stop_epochs=1, weight_decay=0.0)
    weights = str(tmp_path / "weights.pth")
    values["model"]["backbone"] = {"name": "resnet18", "norm": "frozen", "pretrained": weights}
    import torchvision

    torch.save(torchvision.models.resnet18().state_dict(), tmp_path / "weights.pth")
    config = write_config(tmp_path / "c.yaml", values)
    jobs.run_on_ranks([config, "--work-dir", work_dir], tmp_path)
    text = (work_dir / "log.txt").read_text()
    assert "stopped early: the best AP on val" in text and "of epoch 1, has not risen" in text
    assert torch.load(work_dir / "last.pt", weights_only=True)["step"] == 2
    assert torch.load(work_dir / "best.pt", weights_only=True)["step"] == 1

    own = work_dir / "config.yaml"
    status, error = run_train(capsys, own, "--resume")
    assert status == 0 and "nothing is left to do: stopped early" in error
    assert "--resume train.early_stop_epochs=null trains all 4 epochs" in error
    assert torch.load(work_dir / "last.pt", weights_only=True)["step"] == 2
    status, error = run_train(capsys, own, "--resume", "train.early_stop_epochs=2")
    assert status == 0 and "nothing is left" not in error and "has not risen for 2" in error
    assert [line["step"] for line in metrics_of(work_dir) if "AP" in line] == [1, 2, 3]
