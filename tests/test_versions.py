"""The commit that a run was made with."""

import subprocess

import pytest

from gfl.versions import revision


def git(folder, *command):
    identity = ("-c", "user.name=n", "-c", "user.email=e@x")
    subprocess.run(["git", "-C", folder, *identity, *command], check=True, capture_output=True)


def test_a_checkout_names_its_commit_and_whether_it_was_changed(tmp_path):
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "a name that is not wanted")
    done = subprocess.run(
        ["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True
    )
    assert revision(tmp_path) == done.stdout.strip() and len(done.stdout.strip()) == 40
    (tmp_path / "mine.yaml").write_text("1\n")
    assert revision(tmp_path) == done.stdout.strip()
    (tmp_path / "a.py").write_text("2\n")
    assert revision(tmp_path) == done.stdout.strip() + "-dirty"
    git(tmp_path, "checkout", "-q", "a.py")
    (tmp_path / "gfl").mkdir()
    (tmp_path / "gfl" / "new.py").touch()
    assert revision(tmp_path) == done.stdout.strip() + "-dirty"
    # A package installed below a checkout of something else says nothing.
    (tmp_path / "site-packages").mkdir()
    assert revision(tmp_path / "site-packages") is None


@pytest.mark.parametrize("error", [FileNotFoundError, subprocess.TimeoutExpired("git", 10)])
def test_without_git_nothing_is_said(error, tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    assert revision(tmp_path) is None

    def refuse(*args, **kwargs):
        raise error

    monkeypatch.setattr(subprocess, "run", refuse)
    assert revision(tmp_path) is None
