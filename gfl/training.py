"""A whole training, from a config: `gfl.train`."""

import os
import platform
import random
import time
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch.nn.parallel import DistributedDataParallel

import gfl
from gfl import build
from gfl.config import Config, load_config
from gfl.data.batch import Normalize
from gfl.distributed import broadcast_buffers, is_main, process_group, world_size
from gfl.engine.checkpoint import save_checkpoint
from gfl.engine.evaluate import evaluate as evaluate_model
from gfl.engine.run_log import RunLog
from gfl.engine.train import train_one_epoch
from gfl.errors import UserError
from gfl.visualize import draw_predictions, save_first_batches, save_picture
from gfl.work_dir import describe_run, differences, start_work_dir


def train(
    config: Config | str | Path,
    train_dataset=None,
    val_dataset=None,
    work_dir: str | Path = "runs/train",
    resume: bool = False,
) -> dict:
    """Train a detector; the same for one process and for torchrun's.

    Args:
        config: a `Config`, a YAML file or the name of a shipped config.
        train_dataset, val_dataset: in place of the config's; `dataset[i]` gives a
            `gfl.data.dataset.Sample`, and the attributes of `CocoDataset` are there.
        work_dir: gets checkpoints, logs and pictures (see the README).
        resume: go on from `work_dir`/last.pt, or start if there is none.

    Returns:
        {"best": {"AP", "epoch"}, "last": evaluation numbers, "weights": "ema" or "raw",
        "work_dir": ...}.

    Raises:
        UserError: anything that the user can mend.
        TrainingFailed: the loss stays non-finite.
    """
    config = config if isinstance(config, Config) else load_config(config)
    with process_group(config.device) as device:
        run = _Run(config, Path(work_dir), device, resume, train_dataset, val_dataset)
        try:
            return run.train()
        finally:
            run.log.close()


class _Run:
    """One training: what `train` builds, and the order in which things happen."""

    def __init__(self, config, work_dir, device, resume, train_dataset, val_dataset):
        self.config = config
        self.work_dir = work_dir
        self.device = device
        checkpoint = start_work_dir(work_dir, resume)
        _seed(config)
        if train_dataset is None:
            train_dataset = build.build_dataset(config, "train")
        self.class_names = tuple(train_dataset.class_names)
        if val_dataset is None:
            val_dataset = build.build_dataset(config, "val", self.class_names)
        self.train_data, self.val_data = train_dataset, val_dataset
        self.train_loader = build.build_train_loader(config, self.train_data)
        self.val_loader = build.build_eval_loader(config, self.val_data)
        self.sampler = self.train_loader.batch_sampler
        self.criterion = build.build_criterion(config)
        self.postprocess = build.build_postprocess(config)
        self.normalize = Normalize(config.data.mean, config.data.std, device)
        self.options = build.build_loop_options(config, self.sampler.steps_per_epoch)
        self.total_steps = self.options.epochs * self.options.steps_per_epoch
        self.state = build.build_state(
            config,
            len(self.class_names),
            self.options.steps_per_epoch,
            device,
            load_pretrained=checkpoint is None,
        )
        self.network = self.state.model
        if world_size() > 1:
            ids = [device.index] if device.type == "cuda" else None
            self.network = DistributedDataParallel(self.state.model, device_ids=ids)
        if checkpoint is not None:
            self._restore(checkpoint)
        step = None if checkpoint is None else self.state.step
        folder = work_dir if is_main() else None
        self.log = RunLog(folder, step, self.state.evaluated_step)
        self._introduce(checkpoint)

    def train(self) -> dict:
        """Train what is left, evaluating on the way."""
        self._draw_first_batches()
        metrics = self._evaluate_if_due()
        self.log.start_progress(self.state.step, self.total_steps)
        while self.state.step < self.total_steps:
            epoch, done = divmod(self.state.step, self.options.steps_per_epoch)
            self.sampler.set_position(epoch, done)
            train_one_epoch(
                self.state,
                self.network,
                self.train_loader,
                self.criterion,
                self.normalize,
                self.options,
                self.log,
                self._save_last,
            )
            self._save_last()
            metrics = self._evaluate_if_due() or metrics
        best = self.state.best
        for name in ("best.pt", "last.pt"):
            ap = best.get("AP") if name == "best.pt" else (metrics or {}).get("AP")
            known = "" if ap is None else f": AP {ap:.4f} on val ({self.weights} weights)"
            self.log.say(f"{self.work_dir / name}{known}")
        outcome = {"best": best, "last": metrics, "weights": self.weights}
        return {**outcome, "work_dir": str(self.work_dir)}

    @property
    def weights(self) -> str:
        """Which weights are evaluated and kept: averaged or as they are."""
        return "ema" if self.state.ema else "raw"

    def _restore(self, checkpoint: dict) -> None:
        if "optimizer" not in checkpoint:
            raise UserError(f"{self.work_dir / 'last.pt'} holds weights only: nothing to resume.")
        if tuple(checkpoint["class_map"]["names"]) != self.class_names:
            raise UserError(
                f"the checkpoint's classes {checkpoint['class_map']['names']} are not those of the "
                f"data {list(self.class_names)}: resume with the data it was trained on."
            )
        if checkpoint["steps_per_epoch"] != self.options.steps_per_epoch:
            raise UserError(
                f"the checkpoint has {checkpoint['steps_per_epoch']} steps an epoch, this config "
                f"and data give {self.options.steps_per_epoch}: resume with the same data and "
                "train.batch_size."
            )
        before, now = checkpoint["config"]["train"]["optimizer"], self.config.train.optimizer
        if before != now:
            raise UserError(f"the checkpoint was trained with {before}, the config says {now}.")
        try:
            self.state.load_state_dict(checkpoint)
        except (RuntimeError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.work_dir / 'last.pt'} does not fit this config's model or optimizer: "
                f"{str(error)[:500]}"
            ) from None

    def _introduce(self, checkpoint: dict | None) -> None:
        """Say once what is trained on what, and keep the resolved config."""
        train, say = self.config.train, self.log.say
        if is_main():
            describe_run(self.work_dir, self.config, self._class_map())
        say(f"gfl {gfl.__version__}, torch {torch.__version__}, {world_size()} x {self.device}")
        ids = zip(self.train_data.category_ids, self.class_names, strict=True)
        mapping = ", ".join(f"{i} -> {n} {name}" for n, (i, name) in enumerate(ids))
        say(f"{len(self.class_names)} classes (category id -> label): {mapping}")
        if train.schedule == "multistep" and min(train.milestones, default=1) >= train.epochs:
            say(f"train.milestones {train.milestones} lie beyond the last epoch: lr never drops")
        for split, dataset in (("train", self.train_data), ("val", self.val_data)):
            report = getattr(dataset, "report", {"images": len(dataset)})
            say(f"{split}: " + ", ".join(f"{count} {what}" for what, count in report.items()))
            for line in build.data_warnings(self.config, dataset, self.state.model.neck.strides):
                say(f"{split}: {line}")
        count = sum(p.numel() for p in self.state.model.parameters())
        trained = sum(p.numel() for p in self.state.model.parameters() if p.requires_grad)
        say(f"model: {count / 1e6:.2f} million parameters, {trained / 1e6:.2f} million train")
        part = train.batch_size // world_size() // train.accumulate
        say(
            f"batch: {train.batch_size} = {world_size()} processes x {train.accumulate} parts x "
            f"{part} images; lr {train.lr:g} for {train.lr_batch_size or train.batch_size} images "
            f"-> {self.state.schedule.lr:g}"
        )
        if checkpoint is not None:
            for line in differences(checkpoint["config"], self.config.to_dict()):
                say(f"changed since the checkpoint: {line}")
            say(f"resumed at step {self.state.step} of {self.total_steps}")

    def _class_map(self) -> dict:
        return {
            "names": list(self.class_names),
            "category_ids": [int(i) for i in self.train_data.category_ids],
        }

    def _draw_first_batches(self) -> None:
        if is_main() and not self.state.step:
            self.sampler.set_position(0)
            folder = self.work_dir / "train_batches"
            save_first_batches(self.train_loader, self.class_names, folder)

    def _evaluate_if_due(self) -> dict | None:
        """Evaluate at the end of an epoch that owes it; keep the best weights."""
        state, options = self.state, self.options
        epoch, within = divmod(state.step, options.steps_per_epoch)
        due = epoch % self.config.train.eval_epochs == 0 or epoch == options.epochs
        if within or not epoch or not due or state.evaluated_step == state.step:
            return None
        started = time.perf_counter()
        broadcast_buffers(state.evaluated_model)
        metrics, _ = evaluate_model(
            state.evaluated_model,
            self.val_loader,
            self.postprocess,
            self.normalize,
            self.val_data,
            self.log.say,
        )
        seconds = time.perf_counter() - started
        state.evaluated_step = state.step
        per_class = metrics["per_class"]
        if not state.best or metrics["AP"] > state.best["AP"]:
            state.best = {"AP": metrics["AP"], "epoch": epoch}
            if is_main():
                save_checkpoint(self.work_dir / "best.pt", self._content(AP=metrics["AP"]))
        self.log.metrics(
            state.step,
            {
                "epoch": epoch,
                **{name: value for name, value in metrics.items() if name != "per_class"},
                **{f"AP/{name}": ap for name, ap in per_class.items() if ap is not None},
                "weights": self.weights,
                "eval_seconds": seconds,
            },
        )
        self.log.say(
            f"epoch {epoch}: AP {metrics['AP']:.4f} AP50 {metrics['AP50']:.4f} "
            f"AP75 {metrics['AP75']:.4f} ({self.weights} weights, val, {seconds:.1f} s), best AP "
            f"{state.best['AP']:.4f} of epoch {state.best['epoch']}"
        )
        self._draw_predictions()
        self._save_last()
        return metrics

    def _draw_predictions(self) -> None:
        if is_main():
            picture = draw_predictions(
                self.state.evaluated_model,
                self.val_loader,
                self.postprocess,
                self.normalize,
                self.class_names,
            )
            save_picture(self.work_dir / "predictions.jpg", picture)
            self.log.picture(self.state.step, "predictions", picture)

    def _content(self, **more) -> dict:
        """What every checkpoint of this run holds: enough to evaluate and to use it."""
        return {
            "model": self.state.evaluated_model.state_dict(),
            "weights": self.weights,
            "class_map": self._class_map(),
            "config": self.config.to_dict(),
            "step": self.state.step,
            "epoch": self.state.step / self.options.steps_per_epoch,
            "versions": {
                "gfl": gfl.__version__,
                "torch": str(torch.__version__),
                "torchvision": str(torchvision.__version__),
                "python": platform.python_version(),
            },
            **more,
        }

    def _save_last(self) -> None:
        if is_main():
            content = {
                **self._content(),
                **self.state.state_dict(),
                "weights": "raw",
                "steps_per_epoch": self.options.steps_per_epoch,
            }
            save_checkpoint(self.work_dir / "last.pt", content)


def _seed(config: Config) -> None:
    seed = config.train.seed
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    if config.train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
