"""Fixtures and builders that several test files use."""

import ctypes
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import tiny_config, write_coco

from gfl.build import build_model
from gfl.engine.checkpoint import save_checkpoint

REPOSITORY = Path(__file__).resolve().parent.parent
# What is remembered of image files goes to a folder of this test run, not to the user's.
_CACHE = tempfile.TemporaryDirectory()
os.environ["GFL_CACHE"] = _CACHE.name
# Another folder of the same format can be tried by this variable.
REFERENCE = Path(os.environ.get("GFL_REFERENCE", REPOSITORY / "tests" / "reference"))


def reference(name: str) -> dict[str, np.ndarray]:
    """All arrays of a reference file."""
    with np.load(REFERENCE / name, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def tensor(array: np.ndarray, grad: bool = False) -> torch.Tensor:
    """A torch copy of a reference array."""
    return torch.from_numpy(np.array(array)).requires_grad_(grad)


def assert_close(got, want, rtol: float = 1e-5, atol: float = 1e-6) -> None:
    """Element by element, at the tolerance that the reference's README gives for parts."""
    got = got.detach().numpy() if isinstance(got, torch.Tensor) else np.asarray(got)
    np.testing.assert_allclose(got, np.asarray(want), rtol=rtol, atol=atol)


def pytest_configure(config):
    """Test processes beside each other compute on one thread each, what they start too."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("data"), {"val": 6}, size=(90, 128))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, folder):
    """An untrained network whose scores are high enough to detect something everywhere."""
    config = tiny_config(folder)
    torch.manual_seed(1)
    model = build_model(config, 2)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
    torch.nn.init.normal_(model.head.cls_out.weight, std=0.5)
    torch.nn.init.normal_(model.head.box_out.weight, std=0.5)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    class_map = {"names": ["square", "disc"], "category_ids": [3, 7]}
    content = {"model": model.state_dict(), "weights": "raw", "class_map": class_map}
    save_checkpoint(path, {**content, "config": config.to_dict(), "step": 1, "epoch": 1})
    return path


@pytest.fixture
def pictures(folder, tmp_path):
    """Three pictures, one in a folder below, one that is broken, one that is no picture."""
    place = tmp_path / "pictures"
    (place / "below").mkdir(parents=True)
    files = sorted((folder / "images").iterdir())
    for target, file in zip(("a.png", "b.png", "below/a.png"), files, strict=False):
        (place / target).write_bytes(file.read_bytes())
    (place / "broken.jpg").write_bytes(b"no picture")
    (place / "notes.txt").write_text("mine")
    return place


@pytest.fixture
def browser():
    webdriver = pytest.importorskip("selenium.webdriver")
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with its chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def obeys_permissions():
    """Root is let in everywhere by two capabilities; without them it is like any other owner."""
    if getattr(os, "geteuid", lambda: 1)() != 0:
        yield
        return
    libc, header = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0)
    sets = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, sets) == 0
    effective = sets[0]
    sets[0] &= ~0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    assert libc.capset(header, sets) == 0
    yield
    sets[0] = effective
    assert libc.capset(header, sets) == 0
