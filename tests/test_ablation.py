"""The command `ablate`: tables from runs, continuing, failures, refusals."""

import csv
import json
import os
import shutil
import signal
import time
from pathlib import Path

import ablation_jobs
import jobs
import pytest
import yaml
from builders import tiny_values

import gfl.ablation.study as study_module
from gfl.ablation.child import DONE, FAILED, STOPPED, Outcome
from gfl.ablation.plot import save_plot
from gfl.ablation.report import markdown
from gfl.ablation.runs import train_and_judge
from gfl.ablation.study import Study
from gfl.ablation.tables import Row
from gfl.cli.ablate import main
from gfl.engine.checkpoint import load_checkpoint
from gfl.errors import RESUME_ADVICE, TrainingStopped, UserError
from gfl.sample import make_shapes


@pytest.fixture
def place(tmp_path):
    """A config, and three rows of which the third is the first by another name."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tiny_values(tmp_path / "set")))
    texts = {
        "plain": "extends: any.yaml\nloss: {beta: 1.0}\n",
        "guided": "model: {quality: distribution_guided}\nloss: {beta: 1.0}\n",
        "again": "loss: {beta: 1.0}\n",
    }
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    return tmp_path


def rows_in(folder, *names) -> list[Row]:
    figures = {"plain": (38.0, 56.5, 40.7), "guided": (39.9, 58.5, 43.0)}
    return [
        Row(name, name.title(), *figures.get(name, ()), file=folder / f"{name}.yaml")
        for name in names
    ]


class Work:
    """In place of processes: notes what is asked for, and answers at once.

    Args:
        aps: AP by row and seed; an `Outcome` in its place is how the run ends.
    """

    def __init__(self, aps: dict):
        self.aps, self.done = aps, []

    def __call__(self, work, *args, stopped):
        found = getattr(self, work.__name__)(*args)
        return found if isinstance(found, Outcome) else Outcome(DONE, found)

    def measure_cost(self, candidates, started):
        self.done.append("measure")
        return ablation_jobs.measured(candidates, started)

    def train_and_judge(self, values, work_dir):
        row, seed = work_dir.split("/")[-2:]
        self.done.append(f"{row}/{seed}")
        ap = self.aps[row, int(seed.removeprefix("seed"))]
        if isinstance(ap, Outcome):
            return ap
        folder = Path(work_dir)
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        numbers = {"AP": ap, "AP50": ap + 0.1, "AP75": ap - 0.05, "score_iou_correlation": 0.5}
        (folder / "numbers.json").write_text(json.dumps(numbers))

    def time_rows(self, contenders, pairs):
        self.done.append(f"times of {len(contenders)}")
        training = [[2.0] * pairs, [3.0] * pairs, [2.0] * pairs][: len(contenders)]
        inference = [[0.5] * pairs, [0.25] * pairs, [0.5] * pairs][: len(contenders)]
        facts = {"device": "a device", "batch_size": 4, "eval_batch_size": 2}
        return {"training": training, "inference": inference, **facts}


APS = {("plain", 0): 0.30, ("plain", 1): 0.32, ("guided", 0): 0.40, ("guided", 1): 0.41}


def make(monkeypatch, place, aps=None, names=("plain", "guided"), draw=None, **options):
    """A study whose work is faked, and that work; its picture is empty without `draw`."""
    work = Work({**APS, **(aps or {})})
    monkeypatch.setattr(study_module, "in_child", work)
    monkeypatch.setattr(study_module, "save_plot", draw or (lambda file, study: None))
    options = {"seeds": 2, "pairs": 6, "table": "mine", **options}
    rows = rows_in(place, *names)
    return Study(place / "c.yaml", rows, place / "out", say=lambda text: None, **options), work


# What a table says


def test_ablation_table_by_hand(monkeypatch, place):
    study, work = make(monkeypatch, place)
    found = study.run()
    trained = ["plain/seed0", "guided/seed0", "plain/seed1", "guided/seed1"]
    assert work.done == ["measure", *trained, "times of 2"]  # a whole table after the first seed
    plain, guided = found["rows"]
    assert plain["AP"] == {
        "mean": pytest.approx(0.31),
        "sd": pytest.approx(0.0002**0.5),
        "low": 0.30,
        "high": 0.32,
        "n": 2,
    }
    assert plain["difference"] is None and plain["training_time"] is None  # the reference
    assert guided["reference"] == "plain"
    assert guided["difference"] == {
        "value": pytest.approx(0.095),
        "spread": pytest.approx(0.02),
        "verdict": "higher",
    }
    assert guided["paper"] == {"AP": 0.399, "AP50": 0.585, "AP75": 0.43, "delta": 0.019}
    assert guided["training_time"]["median"] == 1.5 and guided["training_time"]["pairs"] == 6
    assert guided["training_time"]["verdict"] == "slower"
    assert guided["inference_time"]["verdict"] == "faster"
    assert json.loads((place / "out" / "mine.json").read_text()) == found


def test_ablation_goes_on_where_times_are_left_of_runs_that_are_gone(monkeypatch, place):
    make(monkeypatch, place)[0].run()
    shutil.rmtree(place / "out" / "runs")
    study, _ = make(monkeypatch, place)
    assert study.run()["rows"][0]["AP"]["n"] == 2


def test_ablation_table_in_markdown(monkeypatch, place):
    study, _ = make(monkeypatch, place, names=("plain", "guided", "again"))
    text = markdown(study.run())
    assert text == (place / "out" / "mine.md").read_text()
    assert (
        "| Plain | 31.0 (30.0..32.0, sd 1.41) | 41.0 (40.0..42.0, sd 1.41) | "
        "26.0 (25.0..27.0, sd 1.41) | reference | 38.0 | 56.5 | 40.7 | reference | reference | "
        "reference | 0.500 (0.500..0.500, sd 0.0000) | 2 finished |"
    ) in text
    assert "| +9.5 higher | 39.9 | 58.5 | 43.0 | +1.9 | 1.500 [1.500, 1.500] slower |" in text
    assert "| +0.0 not resolved | - | - | - | - | 1.000 [1.000, 1.000] not resolved |" in text
    assert "- Again is the same as plain, whose training is used" in text
    for words in (
        "fractions x 100",
        "measured on COCO minival with ResNet-50",
        "median of 6 pairs",
        "Plain: 2 s a step of 4, 0.5 s to detect in 2.",
    ):
        assert words in text


def test_ablation_table_in_csv_and_as_a_picture(monkeypatch, place):
    study, _ = make(monkeypatch, place, draw=save_plot)
    study.run()
    with open(place / "out" / "mine.csv", newline="") as file:
        plain, guided = csv.DictReader(file)
    assert (plain["row"], plain["reference"], plain["AP_x100_difference"]) == ("plain", "", "")
    assert float(guided["AP_x100_mean"]) == pytest.approx(40.5)
    assert float(guided["AP_x100_min"]) == 40.0 and float(guided["AP75_x100_max"]) == 36.0
    assert (guided["AP_x100_difference"], guided["AP_difference_verdict"]) == ("9.5", "higher")
    assert (guided["paper_AP_x100"], guided["paper_AP_x100_difference"]) == ("39.9", "1.9")
    assert (guided["training_time_ratio"], guided["training_time_pairs"]) == ("1.5", "6")
    assert guided["score_iou_correlation_mean"] == "0.5"
    assert (place / "out" / "mine.png").read_bytes().startswith(b"\x89PNG")


def test_ablation_with_one_seed_calls_nothing_a_difference(monkeypatch, place):
    study, _ = make(monkeypatch, place, seeds=1, pairs=0)
    text = markdown(study.run())
    assert "| 30.0 (1 seed) |" in text and "| +10.0 not resolved |" in text
    assert "Times are not measured: --pairs 0." in text


def test_ablation_override_of_a_row_is_told(monkeypatch, place):
    study, _ = make(monkeypatch, place, overrides=["loss.beta=2"])
    assert study.remarks == [
        "Plain: loss.beta of the row is overridden",
        "Guided: loss.beta of the row is overridden",
    ]


def test_ablation_with_a_teacher_says_that_every_row_has_it(monkeypatch, place):
    study, _ = make(monkeypatch, place, overrides=["distill.teacher=t.pt"])
    [remark] = study.remarks
    assert remark.startswith("every row learns from distill.teacher t.pt besides")


# Continuing


def test_ablation_repeats_nothing_that_is_finished(monkeypatch, place):
    make(monkeypatch, place)[0].run()
    study, work = make(monkeypatch, place, aps={("plain", 2): 0.3, ("guided", 2): 0.3}, seeds=3)
    assert len(study.run()["rows"][0]["seeds"]) == 3
    assert work.done == ["measure", "plain/seed2", "guided/seed2"]  # the times are there too
    study, work = make(monkeypatch, place)
    assert study.plan()[-1] == "all 4 runs are finished, nothing is left to do"
    study.run()
    assert work.done == []


def test_ablation_times_of_more_rows_serve_fewer(monkeypatch, place):
    (place / "third.yaml").write_text("loss: {beta: 1.5}\n")
    three, aps = ("plain", "guided", "third"), {("third", seed): 0.3 for seed in (0, 1)}
    make(monkeypatch, place, aps=aps, names=three)[0].run()
    study, work = make(monkeypatch, place)
    found = study.run()
    assert work.done == [] and list(found["times"]["training"]) == ["plain", "guided"]
    assert found["rows"][1]["training_time"]["median"] == pytest.approx(1.5)
    study, work = make(monkeypatch, place, names=three)
    study.run()
    assert work.done == []


def test_ablation_stopped_run_leaves_a_table(monkeypatch, place):
    ended = Outcome(STOPPED, f"SIGTERM: stopped. {RESUME_ADVICE}, or: gfl train a/b --resume")
    study, work = make(monkeypatch, place, aps={("guided", 0): ended})
    with pytest.raises(TrainingStopped, match=r"guided, seed 0: SIGTERM: stopped. The same ablate"):
        study.run()
    text = (place / "out" / "mine.md").read_text()
    assert "| Plain | 30.0 (1 seed) |" in text and "| 1 finished, 1 open |" in text
    assert "Times are not measured yet." in text
    study, work = make(monkeypatch, place)
    study.run()
    assert work.done[1] == "guided/seed0"  # plain's first seed is not repeated


def test_ablation_failed_run_does_not_lose_the_others(monkeypatch, place):
    study, work = make(monkeypatch, place, aps={("plain", 1): Outcome(FAILED, "memory\nran out.")})
    found = study.run()
    assert study.failures == {place / "out/runs/plain/seed1": "memory\nran out."}
    assert found["rows"][0]["seeds"]["1"]["status"] == "failed"
    text = (place / "out" / "mine.md").read_text()
    assert "| 1 finished, 1 failed |" in text and "| 2 finished |" in text
    assert "- Plain, seed 1, failed: memory ran out." in text
    study, work = make(monkeypatch, place)
    study.run()
    assert study.failures == {} and work.done == ["measure", "plain/seed1"]  # tried again


def test_ablation_times_that_fail_are_told(monkeypatch, place):
    study, work = make(monkeypatch, place)
    work.time_rows = lambda contenders, pairs: Outcome(FAILED, "memory ran out.")
    assert "Times are not measured: memory ran out." in markdown(study.run())


def test_ablation_same_row_in_another_table_is_not_trained_again(monkeypatch, place):
    make(monkeypatch, place)[0].run()
    study, work = make(monkeypatch, place, names=("again",), table="other")
    assert study.run()["rows"][0]["AP"]["mean"] == pytest.approx(0.31)
    assert work.done == []
    assert study.remarks == ["Again is the same as plain, whose training is used"]


# Refusals


def test_ablation_of_another_config_is_refused(monkeypatch, place):
    make(monkeypatch, place)[0].run()
    message = "runs/plain/seed0 holds a run of another config .train.epochs: 2 -> 3.*another --out"
    with pytest.raises(UserError, match=message):
        make(monkeypatch, place, overrides=["train.epochs=3"])


def test_ablation_in_a_directory_that_is_in_use(monkeypatch, place):
    study, work = make(monkeypatch, place)
    with study_module.only_one_training(place / "out"):
        with pytest.raises(UserError, match="choose another --out"):
            study.run()


def test_ablation_refuses_torchrun_and_impossible_numbers(monkeypatch, place):
    with pytest.raises(UserError, match="expected 1 and 0 or more"):
        make(monkeypatch, place, seeds=0)
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match="without torchrun"):
        make(monkeypatch, place)


def test_ablation_command_ends_with_the_status_of_its_mistake(place, capsys):
    config, out = str(place / "c.yaml"), str(place / "out")
    assert main([config, "--out", out, "--rows", "overall_dflx"]) == 2
    assert "no row 'overall_dflx'; did you mean 'overall_dfl'" in capsys.readouterr().err
    assert main([str(place / "none.yaml"), "--out", out]) == 2
    assert not (place / "out").exists()


# Real runs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """Two rows over a config of the smallest network on the drawn sample."""
    folder = tmp_path_factory.mktemp("ablation")
    make_shapes(folder / "set", 6, 2, seed=0, size=(128, 96))
    values = tiny_values(folder / "set", epochs=1, batch_size=2, checkpoint_steps=1)
    values["postprocess"] = {"score_threshold": 0.001}  # so that there is something to rank
    (folder / "c.yaml").write_text(yaml.safe_dump(values))
    (folder / "plain.yaml").write_text("loss: {beta: 1.0}\n")
    (folder / "guided.yaml").write_text("model: {quality: distribution_guided}\n")
    return folder


def directly(work, *args, stopped):
    return Outcome(DONE, work(*args))


def test_ablation_of_the_sample_from_plan_to_table(shapes, monkeypatch):
    monkeypatch.setattr(study_module, "in_child", directly)
    out = shapes / "whole"
    rows = rows_in(shapes, "plain", "guided")
    study = Study(shapes / "c.yaml", rows, out, seeds=1, pairs=3, table="mine")
    plan = study.plan()
    assert not out.exists()
    assert plan[1:3] == ["  plain: loss.beta=1.0", "  guided: model.quality=distribution_guided"]
    assert plan[3] == "runs        2 trainings of 2 rows: 0 finished, 0 begun, 2 new"
    assert plan[4].startswith("training    6 steps x ") and "(5 steps of plain)" in plan[4]
    found = study.run()
    for row in found["rows"]:
        state = row["seeds"]["0"]
        folder = out / "runs" / row["name"] / "seed0"
        assert state["status"] == "finished" and state["numbers"]["steps"] == 3
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").open()]
        last = [line for line in lines if "AP" in line][-1]
        assert state["numbers"]["AP"] == last["AP"]  # what the training itself has logged
        assert -1 <= state["numbers"]["score_iou_correlation"] <= 1
        assert len(found["times"]["training"][row["name"]]) == 3
        assert min(found["times"]["inference"][row["name"]]) > 0
    assert found["rows"][1]["training_time"]["pairs"] == 3
    config = load_checkpoint(out / "runs" / "guided" / "seed0" / "last.pt")["config"]
    assert config["model"]["quality"] == "distribution_guided"


def start(shapes, out, log, seconds_a_step=0.0):
    argv = [str(shapes / "c.yaml"), "--table", "mine", "--out", str(out)]
    argv += ["--seeds", "1", "--pairs", "0", "--json", str(log.with_suffix(".json"))]
    rows = rows_in(shapes, "plain", "guided")
    process = jobs.CONTEXT.Process(
        target=ablation_jobs.ablate, args=(argv, rows, log, seconds_a_step)
    )
    process.start()
    return process


def test_ablation_goes_on_after_a_signal(shapes, tmp_path):
    out, log = tmp_path / "out", tmp_path / "log.txt"
    process = start(shapes, out, log, seconds_a_step=1.0)
    guided = out / "runs" / "guided" / "seed0"
    end = time.monotonic() + 180
    while not (guided / "last.pt").exists():
        assert time.monotonic() < end and process.is_alive(), log.read_text()
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    process.join(180)
    text = log.read_text()
    assert process.exitcode == 75, text
    assert "Traceback" not in text
    assert "guided, seed 0" in text and "The same ablate command goes on there." in text
    held = load_checkpoint(guided / "last.pt")["step"]
    assert held < 3
    plain = out / "runs" / "plain" / "seed0" / "last.pt"
    before = plain.stat().st_mtime_ns

    process = start(shapes, out, log)
    process.join(300)
    assert process.exitcode == 0, log.read_text()
    assert f"resumed at step {held} of 3" in (guided / "log.txt").read_text()
    assert plain.stat().st_mtime_ns == before
    rows = json.loads(log.with_suffix(".json").read_text())["rows"]
    assert [row["seeds"]["0"]["status"] for row in rows] == ["finished", "finished"]


def test_ablation_judges_again_what_was_trained_but_not_judged(shapes, tmp_path):
    values = yaml.safe_load((shapes / "c.yaml").read_text())
    numbers = train_and_judge(values, str(tmp_path / "run"))
    (tmp_path / "run" / "numbers.json").unlink()
    again = train_and_judge(values, str(tmp_path / "run"))
    assert {**again, "seconds": 0} == {**numbers, "seconds": 0}
