"""What a run is made with: versions, and the state of the source code."""

import platform
import subprocess
from pathlib import Path

import torch
import torchvision

import gfl

ROOT = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str | None]:
    """What checkpoints say about the software that wrote them."""
    return {
        "gfl": gfl.__version__,
        "revision": revision(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "python": platform.python_version(),
    }


def revision(root: Path = ROOT) -> str | None:
    """The commit of a checkout, with "-dirty" behind it where Python files differ from that or are
    new; None for an installed package, and where git is missing."""
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    is_dirty = bool(_git(root, "status", "--porcelain", "--", "*.py"))
    return commit and commit + "-dirty" * is_dirty


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints, without locking or writing anything; None if there is none or it fails."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
