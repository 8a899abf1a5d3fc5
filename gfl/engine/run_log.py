"""Where a run tells what it does: terminal, log.txt, metrics.jsonl, TensorBoard."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from gfl.engine.loading import LoaderWatch
from gfl.errors import UserError
from gfl.files import replacing
from gfl.progress import Progress, tell


class RunLog:
    """The one writer of a work directory's logs; silent without a directory (other ranks).

    Args:
        folder: work directory, or None to write nothing.
        resume_step: on resuming, lines of `metrics.jsonl` beyond this step are cut off.
        resume_evaluated: the step of the last evaluation that the checkpoint knows of.

    Attributes:
        loader_watch: told each step's times, for a message where loading is the bottleneck.
    """

    def __init__(
        self, folder: Path | None, resume_step: int | None = None, resume_evaluated: int = 0
    ):
        self.folder = folder
        self.progress: Progress | None = None
        self.loader_watch: LoaderWatch | None = None
        self._has_complained = False
        if folder is None:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        try:
            self._open(folder, resume_step, resume_evaluated, SummaryWriter)
        except OSError as error:
            raise UserError(
                f"cannot write logs to work directory {folder}: {error.strerror or error}"
            ) from None

    def _open(self, folder: Path, resume_step: int | None, resume_evaluated: int, writer) -> None:
        if resume_step is not None:
            _cut_metrics(folder / "metrics.jsonl", resume_step, resume_evaluated)
        mode = "w" if resume_step is None else "a"
        # Paths may hold bytes that are no UTF-8.
        self._text = open(
            folder / "log.txt", mode, encoding="utf-8", errors="backslashreplace", buffering=1
        )
        self._metrics = open(folder / "metrics.jsonl", mode, encoding="utf-8", buffering=1)
        purge = 0 if resume_step is None else resume_step + 1
        self.board = writer(str(folder / "tensorboard"), purge_step=purge)

    def say(self, message: str) -> None:
        """One message on stderr and in log.txt."""
        if self.folder is not None:
            tell(message)
            with self.going_on():
                self._text.write(message + "\n")

    def metrics(self, step: int, values: dict) -> None:
        """One line of metrics.jsonl; its numbers go to TensorBoard too, under the same names.

        TensorBoard does not get the -1 of COCO's numbers for which there are no objects.
        """
        if self.folder is None:
            return
        numbers = {k: v for k, v in values.items() if isinstance(v, int | float)}
        bad = {k: None for k, v in numbers.items() if not math.isfinite(v)}  # JSON knows no NaN
        with self.going_on():
            self._metrics.write(json.dumps({"step": step, **values, **bad}) + "\n")
            for name, value in numbers.items():
                if value != -1 or not name.startswith(("AP", "AR")):
                    self.board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """An (H, W, 3) uint8 RGB picture for TensorBoard."""
        if self.folder is not None:
            with self.going_on():
                self.board.add_image(name, image, step, dataformats="HWC")

    def start_progress(self, step: int, total: int) -> None:
        """Count all steps of the run, so that the time left is the run's."""
        if self.folder is not None:
            self.progress = Progress(total, "step", step)

    def advance(self, description: str, postfix: str | None) -> None:
        """One step done."""
        if self.progress is not None:
            self.progress.advance(1, description, postfix)

    def close(self) -> None:
        """Flush and close everything."""
        if self.folder is None:
            return
        if self.progress is not None:
            self.progress.close()
        for file in (self.board, self._metrics, self._text):
            with self.going_on():
                file.close()

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """A log or picture that can not be written (a full disk) ends no training; said once."""
        try:
            yield
        except (OSError, UserError) as error:
            if not self._has_complained:
                self._has_complained = True
                words = getattr(error, "strerror", None) or str(error)
                message = f"WARNING: logs in {self.folder} can not be written and will have gaps: "
                tell(message + words)


def _cut_metrics(path: Path, step: int, evaluated_step: int) -> None:
    """Drop lines that a resumed run will write again, and a last line cut in the middle."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if not isinstance(entry, dict):
            continue
        if entry.get("step", 0) <= (evaluated_step if "AP" in entry else step):
            kept.append(line + "\n")
    with replacing(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
