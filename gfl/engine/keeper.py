"""The checkpoints of a run: last.pt, the one before it, best.pt. What is unfit is not written."""

from collections.abc import Callable
from pathlib import Path

from gfl.distributed import broadcast_object, is_main
from gfl.engine.checkpoint import DamagedCheckpoint, TrainState, load_checkpoint, save_checkpoint
from gfl.engine.finite import not_finite
from gfl.errors import TrainingFailed

LAST, PREVIOUS, DAMAGED, BEST = "last.pt", "last.previous.pt", "last.damaged.pt", "best.pt"


class Keeper:
    """Writes the checkpoints of a work directory; called alike on every process.

    A file that can not be written (a full disk) does not end the training: it is said, the file
    that was there stays, and the next checkpoint tries again. `finish` makes it an error.

    Args:
        work_dir: where they go.
        state: what is kept.
        facts: plain values that each file holds besides: class map, config, versions.
        steps_per_epoch: to name the epoch.
        say: takes a message.
    """

    def __init__(
        self,
        work_dir: Path,
        state: TrainState,
        facts: dict,
        steps_per_epoch: int,
        say: Callable[[str], None],
    ):
        self.work_dir = work_dir
        self.state = state
        self.facts = facts
        self.steps_per_epoch = steps_per_epoch
        self.say = say
        self.saved_step = state.step if (work_dir / LAST).exists() else None
        if state.best and not broadcast_object((work_dir / BEST).exists()):
            state.best = {}  # it is gone: the next evaluation counts, and one of now is owed
            state.evaluated_step = min(state.evaluated_step, state.step - 1)
        self._best_on_disk = state.best
        self._owed_best: dict | None = None
        self._problem: str | None = None

    @property
    def weights(self) -> str:
        """Which weights are evaluated and kept: averaged or as they are."""
        return "ema" if self.state.ema else "raw"

    def save_last(self) -> None:
        """Write last.pt; the file that it replaces stays as last.previous.pt.

        Raises:
            TrainingFailed: something in it is not finite. The files stay as they are.
        """
        content = {
            **self._content(),
            **self.state.state_dict(),
            "weights": "raw",
            "steps_per_epoch": self.steps_per_epoch,
        }
        self._require_finite(LAST, content)
        if not is_main():
            return
        if self._owed_best is not None:
            self._write_best(self._owed_best)
        # Resuming must not believe in a best.pt that is not there.
        content["best"] = self._best_on_disk
        problem = self._write(LAST, content, self.work_dir / PREVIOUS)
        self._problem = problem
        if problem is None:
            self.saved_step = self.state.step

    def save_best(self, best: dict, thresholds: list[float | None] | None = None) -> None:
        """Write best.pt, which holds what evaluation and use need.

        Args:
            best: AP and epoch.
            thresholds: of each class, the score of its best F1, or None; None without such.
        """
        content = {**self._content(), "AP": best["AP"], "thresholds": thresholds, "best": best}
        self._require_finite(BEST, content)
        self.state.best = best
        if is_main():
            self._write_best(content)

    def finish(self) -> None:
        """Make sure that the last step and the best weights are on the disk.

        Raises:
            TrainingFailed: they can not be written.
        """
        if broadcast_object(self._problem is not None or self._owed_best is not None):
            self.save_last()
        problem = self._problem
        if self._owed_best is not None:
            problem = f"{self.work_dir / BEST} could not be written"
        problem = broadcast_object(problem)
        if problem:
            raise TrainingFailed(
                f"the training is done, but {problem}. Make room or mend the disk, then run the "
                "same command with --resume."
            )

    def _content(self) -> dict:
        return {
            "model": self.state.evaluated_model.state_dict(),
            "weights": self.weights,
            **self.facts,
            "step": self.state.step,
            "epoch": self.state.step / self.steps_per_epoch,
        }

    def _require_finite(self, name: str, content: dict) -> None:
        bad = broadcast_object(not_finite(content) if is_main() else None)
        if bad:
            held = "no checkpoint is there yet"
            if self.saved_step is not None:
                held = f"{LAST} still holds step {self.saved_step}"
            raise TrainingFailed(
                f"{name} of step {self.state.step} is refused: {len(bad)} tensors are not finite "
                f"({', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}); {held}. Lower "
                "train.lr, set train.grad_clip or use train.precision=fp32, then go on with "
                "--resume."
            )

    def _write_best(self, content: dict) -> None:
        """Write it, or keep a copy in memory until there is room."""
        best = content["best"]
        if self._write(BEST, {k: v for k, v in content.items() if k != "best"}) is None:
            self._owed_best, self._best_on_disk = None, best
        elif content is not self._owed_best:
            model = {name: value.detach().cpu().clone() for name, value in content["model"].items()}
            self._owed_best = {**content, "model": model}

    def _write(self, name: str, content: dict, previous: Path | None = None) -> str | None:
        """Try to write a file; give the problem that was met, after saying it."""
        path = self.work_dir / name
        try:
            save_checkpoint(path, content, previous)
        except OSError as error:
            problem = f"{path} of step {content['step']} could not be written: {reason(error)}"
            kept = "the file of before is whole" if path.exists() else "there is no such file yet"
            self.say(
                f"WARNING: {problem}; {kept}. Training goes on and tries again at the next "
                "checkpoint; make room now."
            )
            return problem
        return None


def reason(error: OSError) -> str:
    """The system's words."""
    return error.strerror or str(error)


def find_last(work_dir: Path) -> tuple[str | None, str | None]:
    """The newest good checkpoint to resume from; called by the first process alone.

    A damaged last.pt is put aside as last.damaged.pt, so that it can not push out the good one
    before it.

    Returns:
        LAST, or PREVIOUS where that is missing or damaged, or None where there is neither; and
        what there is to say about it.

    Raises:
        UserError: the only file is damaged, or not a checkpoint of gfl.
    """
    last, previous = work_dir / LAST, work_dir / PREVIOUS
    if last.exists():
        try:
            load_checkpoint(last)
            return LAST, None
        except DamagedCheckpoint as error:
            if not previous.exists():
                raise
            problem = str(error)
    elif previous.exists():
        problem = f"{last} is missing."
    else:
        return None, None
    step = load_checkpoint(previous)["step"]
    if last.exists():
        last.replace(work_dir / DAMAGED)
        problem += f" It is kept as {DAMAGED}."
    return PREVIOUS, f"WARNING: {problem} Going on from {PREVIOUS}, of step {step}."


def unfinished(work_dir: Path) -> list[Path]:
    """Parts of files that a killed process has left."""
    return [
        part
        for path in map(Path, (LAST, PREVIOUS, BEST))
        for part in work_dir.glob(f".{path.stem}.{'[0-9a-f]' * 16}{path.suffix}")
    ]
