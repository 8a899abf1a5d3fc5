"""How long a user waits: for help, for imports, for the first training step."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gfl.benchmark.record import Record, Spread, record
from gfl.benchmark.setting import Setting
from gfl.sample import make_shapes

FIGURE = "start"
# Seconds from the end of third-party imports to the end of the first step.
GOAL = 3.0
ROOT = Path(__file__).resolve().parents[2]
THIRD_PARTY = (
    "numpy, cv2, PIL.Image, yaml, pydantic, torch, torchvision, torch.utils.data, "
    "torch.utils.tensorboard, torch.nn.parallel, pycocotools.coco, "
    "pycocotools.cocoeval, tqdm"
)
_HELP = "from gfl.cli.main import main; raise SystemExit(main(['train', '-h']))"
# As the commands import; the end of such a process, about a second, belongs to no start.
_IMPORTS = f"""
import os
from gfl.cli.imports import imports_uncollected
with imports_uncollected():
    import {THIRD_PARTY}
os._exit(0)
"""
_FIRST_STEP = f"""
import time
started = time.perf_counter()
from gfl.cli.imports import imports_uncollected
with imports_uncollected():
    import {THIRD_PARTY}
if __name__ == "__main__":
    imported = time.perf_counter()
    import sys
    import gfl.engine.train as loop
    train_step = loop.train_step
    def first_step(*args):
        outcome = train_step(*args)
        float(outcome[1])
        print("first-step", time.perf_counter() - imported, imported - started, flush=True)
        raise KeyboardInterrupt
    loop.train_step = first_step
    import gfl
    from gfl.config import load_config
    try:
        gfl.train(load_config("quickstart", sys.argv[1:]), work_dir="run")
    except KeyboardInterrupt:
        pass
"""


def start(setting: Setting) -> list[Record]:
    """Seconds of whole processes, in turn: `gfl train -h`, a bare interpreter, imports, a start.

    A start is `gfl train quickstart` in an empty folder where the sample is drawn: every check of
    the data, the check of bf16, the first pictures, until the first step is done. What comes
    before the end of third-party imports is a row of its own.
    """
    with tempfile.TemporaryDirectory() as folder:
        make_shapes(Path(folder) / "data" / "shapes", setting.num_pictures, 8, seed=0)
        seconds: dict[str, list[float]] = {
            name: [] for name in ("python", "help", "imports", "first step")
        }
        warmup = min(setting.warmup, 1)  # fills the caches of files
        for turn in range(warmup + setting.processes):
            took = {
                "python": _process(folder, "pass"),
                "help": _process(folder, _HELP),
                "imports": _process(folder, _IMPORTS),
                "first step": _first_step(folder, turn, setting.device),
            }
            for name, value in took.items():
                if turn >= warmup:
                    seconds[name].append(value)
    spreads = {name: Spread.of(values) for name, values in seconds.items()}
    return [
        record(FIGURE, "gfl train -h", "s", spreads["help"], spreads["python"], "python alone"),
        record(FIGURE, "import of third-party packages", "s", spreads["imports"]),
        record(
            FIGURE,
            "from there to the first step of quickstart",
            "s",
            spreads["first step"],
            goal=GOAL,
            note="a new work directory, image files not yet known",
        ),
    ]


def environment_of_child() -> dict[str, str]:
    """For processes that import this very gfl."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def _process(folder: str, code: str) -> float:
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment_of_child(),
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - started


def _first_step(folder: str, turn: int, device: str) -> float:
    place = Path(folder) / f"turn{turn}"
    place.mkdir()
    program = place / "first_step.py"
    program.write_text(_FIRST_STEP)
    data = Path(folder) / "data" / "shapes"
    overrides = [f"data.path={json.dumps(str(data))}", "data.draw_sample=true", f"device={device}"]
    done = subprocess.run(
        [sys.executable, str(program), *overrides],
        cwd=place,
        env={**environment_of_child(), "GFL_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
    )
    for line in done.stdout.splitlines():
        if line.startswith("first-step "):
            return float(line.split()[1])
    raise RuntimeError(f"the quickstart did not start:\n{done.stderr}")
