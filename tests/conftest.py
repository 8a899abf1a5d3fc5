"""Fixtures and builders that several test files use."""

import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

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
