"""The message about a slow loader."""

import time

import pytest
from builders import tiny_config, write_coco

import gfl
from gfl.engine import loading
from gfl.engine.loading import SKIPPED, WAITING_SHARE, WINDOW, LoaderWatch


def said(watch: LoaderWatch, count: int, data_seconds: float, step_seconds: float) -> list[str]:
    steps = (watch.step(data_seconds, step_seconds) for _ in range(count))
    return [message for message in steps if message]


def test_a_slow_loader_is_said_once_with_what_to_change(monkeypatch):
    monkeypatch.setattr(loading, "usable_cpus", lambda: 8)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    watch = LoaderWatch(workers=2)
    assert said(watch, SKIPPED + WINDOW - 1, 0.3, 1.0) == []
    [message] = said(watch, 1, 0.3, 1.0)
    assert "30% of their time" in message
    assert "data.workers is 2, of 8 CPUs for this process: raise it" in message
    assert "data.cache" in message
    assert said(watch, 10 * WINDOW, 0.9, 1.0) == []


def test_a_fast_loader_is_not_spoken_of():
    watch = LoaderWatch(workers=2)
    assert said(watch, SKIPPED, 60.0, 61.0) == []  # the start is slow
    assert said(watch, 5 * WINDOW, WAITING_SHARE, 1.0) == []


def test_a_loader_that_becomes_slow_later_is_found():
    watch = LoaderWatch(workers=2)
    assert said(watch, SKIPPED + WINDOW, 0.0, 1.0) == []
    assert len(said(watch, WINDOW, 0.5, 1.0)) == 1


def test_as_many_workers_as_cpus_are_enough(monkeypatch):
    monkeypatch.setattr(loading, "usable_cpus", lambda: 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    [message] = said(LoaderWatch(workers=2), SKIPPED + WINDOW, 0.5, 1.0)
    assert "of 2 CPUs for this process: more of them would not help" in message


@pytest.mark.parametrize("slow", [True, False])
def test_a_training_looks_at_its_own_loader(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(loading, "SKIPPED", 1)
    monkeypatch.setattr(loading, "WINDOW", 3)
    monkeypatch.setattr(loading, "WAITING_SHARE", 0.1 if slow else 0.9)  # the machine may be busy
    folder = write_coco(tmp_path / "set", {"train": 8, "val": 1})
    if slow:
        from gfl.data.transforms import Transform

        real = Transform.__call__

        def dawdles(self, sample, key):
            time.sleep(0.2)
            return real(self, sample, key)

        monkeypatch.setattr(Transform, "__call__", dawdles)
    gfl.train(tiny_config(folder, eval_epochs=2), work_dir=tmp_path / "run")
    text = (tmp_path / "run" / "log.txt").read_text()
    assert text.count("loading is the bottleneck") == int(slow)
