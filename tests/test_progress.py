"""Bars on terminals, plain lines elsewhere."""

import io
import sys

import pytest

import gfl.progress
from gfl.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(gfl.progress.time, "monotonic", lambda: now[0])
    return now


def test_a_file_gets_a_plain_line_now_and_then(clock, capsys):
    with Progress(600, "step", done=100) as progress:
        for _ in range(100):
            clock[0] += 1.0
            progress.advance(1, "epoch 2/6", "loss 1.5")
    lines = capsys.readouterr().err
    assert "\r" not in lines and "%" not in lines
    assert lines.splitlines() == [
        "epoch 2/6: step 130 of 600, 1 a second, 0:07:50 left, loss 1.5",
        "epoch 2/6: step 160 of 600, 1 a second, 0:07:20 left, loss 1.5",
        "epoch 2/6: step 190 of 600, 1 a second, 0:06:50 left, loss 1.5",
    ]


def test_a_short_task_says_nothing_in_a_file(clock, capsys):
    with Progress(3, "image") as progress:
        progress.advance(3)
    assert capsys.readouterr() == ("", "")


def test_a_total_that_nobody_knows(clock, capsys):
    with Progress(None, "frame", title="camera 0") as progress:
        clock[0] += 40
        progress.advance(20)
    assert capsys.readouterr().err == "camera 0: frame 20, 0.5 a second\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress(4, "step") as progress:
        progress.advance(4, "epoch 1/1", "loss 2.0")
    assert "\r" in terminal.getvalue() and "4/4" in terminal.getvalue()
    assert "epoch 1/1" in terminal.getvalue() and "loss 2.0" in terminal.getvalue()
