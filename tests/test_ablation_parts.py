"""Parts of an ablation: tables of the paper, rows over a config, cost, statistics, processes."""

import signal
import subprocess
import sys
import time

import ablation_jobs
import pytest
import yaml
from builders import tiny_values
from conftest import REPOSITORY

from gfl.ablation.child import Outcome, in_child
from gfl.ablation.cost import Left, Measured, cost_lines, duration, evaluations_left, total_seconds
from gfl.ablation.overlay import overridden, row_config, row_values
from gfl.ablation.ranking import score_iou_correlation
from gfl.ablation.summary import Difference, Ratio, Spread, difference, ratio, spread
from gfl.ablation.tables import TABLES, Row, choose_rows
from gfl.errors import UserError

# Tables


def figures(table: str) -> dict:
    return {row.name: (row.AP, row.AP50, row.AP75) for row in TABLES[table]}


def test_ablation_tables_have_the_figures_of_the_paper():
    assert figures("overall")["overall_baseline"] == (39.2, 57.4, 42.2)
    assert figures("overall")["overall_qfl_dfl"] == (40.2, 58.6, 43.4)
    assert figures("quality")["quality_fcos_iou_branch"] == (38.7, 56.7, 42.0)
    assert figures("quality")["quality_atss_joint"] == (39.9, 58.5, 43.0)
    assert figures("quality")["quality_atss_centerness_guided"] == (38.2, 56.2, 41.0)
    assert figures("beta")["beta_2.5"] == (39.7, 58.1, 42.7)
    assert figures("box")["box_fcos_general_dfl"] == (39.0, 57.0, 42.3)
    assert figures("bins")["bins_n14"] == (40.2, 58.3, 43.6)
    assert figures("bins")["bins_width_4"] == (39.8, 58.5, 42.8)
    assert figures("assigner")["assigner_retinanet_qfl"] == (36.4, 56.3, 39.1)
    assert figures("assigner")["assigner_tal"] == figures("assigner")["assigner_simota"]
    assert figures("assigner")["assigner_tal"] == (None, None, None)
    assert figures("assigner")["overall_qfl_dfl"] == figures("overall")["overall_qfl_dfl"]


def test_ablation_tables_say_the_same_where_the_paper_repeats_itself():
    boxes, quality, overall = figures("box"), figures("quality"), figures("overall")
    for detector in ("fcos", "atss"):  # table 2 keeps the centerness branch
        dirac = boxes[f"box_{detector}_dirac"]
        assert dirac == quality[f"quality_{detector}_centerness_branch"]
    assert overall["overall_baseline"] == boxes["box_atss_dirac"]
    assert overall["overall_qfl"] == quality["quality_atss_joint"] == figures("beta")["beta_2"]
    assert overall["overall_dfl"] == boxes["box_atss_general_dfl"]
    assert overall["overall_qfl_dfl"] == figures("bins")["bins_n16"]
    assert figures("bins")["bins_width_1"] == figures("bins")["bins_n16"]
    assert (
        figures("assigner").items()
        > {name: quality[name] for name in quality if name.endswith(("none", "joint"))}.items()
    )


def test_ablation_rows_have_distinct_names():
    assert [len(rows) for rows in TABLES.values()] == [4, 12, 8, 5, 8, 9]
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len({row.title for row in rows}) == len(rows)


@pytest.mark.parametrize("table", TABLES)
def test_ablation_rows_have_files_that_fit_a_config(table, tmp_path):
    config = write_config(tmp_path)
    for row in TABLES[table]:
        assert row_values(row)
        row_config(config, row, [])


def test_ablation_rows_are_chosen_by_detector_and_name():
    assert [row.group for row in choose_rows("box", "fcos")] == ["fcos"] * 4
    names = ["beta_4", "beta_0"]
    assert [row.name for row in choose_rows("beta", names=names)] == ["beta_0", "beta_4"]
    with pytest.raises(UserError, match="has no row of detector fcos: leave --detector out"):
        choose_rows("beta", "fcos")
    with pytest.raises(UserError, match="no row 'beta_25'; did you mean 'beta_2.5'"):
        choose_rows("beta", names=["beta_25"])
    with pytest.raises(UserError, match="unknown table"):
        choose_rows("betas")


# Rows over a config


def write_config(folder, **train):
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(tiny_values(folder / "set", **train)))
    return path


def write_row(folder, name: str, text: str) -> Row:
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return Row(name, name, file=path)


def test_ablation_row_lies_over_the_config_and_below_overrides(tmp_path):
    config = write_config(tmp_path, seed=5)
    row = write_row(
        tmp_path, "r", "extends: nowhere.yaml\nloss: {beta: 1.0}\nmodel: {reg_max: 12}\n"
    )
    found = row_config(config, row, ["train.epochs=7", "loss.dfl_weight=0.5"], seed=2)
    assert (found.loss.beta, found.model.reg_max) == (1.0, 12)  # the row's
    assert (found.train.epochs, found.loss.dfl_weight) == (7, 0.5)  # the user's
    assert (found.model.neck.channels, found.data.path) == (32, str(tmp_path / "set"))  # kept
    assert found.train.seed == 7
    assert row_config(config, row, ["model.reg_max=4"]).model.reg_max == 4


def test_ablation_of_a_config_that_needs_its_overrides(tmp_path):
    config = write_config(tmp_path, epochs="auto", milestones=[8, 11])
    row = write_row(tmp_path, "r", "loss: {beta: 1.0}\n")
    with pytest.raises(UserError, match="schedule"):
        row_config(config, row, [])
    found = row_config(config, row, ["train.schedule=cosine"])
    assert (found.train.schedule, found.loss.beta) == ("cosine", 1.0)


def test_ablation_row_that_an_override_undoes_is_named(tmp_path):
    row = write_row(tmp_path, "r", "loss: {beta: 1.0}\nmodel: {reg_max: 12}\n")
    assert overridden(row, ["loss.beta=3", "train.epochs=1", "model.box=general"]) == ["loss.beta"]
    assert overridden(row, ["model={reg_max: 4}"]) == ["model.reg_max"]
    assert overridden(row, []) == []
    # What lies beside a row's key in the same section leaves it as it is.
    head = write_row(tmp_path, "h", "model: {head: {score: scalar}, box: dirac}\n")
    assert overridden(head, ["model.head={channels: 64}", "model={reg_max: 8}"]) == []
    assert overridden(head, ["model.head={score: distribution}"]) == ["model.head.score"]


@pytest.mark.parametrize("table", TABLES)
def test_ablation_rows_are_themselves_over_a_config_of_another_method(table, tmp_path):
    """What makes a method is the row's; sizes, which are the user's, stay."""
    plain, other = tiny_values(tmp_path / "set"), tiny_values(tmp_path / "set")
    other["model"] |= {"quality": "joint", "box": "gaussian", "grid_origin": "cell_center"}
    other["model"]["head"] |= {"score": "distribution", "background_channel": True}
    other["assigner"] = {"name": "fcos", "anchor_scale": 4.0}
    for name, values in (("plain", plain), ("other", other)):
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(values))
    for row in TABLES[table]:
        want, got = (row_config(tmp_path / f"{name}.yaml", row, []) for name in ("plain", "other"))
        assert (got.model, got.loss, got.assigner) == (want.model, want.loss, want.assigner)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epochs: 3}\n", "states train: a row of an ablation states keys of model"),
        ("loss: {beta: -1}\n", r"row r over .*: loss.beta is -1"),
        ("loss: {betta: 1}\n", "did you mean 'beta'"),
        ("loss: [\n", "not valid YAML"),
    ],
)
def test_ablation_row_that_is_wrong(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        row_config(write_config(tmp_path), write_row(tmp_path, "r", text), [])


def test_ablation_row_without_a_file(tmp_path):
    with pytest.raises(UserError, match="cannot read row gone"):
        row_values(Row("gone", "gone", file=tmp_path / "gone.yaml"))


# Cost

MEASURED = Measured(
    row="first",
    steps_per_epoch=100,
    steps=5,
    step_seconds=0.5,
    eval_batches=10,
    eval_batch_seconds=0.2,
    start_seconds=6.0,
    checkpoint_bytes=2**28,
    device="a device",
)


def test_ablation_cost_by_hand():
    # 600 * 0.5 + 7 * 10 * 0.2 + 2 * 6 + 30 * 3 * (0.5 + 0.2) = 300 + 14 + 12 + 63
    left = Left(2, 600, 7, begun=1, finished=1, shared=0, timed_rows=3, pairs=30)
    assert total_seconds(left, MEASURED) == pytest.approx(389)
    assert cost_lines(left, MEASURED, rows=3) == [
        "runs        3 trainings of 3 rows: 1 finished, 1 begun, 1 new",
        "training    600 steps x 0.5 s (5 steps of first) = 5 min 0 s",
        "evaluation  7 x 10 batches x 0.2 s = 14 s",
        "starting    2 x 6 s = 12 s",
        "times       30 rounds x 3 rows x 0.7 s = 1 min 3 s",
        "together    about 6 min 29 s on a device, up to 1.5 GiB of disk; other rows may take "
        "longer than first",
    ]


@pytest.mark.parametrize(
    ("epochs", "every", "done", "count"),
    [(12, 4, 0, 4), (5, 2, 0, 4), (5, 2, 4, 2), (5, 2, 5, 1), (4, 2, 4, 1), (4, 2, 3, 2)],
)
def test_ablation_evaluations_that_are_left(epochs, every, done, count):
    # After every second of 5 epochs and the last: 2, 4, 5; and one more that judges.
    assert evaluations_left(epochs, every, done) == count


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (4.21, "4.2 s"),
        (59.4, "59 s"),
        (61.4, "1 min 1 s"),
        (3599.9, "60 min 0 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
    ],
)
def test_ablation_duration_in_words(seconds, text):
    assert duration(seconds) == text


# Statistics


def test_ablation_spread_by_hand():
    assert spread([1.0, 2.0, 6.0]) == Spread(3.0, pytest.approx(7**0.5), 1.0, 6.0, 3)
    assert spread([0.4]) == Spread(0.4, None, 0.4, 0.4, 1)
    assert spread([]) is None
    assert spread([0.1, 0.1, 0.1]) == Spread(0.1, pytest.approx(0), 0.1, 0.1, 3)


@pytest.mark.parametrize(
    ("found", "reference", "expected"),
    [
        ([3.0, 4.0], [1.0, 2.0], Difference(2.0, 1.0, "higher")),
        ([1.0, 2.0], [3.0, 4.0], Difference(-2.0, 1.0, "lower")),
        ([2.0, 3.0], [1.0, 2.0], Difference(1.0, 1.0, "not resolved")),  # no more than the range
        ([3.0, 6.0], [1.0, 2.0], Difference(3.0, 3.0, "not resolved")),  # the wider one counts
        ([9.0], [1.0, 2.0], Difference(7.5, None, "not resolved")),  # one seed has no range
        ([], [1.0, 2.0], None),
    ],
)
def test_ablation_difference_must_exceed_what_seeds_do(found, reference, expected):
    assert difference(spread(found), spread(reference)) == expected


def test_ablation_bootstrap_interval_of_a_known_sample():
    # Ratios 1 to 9. A resampled median is at most k where 5 or more of 9 draws are: with
    # probability 0.0015 for k = 1 and 0.0304 for k = 2, so the 2.5 % point is 2; 8 by symmetry.
    times = [float(k) for k in range(1, 10)]
    assert ratio(times, [1.0] * 9) == Ratio(5.0, 2.0, 8.0, 9)
    assert ratio([2 * t for t in times], [2.0] * 9, seed=1) == Ratio(5.0, 2.0, 8.0, 9)


def test_ablation_bootstrap_is_deterministic_and_pairs_rounds():
    slow_machine = [1.0, 5.0, 3.0, 9.0]  # the same for both: the ratio does not see it
    found = ratio([1.1 * t for t in slow_machine], slow_machine)
    assert (found.median, found.low, found.high) == pytest.approx((1.1, 1.1, 1.1))
    noisy = [1.0, 1.2, 0.9, 1.1, 1.3]
    assert ratio(noisy, [1.0] * 5) == ratio(noisy, [1.0] * 5)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(1.01, 1.2, "more"), (0.8, 0.99, "less"), (0.99, 1.2, "not resolved"), (1, 2, "not resolved")],
)
def test_ablation_interval_decides_or_not(low, high, verdict):
    assert Ratio(1.0, low, high, 30).verdict == Ratio(1.0, low, high, 6).verdict == verdict
    assert Ratio(1.0, low, high, 5).verdict == "not resolved"


# Score and IoU


class Truth:
    """As much of a COCO ground truth as is read."""

    def __init__(self, *annotations):
        keys = ("image_id", "category_id", "bbox", "iscrowd")
        self.dataset = {"annotations": [dict(zip(keys, a, strict=True)) for a in annotations]}


def results(*entries) -> list[dict]:
    keys = ("image_id", "category_id", "bbox", "score")
    return [dict(zip(keys, entry, strict=True)) for entry in entries]


def test_ablation_correlation_of_score_and_iou_by_hand():
    truth = Truth((1, 3, [0, 0, 10, 10], 0), (2, 3, [0, 0, 10, 10], 0), (2, 3, [50, 0, 9, 9], 1))
    found = results(
        (1, 3, [0, 0, 10, 10], 0.9),  # IoU 1
        (1, 3, [0, 0, 10, 5], 0.5),  # 0.5
        (2, 3, [0, 0, 10, 8], 0.6),  # 0.8
        (2, 4, [0, 0, 10, 10], 0.3),  # 0: another class
        (2, 3, [50, 0, 9, 9], 0.2),  # 0: crowds are no objects
    )
    # Ranks of the scores 4 2 3 1 0, of the IoUs 4 2 3 0.5 0.5.
    assert score_iou_correlation(found, truth) == pytest.approx(9.5 / (10 * 9.5) ** 0.5)
    assert score_iou_correlation(found[:1], truth) is None
    assert score_iou_correlation([], truth) is None


# Processes


def test_ablation_child_gives_values_and_reasons(capfd):
    assert in_child(ablation_jobs.give, {"a": [1]}) == Outcome("done", {"a": [1]})
    assert in_child(ablation_jobs.mistake) == Outcome("mistake", "data.path is wrong.")
    assert in_child(ablation_jobs.fail) == Outcome("failed", "memory ran out.")
    assert in_child(ablation_jobs.bug) == Outcome("failed", "IndexError: ours")
    assert "IndexError: ours" in capfd.readouterr().err  # with its traceback
    killed = in_child(ablation_jobs.die, signal.SIGKILL)
    assert killed == Outcome("failed", "its process was ended by SIGKILL (out of memory?)")
    left = in_child(ablation_jobs.leave, 7)
    assert left == Outcome("failed", "its process ended with status 7")


def wait_for(path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path.name} does not come"
        time.sleep(0.05)


def test_ablation_child_saves_when_it_is_stopped(tmp_path):
    begun = (tmp_path / "begun").exists
    outcome = in_child(ablation_jobs.wait_for_the_end, str(tmp_path), stopped=begun)
    assert outcome == Outcome("stopped", "stopped after step 3.")
    assert (tmp_path / "saved").exists()


def test_ablation_child_saves_when_its_parent_is_killed(tmp_path):
    code = (
        f"import sys; sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / 'tests')!r}]\n"
        "import ablation_jobs\n"
        f"if __name__ == '__main__': ablation_jobs.parent_of_a_child({str(tmp_path)!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_for(tmp_path / "begun")
    process.kill()
    process.wait()
    wait_for(tmp_path / "saved")
    assert (tmp_path / "saved").exists()
