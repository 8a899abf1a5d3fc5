"""The public names carry types that a checker understands."""

import subprocess
import sys

import pytest
from conftest import REPOSITORY

MISTAKES = """
from gfl.predictor import load

detector = load("best.pt", half="yes")
detector.predict("a.jpg")[0].boxs
"""


@pytest.mark.slow
def test_a_users_program_passes_mypy_and_mistakes_do_not(tmp_path):
    pytest.importorskip("mypy")
    wrong = tmp_path / "wrong.py"
    wrong.write_text(MISTAKES)

    def check(file):
        options = ["--follow-imports=silent", "--ignore-missing-imports", "--no-incremental"]
        return subprocess.run(
            [sys.executable, "-m", "mypy", *options, str(file)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )

    good = check(REPOSITORY / "tests" / "typed_usage.py")
    assert good.returncode == 0, good.stdout
    bad = check(wrong)
    assert bad.returncode == 1 and "boxs" in bad.stdout and '"half"' in bad.stdout, bad.stdout
