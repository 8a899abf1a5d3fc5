"""What goes wrong inside a step: not finite, out of memory, half precision, workers."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from builders import make_targets, tiny_config, tiny_values, write_coco
from torch import nn

import gfl
from gfl.data import loader as loading
from gfl.data import shared_memory
from gfl.data.batch import Normalize
from gfl.engine import memory
from gfl.engine.precision import disagreement
from gfl.errors import TrainingFailed, UserError
from gfl.losses.criterion import GFLCriterion
from gfl.structures import Batch, ImageMeta, Predictions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data") / "set", {"train": 8, "val": 2})


def log_of(run) -> str:
    return (run / "log.txt").read_text()


def spoil_image(monkeypatch, marker: tuple[int, int]) -> None:
    """Images whose file says so (their first pixel) become NaN on their way to the network."""
    real = Normalize.__call__

    def spoiled(self, images, sizes):
        bad = (images[:, 0, 0, 0] == marker[0]) & (images[:, 1, 0, 0] == marker[1])
        return torch.where(bad[:, None, None, None], torch.nan, real(self, images, sizes))

    monkeypatch.setattr(Normalize, "__call__", spoiled)


def test_an_image_that_spoils_the_loss_is_named_and_its_batch_kept(folder, tmp_path, monkeypatch):
    config = tiny_config(folder, epochs=1)
    config = config.model_copy(
        update={
            "data": config.data.model_copy(
                update={"augment": config.data.augment.model_copy(update={"flip_horizontal": 0.0})}
            )
        }
    )
    dataset = gfl.build.build_dataset(config, "train")
    sample = dataset[5]
    spoil_image(monkeypatch, tuple(int(v) for v in sample.image[0, 0, :2]))
    gfl.train(config, work_dir=tmp_path / "run")
    [line] = [line for line in log_of(tmp_path / "run").splitlines() if "skipped" in line]
    [path] = (tmp_path / "run" / "bad_batches").iterdir()
    step = int(re.search(r"step (\d+) skipped: loss_cls, loss_box, loss_dfl not", line)[1])
    [name] = dataset.files_of(sample.image_id)
    assert f"images {sample.image_id} ({name}) (each alone gives it)" in line
    assert str(path) in line and path.name == f"step_{step}.pt"
    kept = torch.load(path, weights_only=True)
    assert kept["culprits"] == [sample.image_id] and len(kept["image_ids"]) == 4
    assert kept["images"].dtype == torch.uint8 and kept["images"].shape[:2] == (4, 3)
    row = kept["image_ids"].index(sample.image_id)
    assert kept["metas"][row]["image_id"] == sample.image_id
    assert kept["targets"]["boxes"].shape == (4, 2, 4) and set(kept["losses"]) >= {"loss_cls"}
    assert kept["files"][sample.image_id] == [name]
    steps = [json.loads(x)["step"] for x in open(tmp_path / "run" / "metrics.jsonl")]
    assert steps == [1, 2, 2]


def test_no_more_than_five_batches_are_kept_and_the_term_is_named(folder, tmp_path, monkeypatch):
    real = GFLCriterion._losses

    def poisoned(self, *args):
        losses = real(self, *args)
        return {**losses, "loss_dfl": losses["loss_dfl"] * torch.nan}

    monkeypatch.setattr(GFLCriterion, "_losses", poisoned)
    config = tiny_config(folder, epochs=9, batch_size=1, max_bad_steps=7, checkpoint_steps=99)
    with pytest.raises(TrainingFailed, match="7 steps in a row were not finite.*loss_dfl not"):
        gfl.train(config, work_dir=tmp_path / "run")
    assert len(list((tmp_path / "run" / "bad_batches").iterdir())) == 5
    assert "holds 5 already" in log_of(tmp_path / "run")


def test_a_weight_that_is_not_finite_is_said_and_never_saved(folder, tmp_path, monkeypatch):
    import gfl.engine.train as loop

    real = loop.train_step

    def spoils(state, *args):
        if state.step == 2:
            with torch.no_grad():
                next(state.model.parameters()).view(-1)[0] = torch.nan
        return real(state, *args)

    monkeypatch.setattr(loop, "train_step", spoils)
    with pytest.raises(TrainingFailed, match="last.pt of step 4 is refused.*still holds step 2"):
        gfl.train(tiny_config(folder, epochs=3, ema_decay=0.9), work_dir=tmp_path / "run")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["step"] == 2
    assert all(v.isfinite().all() for v in last["model"].values() if v.is_floating_point())
    assert "because weights are not finite" in log_of(tmp_path / "run")


# Memory -----------------------------------------------------------------------------------------


def batch_of(boxes: list) -> Batch:
    targets = make_targets(boxes, size=(64, 96))
    metas = tuple(ImageMeta(10 + i, (64, 96), (64, 96), (1.0, 1.0)) for i in range(len(boxes)))
    images = torch.zeros(len(boxes), 3, 64, 96, dtype=torch.uint8)
    return Batch(images, torch.tensor([[64, 96]] * len(boxes)), targets, metas)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"),
        torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported"),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_batch_size_and_boxes(error):
    batch = batch_of([[[1, 1, 9, 9]] * 3, []])
    wanted = r"2 x \(64, 96\), at most 3 boxes in an image, image ids \[10, 11\]. Lower a."
    with pytest.raises(TrainingFailed, match=wanted), memory.explained([batch], "a"):
        raise error


def test_memory_that_really_ran_out_is_recognised_and_a_bug_is_not():
    with pytest.raises(TrainingFailed, match="out of memory"), memory.explained([], "x"):
        torch.empty(1 << 60, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="shape"), memory.explained([], "x"):
        torch.ones(2).view(3)


def test_a_batch_norm_with_one_value_a_channel_says_what_to_raise(tmp_path, capsys):
    """128 pixels are one place of the level of stride 128."""
    folder = write_coco(tmp_path / "set", {"train": 2, "val": 1})
    values = tiny_values(folder, batch_size=1)
    values["model"]["head"]["norm"] = "batch"
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(values))
    from gfl.cli import train as command

    assert command.main([str(tmp_path / "c.yaml"), "--work-dir", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "batch norms can not learn from one image" in error and "train.batch_size" in error


def test_a_prediction_out_of_memory_is_a_message(checkpoint, monkeypatch):
    detector = gfl.load(checkpoint, device="cpu")

    def no_memory(images):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(detector, "model", no_memory)
    with pytest.raises(UserError, match="images x .height, width. 2 x .*Lower batch_size"):
        detector.predict([np.zeros((64, 64, 3), np.uint8)] * 2)


def test_a_training_out_of_memory_ends_with_status_1(folder, tmp_path, monkeypatch, capsys):
    from gfl.cli import train as command

    def full(self, *args):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(GFLCriterion, "_losses", full)
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny_values(folder)))
    assert command.main([str(tmp_path / "c.yaml"), "--work-dir", str(tmp_path / "run")]) == 1
    error = capsys.readouterr().err
    assert "training failed: out of memory with images x (height, width) 4 x (" in error
    assert "2 boxes in an image" in error and "train.accumulate" in error
    assert "Traceback" not in error


def test_a_small_shared_memory_is_noticed_before_the_loader_starts(folder, tmp_path, monkeypatch):
    # 4 images of 96 x 128, 3 bytes a pixel, 1 worker with 2 batches ready and one in work.
    needed = 4 * 96 * 128 * 3 * 3
    for free, warned in ((needed - 1, True), (needed, False)):
        monkeypatch.setattr(shared_memory, "free_bytes", lambda free=free: free)
        text = shared_memory.shortage(4, (96, 128), 1, None)
        assert bool(text) == warned
    assert "--shm-size" in shared_memory.shortage(4, (96, 128), 2, 2)
    assert "data.workers=0" in shared_memory.shortage(4, (96, 128), 1, 2, processes=2)
    assert shared_memory.shortage(4, (96, 128), 0, None) is None
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 1)
    config = tiny_config(folder, epochs=1)
    data = config.data.model_copy(update={"workers": 1})
    gfl.train(config.model_copy(update={"data": data}), work_dir=tmp_path / "run")
    assert log_of(tmp_path / "run").count("bus error") == 1


def memory_of(pid: int) -> tuple[int, int]:
    """Resident memory of a process, and the part that it shares with nobody, KiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(n) for n in re.findall(r"Private_(?:Clean|Dirty):\s+(\d+)", text))
    return int(re.search(r"Rss:\s+(\d+)", text)[1]), private


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux's /proc")
def test_loading_processes_do_not_grow_over_five_epochs(tmp_path):
    folder = write_coco(tmp_path / "set", {"train": 40, "val": 2})
    config = tiny_config(folder)
    data = config.data.model_copy(update={"workers": 1})
    config = config.model_copy(update={"data": data})
    loader = gfl.build.build_train_loader(config, gfl.build.build_dataset(config, "train"))
    sizes = []
    for epoch in range(6):
        loader.batch_sampler.set_position(epoch)
        assert sum(1 for _ in loader) == 10
        [worker] = loader._iterator._workers
        sizes.append(memory_of(worker.pid))
    loader.close()
    print(f"resident and private memory of a worker after each of 6 epochs, KiB: {sizes}")
    assert sizes[5][0] < 1.05 * sizes[0][0]
    assert sizes[5][1] < 1.05 * sizes[1][1]  # the first epochs fill caches
    assert not worker.is_alive()


def test_a_loading_process_has_one_thread_and_outlives_the_terminals_signals():
    import signal

    before = {number: signal.getsignal(number) for number in (2, 14, 15)}
    threads = torch.get_num_threads()
    try:
        loading._prepare_worker(0)
        assert torch.get_num_threads() == 1
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signal.raise_signal(signal.SIGTERM)  # does not end it, but limits its life
        assert 0 < signal.alarm(0) <= loading.GRACE
    finally:
        torch.set_num_threads(threads)
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_dead_loading_process_is_explained():
    text = "DataLoader worker (pid 7) is killed by signal: Bus error. "
    with pytest.raises(TrainingFailed, match="shm-size"), memory.lost_worker_explained():
        raise RuntimeError(text)
    with pytest.raises(TrainingFailed) as caught, memory.lost_worker_explained():
        with memory.lost_worker_explained():
            raise RuntimeError(text)
    assert str(caught.value).count("has died") == 1

    def lost():
        yield 1
        raise RuntimeError(text)

    seen = []
    with pytest.raises(TrainingFailed, match="has died"):
        seen.extend(memory.worker_losses_explained(lost()))
    assert seen == [1]
    with pytest.raises(RuntimeError, match="other"), memory.lost_worker_explained():
        raise RuntimeError("other")


# Half precision ---------------------------------------------------------------------------------


class Network(nn.Module):
    """A batch-norm and a convolution; in half precision its outputs are `spoiled`.

    Args:
        spoiled: factor of all outputs.
        boxes: one more of the box logits.
    """

    def __init__(self, spoiled: float, boxes: float = 1.0):
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.spoiled, self.boxes = spoiled, boxes

    def forward(self, images):
        x = self.conv(self.norm.weight.new_ones(1) * images)
        half = x.dtype != torch.float32
        x = self.drop(self.norm(x)) * (self.spoiled if half else 1.0)
        flat = x.flatten(2).transpose(1, 2)
        grid = gfl.grid.make_grid(((flat.shape[1], 1),), (8,))
        return Predictions(flat[..., :2], flat * (self.boxes if half else 1.0), grid)


def test_half_precision_is_compared_without_dropout_and_draws_nothing():
    images, model = torch.randn(2, 3, 4, 4), Network(1.0).train()
    before = torch.get_rng_state()
    assert disagreement(model, images, "bf16") is None
    assert torch.equal(torch.get_rng_state(), before)


def test_half_precision_may_be_off_where_logits_are_small():
    model = Network(3.0).train()
    nn.init.constant_(model.norm.weight, 0.1)
    assert disagreement(model, torch.randn(2, 3, 4, 4), "bf16") is None


def test_half_precision_of_the_boxes_is_compared_too():
    wrong = disagreement(Network(1.0, boxes=3.0).train(), torch.randn(2, 3, 4, 4), "bf16")
    assert wrong and wrong.startswith("box_logits in bf16 are")


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [(1.0, None), (3.0, "cls_logits in bf16 are"), (torch.inf, "not finite in bf16")],
)
def test_half_precision_is_compared_with_fp32(spoiled, words):
    model = Network(spoiled).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = disagreement(model, torch.randn(2, 3, 4, 4), "bf16")
    assert (wrong is None) if words is None else (words in wrong)
    assert model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_half_precision_that_fails_is_turned_off_for_good(folder, tmp_path, monkeypatch):
    import gfl.training as training

    asked = []

    def wrong(model, images, precision):
        asked.append(precision)
        return "cls_logits are not finite in bf16, but are in fp32"

    gfl.train(tiny_config(folder, epochs=1, precision="fp32"), work_dir=tmp_path / "plain")
    monkeypatch.setattr(training, "disagreement", wrong)
    config = tiny_config(folder, epochs=1, precision="bf16")
    gfl.train(config, work_dir=tmp_path / "run")
    assert "train.precision bf16 is turned off: cls_logits" in log_of(tmp_path / "run")
    a, b = (torch.load(tmp_path / r / "last.pt", weights_only=True) for r in ("plain", "run"))
    assert all(torch.equal(a["model"][k], b["model"][k]) for k in a["model"])
    assert b["precision"] == {"asked": "bf16", "used": "fp32"}
    gfl.train(
        tiny_config(folder, epochs=2, precision="bf16"), work_dir=tmp_path / "run", resume=True
    )
    assert asked == ["bf16"]  # decided once, so that a resumed run is the same run


def test_half_precision_that_works_stays_on(folder, tmp_path):
    gfl.train(tiny_config(folder, epochs=1, precision="bf16"), work_dir=tmp_path / "run")
    assert "turned off" not in log_of(tmp_path / "run")
    last = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert last["precision"] == {"asked": "bf16", "used": "bf16"}


def test_training_and_testing_explain_an_ap_of_zero(folder, tmp_path, capsys):
    """One epoch is too short for a score above the threshold."""
    from gfl.cli import test as command

    gfl.train(tiny_config(folder, epochs=1), work_dir=tmp_path / "run")
    assert "AP is 0: 0 detections, highest score 0." in log_of(tmp_path / "run")
    capsys.readouterr()
    assert command.main([str(tmp_path / "run" / "best.pt")]) == 0
    output = capsys.readouterr()
    assert "AP is 0" in output.err and "every score is under the threshold" in output.err
    assert "AP is 0" not in output.out
