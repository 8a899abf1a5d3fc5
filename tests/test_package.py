"""The wheel, away from the checkout."""

import os
import subprocess
import sys
import zipfile

import pytest
from conftest import REPOSITORY


@pytest.mark.slow
def test_an_installed_wheel_trains_predicts_and_exports(tmp_path):
    """Unpacked where nothing else of the checkout is; dependencies come from this environment."""
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "-w", str(tmp_path), str(REPOSITORY)], check=True)
    [wheel] = tmp_path.glob("*.whl")
    place, user = tmp_path / "installed", tmp_path / "user"
    user.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(place)
    environment = {**os.environ, "PYTHONPATH": str(place)}

    def gfl(*arguments):
        code = "import sys; from gfl.cli.main import main; sys.exit(main(sys.argv[1:]))"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=user, env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, (arguments, done.stderr[-3000:])
        return done.stdout

    where = "import gfl; print(gfl.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], cwd=user, env=environment, capture_output=True, text=True
    )
    assert str(place) in found.stdout
    gfl("train", "quickstart", "train.epochs=1", "train.precision=fp32")
    checkpoint = "runs/quickstart/best.pt"
    gfl("predict", checkpoint, "data/shapes/images", "--out", "out", "--html", "--html-limit", "3")
    assert (user / "out" / "predictions.html").exists()
    gfl("export", checkpoint, "--out", "model.onnx")
    assert (user / "model.onnx").stat().st_size > 1e6
    assert "quickstart" not in gfl("config", "quickstart")
    assert "beta: 2.5" in gfl("config", "ablations/beta_2.5")
