"""The runs of a table: where each lies, how far it is, and training and judging one."""

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from gfl import build
from gfl.ablation.ranking import score_iou_correlation
from gfl.ablation.tables import Row
from gfl.config import Config, parse_config
from gfl.engine.checkpoint import load_checkpoint, write_atomically
from gfl.engine.evaluate import METRICS
from gfl.engine.keeper import BEST, LAST, PREVIOUS
from gfl.errors import UserError
from gfl.evaluation import evaluate
from gfl.training import train
from gfl.work_dir import differences

# Written when a run is finished and judged.
NUMBERS = "numbers.json"


@dataclass(frozen=True)
class Run:
    """One training of a row.

    Attributes:
        row: what is trained.
        seed: its train.seed.
        config: everything that defines it.
        work_dir: an ordinary work directory. Of another row, where that is the same in all but
            its name.
    """

    row: Row
    seed: int
    config: Config
    work_dir: Path

    @property
    def numbers(self) -> dict | None:
        """What `train_and_judge` found, None where the run is not finished."""
        try:
            return json.loads((self.work_dir / NUMBERS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    @property
    def is_begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return any((self.work_dir / name).exists() for name in (LAST, PREVIOUS))

    def steps_done(self) -> int:
        """Steps that its checkpoint holds."""
        for name in (LAST, PREVIOUS):
            try:
                return load_checkpoint(self.work_dir / name)["step"]
            except UserError:
                continue
        return 0


def place_runs(out: Path, configs: list[tuple[Row, Config]]) -> list[Run]:
    """Give each row and seed its directory, OUT/runs/ROW/seedK.

    A row whose config is the same as another's, in this table or in another of `out`, shares that
    one's run.

    Raises:
        UserError: a directory holds a run of another config.
    """
    known: dict[str, Path] = {}
    for folder in sorted(out.glob("runs/*/seed*")):
        if _is_used(folder):
            try:
                known.setdefault(_key(_config_in(folder)), folder)
            except UserError:  # of an older version: nobody can share it
                continue
    runs = []
    for row, config in configs:
        folder = out / "runs" / row.name / f"seed{config.train.seed}"
        if _is_used(folder):
            _require_same(folder, config)
        else:
            folder = known.setdefault(_key(config), folder)
        runs.append(Run(row, config.train.seed, config, folder))
    return runs


def train_and_judge(values: dict, work_dir: str) -> dict:
    """Train a run or go on with it, then judge its last weights on val; keep and give the numbers.

    Args:
        values: of its config.
        work_dir: where it goes on, if there is a checkpoint.

    Returns:
        The COCO numbers of the weights after the last epoch (averaged ones where EMA is on), and
        `score_iou_correlation`, `detections`, `weights`, `steps` and `seconds` (of this call).
    """
    config, folder = parse_config(values), Path(work_dir)
    started = time.perf_counter()
    outcome = train(config, work_dir=folder, resume=True)
    content = load_checkpoint(folder / LAST)
    dataset = build.build_dataset(config, "val", tuple(content["class_map"]["names"]))
    metrics, results = evaluate(folder / LAST, dataset=dataset, say=_say)
    numbers = {
        **{name: metrics[name] for name in METRICS},
        "score_iou_correlation": score_iou_correlation(results, dataset.ground_truth()),
        "detections": len(results),
        "weights": outcome["weights"],
        "steps": content["step"],
        "seconds": time.perf_counter() - started,
    }
    write_file(folder / NUMBERS, json.dumps(numbers, indent=1).encode())
    return numbers


def write_file(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all.

    Raises:
        UserError: it can not be written.
    """
    try:
        write_atomically(path, lambda file: file.write(content))
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def _is_used(folder: Path) -> bool:
    """Whether a directory holds more than an attempt that never got to a checkpoint."""
    return any((folder / name).exists() for name in (LAST, PREVIOUS, BEST, NUMBERS))


def _config_in(folder: Path) -> Config:
    try:
        values = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise UserError(f"{folder} holds a run, but its config can not be read: {error}") from None
    return parse_config(values, str(folder / "config.yaml"))


def _require_same(folder: Path, config: Config) -> None:
    changes = differences(_config_in(folder).to_dict(), config.to_dict())
    if changes:
        raise UserError(
            f"{folder} holds a run of another config ({'; '.join(changes[:5])}"
            f"{'; ...' if len(changes) > 5 else ''}): numbers of both would be mixed in one "
            "table. Use the same config and key=value, or choose another --out."
        )


def _key(config: Config) -> str:
    return json.dumps(config.to_dict(), sort_keys=True)


def _say(message: str) -> None:
    print(message, file=sys.stderr)
