"""Weak scaling: bytes of two real processes, and the plan's arithmetic by hand."""

import json
import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from gfl.benchmark.run import FIGURES, ON_REQUEST
from gfl.benchmark.scaling import scaling
from gfl.benchmark.scaling_plan import (
    Payload,
    efficiency,
    exchange_seconds,
    payload,
    plan,
    ring_bytes,
)
from gfl.benchmark.setting import Setting, setting
from gfl.benchmark.traffic import CollectiveTraffic
from gfl.cli.benchmark import main
from gfl.distributed import data_parallel
from gfl.errors import UserError


@pytest.fixture
def one_process_group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# Bytes


def test_every_collective_is_seen_by_hand(one_process_group):
    network = DistributedDataParallel(nn.Linear(3, 2))
    for _ in range(2):
        network(torch.ones(4, 3)).sum().backward()
    with CollectiveTraffic() as traffic:
        network(torch.ones(4, 3)).sum().backward()  # 6 weights and 2 biases
        dist.all_reduce(torch.ones(5))
        dist.broadcast(torch.ones(3, dtype=torch.int64), src=0)
    assert traffic.bytes == {"allreduce_": 4 * 8 + 4 * 5, "broadcast_": 8 * 3}
    assert traffic.calls == {"allreduce_": 2, "broadcast_": 1}


def test_a_model_alone_has_nothing_around_it(one_process_group):
    model = nn.Linear(3, 2)
    assert data_parallel(model, torch.device("cpu")) is model


@pytest.mark.slow
def test_two_processes_exchange_what_is_expected_and_nothing_else():
    """Gradients, two normalisers, and the losses of a logged step: a new collective shows here."""
    tiny = Setting(size=(64, 64), batch=1, backbone="resnet18", repeats=1, warmup=0)
    alone, together, hidden, traffic = scaling(tiny)
    assert [row.unit for row in (alone, together, hidden)] == ["ms"] * 3
    assert together.limit == alone.median and hidden.median == together.median
    # Both processes have counted; each of the two steps sends some 19 million gradients.
    assert traffic.repeats == 2 and traffic.low == traffic.high
    assert traffic.median == traffic.limit
    assert traffic.median > 2 * 4 * 15e6
    assert "broadcast" not in traffic.note and "allreduce_" in traffic.note


def test_the_figure_is_measured_on_request():
    assert "scaling" in ON_REQUEST and set(ON_REQUEST) < set(FIGURES)


def test_a_setting_comes_back_from_json():
    given = setting("cpu", size=(64, 96))
    plain = {**vars(given), "size": [64, 96], "short_sides": [[800, 1333], [320, 533]]}
    assert Setting.from_plain(plain | {"batches": [1, 4]}) == given


# The plan


def test_ring_by_hand():
    assert ring_bytes(100, 1) == 0
    assert ring_bytes(100, 2) == 100  # one half there, one half back
    assert ring_bytes(100, 4) == 150
    assert exchange_seconds(4e9, 4, 12.0) == pytest.approx(0.5)


def test_efficiency_by_hand():
    assert efficiency(0.2, 0.0) == 1
    assert efficiency(0.2, 0.1, overlap=0.5) == 1  # just hidden
    assert efficiency(0.2, 0.3, overlap=0.5) == pytest.approx(0.5)  # 0.2 s are not
    assert efficiency(0.2, 0.3, overlap=0.0) == pytest.approx(0.4)
    assert efficiency(0.2, 0.4, overlap=1.0) == pytest.approx(0.2 / max(0.2, 0.4))


def test_payload_counts_what_is_trained():
    found = payload("gfl_n", 3)
    whole = payload("gfl_r50_fpn_1x")
    assert found.trainable == found.parameters and found.step_bytes == 4 * found.trainable + 8
    # Stem and first stage are frozen: 64 x 3 x 7 x 7 and two vectors of 64 in the stem alone.
    assert whole.parameters - whole.trainable == 225_344


def test_plan_prints_bytes_and_with_a_time_the_efficiency(monkeypatch, capsys, tmp_path):
    made = Payload("x", 10, 25_000_000 - 2)
    monkeypatch.setattr("gfl.benchmark.scaling_plan.payload", lambda config: made)
    assert main(["--plan", "x", "--step-ms", "100", "--gbytes", "1", "--overlap", "0"]) == 0
    head, row, _, title, gpus, sent, times, shares = capsys.readouterr().out.splitlines()
    assert row.split() == ["x", "10", "24,999,998", "100.00"]
    assert gpus.split() == ["GPUs", "1", "2", "4", "8", "16", "32", "64"]
    assert sent.split()[-7:] == ["0.0", "100.0", "150.0", "175.0", "187.5", "193.8", "196.9"]
    assert times.split()[-7:-4] == ["0.00", "100.00", "150.00"]
    assert shares.split()[-7:-4] == ["1.000", "0.500", "0.400"]
    assert main(["--plan", "x", "--step-ms", "100", "--json", str(tmp_path / "plan.json")]) == 0
    [written] = json.loads((tmp_path / "plan.json").read_text())["configs"]
    assert written["step_bytes"] == 100_000_000 and written["sent_bytes"][:2] == [0, 100_000_000]
    assert written["links"]["100 Gbit/s"]["exchange_seconds"][1] == pytest.approx(0.008)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"step_seconds": 0.0}, "--step-ms"),
        ({"step_seconds": math.nan}, "--step-ms"),
        ({"overlap": 1.5}, "--overlap"),
        ({"links": {"x": 0.0}}, "--gbytes"),
    ],
)
def test_plans_that_can_not_be(values, message):
    with pytest.raises(UserError, match=message):
        plan(["gfl_n"], **values)


def test_options_of_the_plan_need_it(capsys):
    assert main(["--gbytes", "3"]) == 2
    assert "--plan" in capsys.readouterr().err
    assert main(["--plan", "x", "--gbytes", "3"]) == 2
    assert "add --step-ms" in capsys.readouterr().err
