"""A whole training, from a config: `gfl.train`."""

import shlex
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from gfl import build
from gfl.automatic import choose_all
from gfl.config import Config, load_config
from gfl.data.own_dataset import completed
from gfl.data.stand_ins import StandIns
from gfl.distributed import (
    broadcast_object,
    data_parallel,
    done_by_main,
    gather_objects,
    is_main,
    process_group,
    rank,
    restart_count,
)
from gfl.engine.bad_batch import BadBatches
from gfl.engine.compiled import Programs
from gfl.engine.early_stop import stopped_early
from gfl.engine.keeper import BEST, LAST, Keeper
from gfl.engine.loading import LoaderWatch
from gfl.engine.memory import lost_worker_explained
from gfl.engine.precision import disagreement
from gfl.engine.run_log import RunLog
from gfl.engine.stop import StopSignal
from gfl.engine.train import norms_explained, train_one_epoch
from gfl.errors import RESUME_ADVICE, TrainingStopped
from gfl.initialise import initialise
from gfl.opening import memory_lines, opening_lines
from gfl.progress import tell
from gfl.resuming import restore, resumed_lines
from gfl.sample import drawn_if_missing
from gfl.seeding import seed_everything
from gfl.teacher import load_teacher
from gfl.validation import Validation
from gfl.versions import versions
from gfl.visualize import find_positives, save_first_batches
from gfl.work_dir import describe_run, differences, only_one_training, start_work_dir


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
            `gfl.data.dataset.Sample` or such a tuple, see `gfl.data.own_dataset.OwnDataset`.
        work_dir: gets checkpoints, logs and pictures (see the README).
        resume: go on from `work_dir`/last.pt, or start if there is none. A process that torchrun
            has started again does so in any case.

    Returns:
        {"best": {"AP", "epoch"}, "last": evaluation numbers, "weights": "ema" or "raw",
        "work_dir": ...}.

    Raises:
        UserError: anything that the user can mend.
        TrainingFailed: the loss stays non-finite, memory ran out, the last weights can not be
            written, or another process has ended.
        TrainingStopped: SIGTERM or SIGINT came; last.pt holds the step that was finished.
    """
    config = config if isinstance(config, Config) else load_config(config)
    with StopSignal() as stop, process_group(config.device) as device:
        resume = any(gather_objects(resume or restart_count() > 0))
        with only_one_training(Path(work_dir)), lost_worker_explained():
            run = _Run(config, Path(work_dir), device, resume, train_dataset, val_dataset, stop)
            try:
                return run.train()
            finally:
                run.close()


class _Run:
    """One training: what `train` builds, and the order in which things happen."""

    def __init__(self, config, work_dir, device, resume, train_dataset, val_dataset, stop):
        self.config = config
        self.work_dir = work_dir
        self.device = device
        self.stop = stop
        checkpoint, note = start_work_dir(work_dir, resume)
        seed_everything(config.train.seed, config.train.deterministic)
        if done_by_main(lambda: drawn_if_missing(config.data)):
            drawn = f"the sample data was drawn into {config.data.path}"
            note = f"{note}\n{drawn}" if note else drawn
        known = checkpoint and checkpoint["config"]
        self._choose_data(known, train_dataset, val_dataset)
        config = self.config
        self.train_loader = build.build_train_loader(config, self.train_data, stand_in=True)
        self.sampler = self.train_loader.batch_sampler
        self.criterion = build.build_criterion(config)
        self.normalize = build.build_normalize(config, device)
        pad_to = build.build_pad_to(config, self.train_data.sizes)
        self.options = build.build_loop_options(config, self.sampler.steps_per_epoch, pad_to)
        self.total_steps = self.options.epochs * self.options.steps_per_epoch
        self.state = build.build_state(
            config,
            len(self.class_names),
            self.options.steps_per_epoch,
            device,
            load_pretrained=checkpoint is None and config.init_from is None,
        )
        self.initialisation = None
        if checkpoint is None and config.init_from is not None:
            self.initialisation = initialise(self.state.model, self.class_names, config)
            if self.state.ema:
                self.state.ema.model.load_state_dict(self.state.model.state_dict())
        self.teacher = load_teacher(config, self.state.model, device)
        self.programs = Programs(self.state.model, self.criterion, device, config.train.compile)
        self.network = data_parallel(self.programs.network, device)
        if checkpoint is not None:
            restore(self.state, checkpoint, config, self.class_names, self.options.steps_per_epoch)
        if is_main():
            describe_run(work_dir, config, self._class_map())
        steps = self.options.steps_per_epoch
        self.keeper = Keeper(work_dir, self.state, self._facts(), steps, lambda m: self.log.say(m))
        step = None if checkpoint is None else self.state.step
        folder = work_dir if is_main() else None
        self.log = RunLog(folder, step, self.state.evaluated_step)
        self.log.loader_watch = LoaderWatch(config.data.workers)
        self.train_loader.watch = StandIns(
            len(self.train_data), config.data.max_skipped, self._say_on_any_process
        )
        self.validation = Validation(
            config, self.val_data, self.normalize, self.options, self.keeper, self.log, stop
        )
        self._introduce(checkpoint, note)

    def _choose_data(self, known: dict | None, train_dataset, val_dataset) -> None:
        """The data sets, the config's or the given ones, and what the config left to them."""
        config = self.config
        if train_dataset is not None:
            train_dataset = completed(train_dataset, num_classes=config.model.num_classes)
        chosen = choose_all(config, known, train_dataset, self.device)
        self.config, self.train_data, self.choices = chosen
        self.class_names = tuple(self.train_data.class_names)
        if val_dataset is None:
            self.val_data = build.build_dataset(self.config, "val", self.class_names)
        else:
            self.val_data = completed(val_dataset, self.class_names, evaluated=True)

    def train(self) -> dict:
        """Train what is left, evaluating on the way."""
        self._draw_first_batches()
        self._try_precision()
        metrics = self._evaluate()
        self.log.start_progress(self.state.step, self.total_steps)
        bad_batches = BadBatches(
            self.work_dir / "bad_batches",
            self.state.model,
            self.criterion,
            self.normalize,
            self.options.precision,
            getattr(self.train_data, "files_of", lambda image_id: ()),
            self.teacher,
        )
        while self.state.step < self.total_steps and not self._settled():
            self._leave_if(self.stop.due(self.state.step))
            self._set_position()
            train_one_epoch(
                self.state,
                self.network,
                self.train_loader,
                self.programs.criterion,
                self.normalize,
                self.options,
                self.log,
                bad_batches,
                self.keeper.save_last,
                self.stop.due,
                self.teacher,
            )
            self.programs.tell(self.log.say)
            self.keeper.save_last()
            self._leave_if(self.stop.due(self.state.step))
            metrics = self._evaluate() or metrics
        if self.state.step < self.total_steps:
            self.log.say(self._settled())
        self.keeper.finish()
        best = self.state.best
        for name in (BEST, LAST):
            ap = best.get("AP") if name == BEST else (metrics or {}).get("AP")
            known = "" if ap is None else f": AP {ap:.4f} on val ({self.keeper.weights} weights)"
            self.log.say(f"{self.work_dir / name}{known}")
        outcome = {"best": best, "last": metrics, "weights": self.keeper.weights}
        return {**outcome, "work_dir": str(self.work_dir)}

    def close(self) -> None:
        """End the loaders' processes, flush the logs."""
        self.train_loader.close()
        self.validation.loader.close()
        self.log.close()

    def _say_on_any_process(self, message: str) -> None:
        """What one process alone knows; only that of the first goes to log.txt."""
        if is_main():
            self.log.say(message)
        else:
            tell(f"[rank {rank()}] {message}")

    def _settled(self) -> str | None:
        epoch, patience = self.options.steps_per_epoch, self.config.train.early_stop_epochs
        return stopped_early(self.state.best, self.state.evaluated_step, epoch, patience)

    def _evaluate(self) -> dict | None:
        metrics = self.validation.run_if_due()
        self._leave_if(self.validation.interrupted)
        return metrics

    def _leave_if(self, stopped: bool) -> None:
        """End on a signal, all processes together, after the first has written its files."""
        if not stopped:
            return
        number = next((n for n in gather_objects(self.stop.number) if n is not None), None)
        held = broadcast_object(self.keeper.saved_step)
        what = "no checkpoint" if held is None else f"{self.work_dir / LAST} holds step {held}"
        raise TrainingStopped(
            f"{signal.Signals(number).name}: stopped after step {self.state.step} of "
            f"{self.total_steps}; {what}. {RESUME_ADVICE}, or: "
            f"gfl train {shlex.quote(str(self.work_dir / 'config.yaml'))} --resume"
        )

    def _set_position(self) -> None:
        epoch, done = divmod(self.state.step, self.options.steps_per_epoch)
        self.sampler.set_position(epoch, done)

    def _try_precision(self) -> None:
        """Turn half precision off where the next batch's outputs disagree with those in fp32."""
        asked, state = self.config.train.precision, self.state
        if asked == "fp32" or state.step >= self.total_steps:
            return
        if state.precision.get("asked") != asked:
            self._set_position()
            batch = self.train_loader.load(next(iter(self.sampler))).to(self.device)
            images = self.normalize(batch.images, batch.input_sizes)
            with norms_explained():
                wrong = disagreement(state.model, images, asked)
            if self.teacher is not None and not wrong:
                wrong = disagreement(self.teacher, images, asked)
                wrong = wrong and f"the teacher's {wrong}"
            wrong = next((text for text in gather_objects(wrong) if text), None)
            if wrong:
                self.log.say(f"train.precision {asked} is turned off: {wrong}. Going on in fp32.")
            state.precision = {"asked": asked, "used": "fp32" if wrong else asked}
        self.options = replace(self.options, precision=state.precision["used"])
        if state.precision["used"] == "fp32":
            state.scaler = torch.amp.GradScaler(self.device.type, enabled=False)

    def _introduce(self, checkpoint: dict | None, note: str | None) -> None:
        """Say once what is trained on what."""
        lines = [*([note] if note else []), *map(str, self.choices)]
        lines += opening_lines(self.config, self.device, self.train_data, self.val_data, self.state)
        lines += str(self.initialisation or "").splitlines()
        lines += build.shape_lines(self.options.pad_to, self.config)
        lines += memory_lines(self.config, self.train_loader)
        if checkpoint is not None:
            changes = differences(checkpoint["config"], self.config.to_dict())
            lines += [f"changed since the checkpoint: {line}" for line in changes]
            lines += resumed_lines(self.state, self.config, self.total_steps, self.work_dir)
        for line in lines:
            self.log.say(line)

    def _class_map(self) -> dict:
        return {
            "names": list(self.class_names),
            "category_ids": [int(i) for i in self.train_data.category_ids],
        }

    def _draw_first_batches(self) -> None:
        if is_main() and not self.state.step:
            self.sampler.set_position(0)
            folder = self.work_dir / "train_batches"
            positives = partial(
                find_positives, detector=self.state.model, assigner=self.criterion.assigner
            )
            with self.log.going_on():
                save_first_batches(self.train_loader, self.class_names, folder, positives)

    def _facts(self) -> dict:
        """What every checkpoint of this run holds besides weights: enough to use them."""
        return {
            "class_map": self._class_map(),
            "config": self.config.to_dict(),
            "versions": versions(),
        }
