"""A table of the paper on a user's data: what is planned, done one run after another, reported."""

import io
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import gfl
from gfl.ablation.child import DONE, FAILED, MISTAKE, STOPPED, in_child
from gfl.ablation.chosen import chosen_for
from gfl.ablation.cost import Left, Measured, cost_lines, evaluations_left
from gfl.ablation.findings import collect
from gfl.ablation.measuring import measure_cost, time_rows
from gfl.ablation.overlay import dotted, overridden, row_config, row_values
from gfl.ablation.plot import save_plot
from gfl.ablation.report import markdown, to_csv
from gfl.ablation.runs import Run, place_runs, train_and_judge, write_file
from gfl.ablation.tables import Row
from gfl.engine.keeper import LAST
from gfl.engine.stop import StopSignal
from gfl.errors import RESUME_ADVICE, TrainingStopped, UserError
from gfl.work_dir import only_one_training

# What is timed of each row.
KINDS = ("training", "inference")


def say_on_stderr(message: str) -> None:
    """Print a message on stderr."""
    print(message, file=sys.stderr, flush=True)


class Study:
    """The rows of a table on one config.

    Args:
        config: a YAML file or the name of a shipped config.
        rows: see `gfl.ablation.tables.choose_rows`.
        out: gets runs/ROW/seedK, and TABLE.md, .csv, .png and .json.
        overrides: "key=value" strings, laid over each row.
        seeds: trainings of each row; their seeds count up from train.seed.
        pairs: rounds in which the rows' times are compared; 0 for none.
        table: what the files are called.
        say: takes messages.

    Attributes:
        runs: every row and seed, the first seed of all rows first.
        failures: work directory to reason, of the runs that `run` could not finish.
        remarks: what makes a row less than its name.

    Raises:
        UserError: a row or the config is wrong, or `out` holds runs of another config.
    """

    def __init__(
        self,
        config: str | Path,
        rows: Sequence[Row],
        out: str | Path,
        overrides: Sequence[str] = (),
        seeds: int = 3,
        pairs: int = 30,
        table: str = "ablation",
        say: Callable[[str], None] = say_on_stderr,
    ):
        if "RANK" in os.environ:
            raise UserError("ablate starts its trainings itself: run it without torchrun.")
        if seeds < 1 or pairs < 0:
            raise UserError(f"--seeds {seeds} --pairs {pairs}: expected 1 and 0 or more.")
        self.config, self.rows, self.out = config, list(rows), Path(out)
        self.overrides, self.pairs, self.table, self.say = list(overrides), pairs, table, say
        self.chosen = chosen_for(config, self.overrides, self.out)
        configs = [
            (row, row_config(config, row, self.overrides, seed, self.chosen.values))
            for seed in range(seeds)
            for row in self.rows
        ]
        self.runs: list[Run] = place_runs(self.out, configs)
        self.remarks = self._remarks()
        self.failures: dict[Path, str] = {}
        self._times_problem = None if pairs else "--pairs 0"

    def plan(self, stopped: Callable[[], bool] = lambda: False) -> list[str]:
        """What would be done, and what it costs: measured on a few steps of the first row.

        Raises:
            UserError: no row can be built.
        """
        lines = [f"table {self.table}: {len(self.rows)} rows on {self.config}"]
        lines += [
            f"  {row.name}: "
            + ", ".join(f"{key}={value}" for key, value in dotted(row_values(row)).items())
            for row in self.rows
        ]
        lines += [*self.chosen.lines, *(f"remark: {text}" for text in self.remarks)]
        open_runs = self._open_runs()
        timed = len(self.rows) if self._wants_times() and not self._times() else 0
        if not open_runs and not timed:
            return [*lines, f"all {len(self.runs)} runs are finished, nothing is left to do"]
        candidates = {run.row.name: run.config.to_dict() for run in self.runs}
        started = time.time()
        outcome = in_child(measure_cost, list(candidates.items()), started, stopped=stopped)
        if outcome.status == STOPPED:
            raise TrainingStopped("stopped before anything was begun.")
        if outcome.status == MISTAKE:
            raise UserError(outcome.value)
        if outcome.status == FAILED:
            return [*lines, f"the cost could not be measured: {outcome.value}"]
        left = self._left(open_runs, outcome.value, timed)
        return lines + cost_lines(left, outcome.value, len(self.rows))

    def run(self) -> dict:
        """Do what is left to do, writing the table after each run; a failed run ends no other.

        Returns:
            What TABLE.json holds: `rows` are those of `gfl.ablation.findings.collect`.

        Raises:
            TrainingStopped: a signal came; the run at hand has saved what it had.
        """
        with StopSignal() as stop, only_one_training(self.out, "--out"):

            def stopped() -> bool:
                return stop.number is not None

            self.chosen.write(self.out)
            for line in self.plan(stopped):
                self.say(line)
            study = self._write()
            open_runs = self._open_runs()
            for number, run in enumerate(open_runs, start=1):
                self._train(run, f"run {number} of {len(open_runs)}", stopped)
                study = self._write()
            if self._wants_times() and not self._times():
                self._take_times(stopped)
                study = self._write()
        return study

    def _train(self, run: Run, which: str, stopped: Callable[[], bool]) -> None:
        self.say(f"{which}: {run.row.name}, seed {run.seed}, in {run.work_dir}")
        work_dir = str(run.work_dir)
        outcome = in_child(train_and_judge, run.config.to_dict(), work_dir, stopped=stopped)
        if outcome.status == STOPPED or stopped() and outcome.status != DONE:
            self._write()
            told = str(outcome.value).partition(RESUME_ADVICE)[0].strip()
            raise TrainingStopped(
                f"{run.row.name}, seed {run.seed}: {told} The same ablate command goes on there."
            )
        if outcome.status != DONE:
            self.failures[run.work_dir] = str(outcome.value)
            self.say(f"{which} failed: {outcome.value}")

    def _left(self, open_runs: list[Run], measured: Measured, timed: int) -> Left:
        steps = evaluations = begun = 0
        for run in open_runs:
            schedule = run.config.train
            done = run.steps_done()
            begun += run.is_begun
            steps += schedule.epochs * measured.steps_per_epoch - done
            epochs_done = done // measured.steps_per_epoch
            evaluations += evaluations_left(schedule.epochs, schedule.eval_epochs, epochs_done)
        places = len({run.work_dir for run in self.runs})
        return Left(
            runs=len(open_runs),
            steps=steps,
            evaluations=evaluations,
            begun=begun,
            finished=places - len(open_runs),
            shared=len(self.runs) - places,
            timed_rows=timed,
            pairs=self.pairs,
        )

    def _open_runs(self) -> list[Run]:
        """One for each directory that is not finished."""
        open_runs: dict[Path, Run] = {}
        for run in self.runs:
            if run.numbers is None:
                open_runs.setdefault(run.work_dir, run)
        return list(open_runs.values())

    def _remarks(self) -> list[str]:
        remarks = []
        teacher = self.runs[0].config.distill.teacher
        if teacher is not None:
            remarks.append(
                f"every row learns from distill.teacher {teacher} besides, unlike the paper's: "
                "distill.teacher=null leaves it out"
            )
        for row in self.rows:
            keys = overridden(row, self.overrides)
            if keys:
                remarks.append(f"{row.title}: {', '.join(keys)} of the row is overridden")
        for run in self.runs[: len(self.rows)]:
            owner = run.work_dir.parent.name
            if owner != run.row.name:
                remarks.append(f"{run.row.title} is the same as {owner}, whose training is used")
        return remarks

    # Times -------------------------------------------------------------------------------------

    def _wants_times(self) -> bool:
        return self.pairs > 0 and len(self.rows) > 1

    def _contenders(self) -> list[Run]:
        """The first seed's run of each row, where it is finished."""
        return [run for run in self.runs[: len(self.rows)] if run.numbers is not None]

    def _times(self) -> dict | None:
        """Times of these rows that are on the disk, taken in at least as many rounds.

        Other rows may have been timed with them: times of one row are compared with another's.
        """
        try:
            times = json.loads(self._file("times.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {run.row.name: str(run.work_dir) for run in self._contenders()}
        if not wanted:  # of these rows; others may have been timed
            return None
        if not wanted.items() <= times["rows"].items() or not times["pairs"] >= self.pairs > 0:
            return None
        own = {kind: {name: times[kind][name] for name in wanted} for kind in KINDS}
        return {**times, **own, "rows": wanted}

    def _take_times(self, stopped: Callable[[], bool]) -> None:
        contenders = self._contenders()
        if len(contenders) < 2:
            self._times_problem = "fewer than two rows have a finished first seed"
            return
        self.say(f"times: {self.pairs} rounds of {len(contenders)} rows")
        pairs = [(run.config.to_dict(), str(run.work_dir / LAST)) for run in contenders]
        outcome = in_child(time_rows, pairs, self.pairs, stopped=stopped)
        if outcome.status == STOPPED:
            raise TrainingStopped("stopped while taking times. The same command takes them anew.")
        if outcome.status != DONE:
            self._times_problem = str(outcome.value)
            self.say(f"times could not be taken: {outcome.value}")
            return
        names = [run.row.name for run in contenders]
        kinds = {kind: dict(zip(names, outcome.value[kind], strict=True)) for kind in KINDS}
        rows = {run.row.name: str(run.work_dir) for run in contenders}
        times = {**outcome.value, **kinds, "rows": rows, "pairs": self.pairs}
        write_file(self._file("times.json"), json.dumps(times).encode())

    # Files -------------------------------------------------------------------------------------

    def _file(self, ending: str) -> Path:
        return self.out / f"{self.table}.{ending}"

    def _state(self, run: Run) -> dict:
        numbers = run.numbers
        if numbers is not None:
            return {"status": "finished", "numbers": numbers, "work_dir": str(run.work_dir)}
        reason = self.failures.get(run.work_dir)
        if reason is not None:
            return {"status": "failed", "reason": reason, "work_dir": str(run.work_dir)}
        return {"status": "begun" if run.is_begun else "open", "work_dir": str(run.work_dir)}

    def _write(self) -> dict:
        """Write all files of the table as it is now; gives its content."""
        states: dict[str, dict[int, dict]] = {row.name: {} for row in self.rows}
        for run in self.runs:
            states[run.row.name][run.seed] = self._state(run)
        times = self._times() if self._wants_times() else None
        study = {
            "table": self.table,
            "config": str(self.config),
            "overrides": self.overrides,
            "seeds": sorted({run.seed for run in self.runs}),
            "version": gfl.__version__,
            "remarks": self.remarks,
            "times_problem": self._times_problem,
            "rows": collect(self.rows, states, times),
            "times": times,
        }
        picture = io.BytesIO()
        save_plot(picture, study)
        write_file(self._file("json"), json.dumps(study, indent=1).encode())
        write_file(self._file("csv"), to_csv(study).encode())
        write_file(self._file("md"), markdown(study).encode())
        write_file(self._file("png"), picture.getvalue())
        return study
