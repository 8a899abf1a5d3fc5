"""What may import what, how long it takes, and that nothing calls out."""

import ast
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

PACKAGE = REPOSITORY / "gfl"
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))

# Each file imports only from its own floor and those below. A new file gets a line here.
FLOORS = {
    # Values and formulas, with no idea of each other's rooms.
    "__init__.py": 0,
    "ablation/__init__.py": 0,
    "ablation/child.py": 1,
    "ablation/chosen.py": 9,
    "ablation/contestant.py": 7,
    "ablation/cost.py": 0,
    "ablation/findings.py": 2,
    "ablation/measuring.py": 7,
    "ablation/overlay.py": 4,
    "ablation/plot.py": 1,
    "ablation/ranking.py": 2,
    "ablation/report.py": 3,
    "ablation/runs.py": 9,
    "ablation/study.py": 9,
    "ablation/summary.py": 0,
    "ablation/tables.py": 1,
    "analysis/__init__.py": 0,
    "analysis/matching.py": 1,
    "analysis/collect.py": 8,
    "analysis/consistency.py": 2,
    "analysis/coverage.py": 1,
    "analysis/doubt.py": 2,
    "analysis/doubt_sections.py": 4,
    "analysis/edge_blur.py": 1,
    "analysis/gallery.py": 3,
    "analysis/markup.py": 1,
    "analysis/matched.py": 4,
    "analysis/mending.py": 4,
    "analysis/numbers.py": 8,
    "analysis/page.py": 8,
    "analysis/plots.py": 4,
    "analysis/quality.py": 3,
    "analysis/records.py": 2,
    "analysis/run.py": 8,
    "analysis/sections.py": 4,
    "analysis/shapes.py": 1,
    "analysis/summary.py": 2,
    "analysis/svg.py": 1,
    "analysis/temperature.py": 3,
    "analysis/tide.py": 1,
    "cli/analyze.py": 9,
    "files.py": 0,
    "intervals.py": 0,
    "boxes.py": 0,
    "cli/__init__.py": 0,
    "data/__init__.py": 0,
    "data/numbers.py": 0,
    "data/main_memory.py": 0,
    "data/overlap.py": 0,
    "distributed.py": 0,
    "engine/__init__.py": 0,
    "errors.py": 0,
    "interop/__init__.py": 0,
    "models/__init__.py": 0,
    "detections.py": 0,
    "drawing.py": 0,
    "plots.py": 4,
    "progress.py": 0,
    "tta.py": 6,
    "sample.py": 0,
    "sample_shapes.py": 0,
    "quality.py": 0,
    "structures.py": 0,
    "tensors.py": 0,
    # Parts that stand alone.
    "cli/command.py": 1,
    "cli/imports.py": 0,
    "data/clean_boxes.py": 1,
    "data/coco_json.py": 1,
    "data/coco_layout.py": 1,
    "data/coverage.py": 1,
    "data/fitting.py": 2,
    "data/layout.py": 1,
    "data/dataset.py": 1,
    "data/coco_classes.py": 1,
    "data/findings.py": 1,
    "data/coco_truth.py": 0,
    "data/flip.py": 0,
    "data/freed_memory.py": 0,
    "data/jpeg_header.py": 0,
    "data/image.py": 1,
    "data/image_facts.py": 1,
    "data/linear_resize.py": 0,
    "data/listing.py": 1,
    "data/locate.py": 1,
    "data/masks.py": 1,
    "data/repeat_factor.py": 0,
    "data/native_batch.py": 1,
    "data/own_dataset.py": 1,
    "data/picture_cache.py": 1,
    "data/sampler.py": 1,
    "data/shared_memory.py": 1,
    "engine/curves.py": 1,
    "data/split.py": 1,
    "data/stand_ins.py": 1,
    "data/usable_images.py": 1,
    "data/voc.py": 1,
    "data/yolo.py": 1,
    "engine/box_evaluation.py": 1,
    "engine/box_matching.py": 0,
    "engine/early_stop.py": 0,
    "engine/ema.py": 1,
    "engine/budget.py": 0,
    "engine/footprint.py": 0,
    "engine/free_memory.py": 0,
    "engine/finite.py": 1,
    "engine/diagnosis.py": 1,
    "engine/optim.py": 1,
    "engine/loading.py": 0,
    "engine/options.py": 1,
    "engine/precision.py": 1,
    "engine/rate_range.py": 0,
    "engine/run_log.py": 1,
    "engine/stop.py": 1,
    "grid.py": 1,
    "html_page.py": 1,
    "interop/mmdet.py": 1,
    "interop/public_file.py": 2,
    "interop/safe_pickle.py": 1,
    "models/deformable.py": 0,
    "models/frozen_norm.py": 0,
    "models/recompute.py": 1,
    "models/res2net.py": 0,
    "losses/functional.py": 1,
    "models/backbone.py": 1,
    "models/feature_networks.py": 1,
    "models/conv_blocks.py": 0,
    "models/few_gradients.py": 0,
    "models/pafpn.py": 1,
    "models/published_weights.py": 0,
    "models/folding.py": 3,
    "models/head.py": 1,
    "models/narrow_resnet.py": 0,
    "models/neck.py": 1,
    "models/quality.py": 1,
    "models/trainable.py": 1,
    "schema/__init__.py": 1,
    "schema/automatic.py": 0,
    "schema/data.py": 1,
    "schema/distill.py": 1,
    "schema/model.py": 1,
    "schema/section.py": 1,
    "schema/train.py": 1,
    "yaml_text.py": 1,
    # Parts made of those.
    "assigner/__init__.py": 4,
    "assigner/atss.py": 3,
    "assigner/claims.py": 2,
    "assigner/cost.py": 3,
    "assigner/crowd.py": 1,
    "assigner/dense.py": 2,
    "assigner/fcos.py": 3,
    "assigner/retinanet.py": 3,
    "assigner/simota.py": 4,
    "assigner/tal.py": 4,
    "config.py": 2,
    "config_reference.py": 4,
    "data/augment.py": 3,
    "data/batch.py": 2,
    "data/copy_paste.py": 3,
    "data/mixup.py": 2,
    "data/mosaic.py": 3,
    "data/random_crop.py": 2,
    "data/scale_jitter.py": 3,
    "data/static_shapes.py": 3,
    "data/tile_layout.py": 0,
    "data/tiles.py": 3,
    "data/transforms.py": 2,
    "data/window.py": 2,
    "engine/checkpoint.py": 2,
    "engine/keeper.py": 2,
    "engine/memory.py": 2,
    "losses/__init__.py": 2,
    "losses/criterion.py": 2,
    "losses/distillation.py": 3,
    "models/box_representation.py": 2,
    "models/detector.py": 2,
    "models/feature_backbone.py": 2,
    # What works on batches and predictions.
    "data/loader.py": 3,
    "engine/evaluate.py": 3,
    "engine/bad_batch.py": 3,
    "engine/compiled.py": 1,
    "engine/compiled_inference.py": 2,
    "engine/monitor.py": 3,
    "engine/train.py": 3,
    "postprocess.py": 3,
    "visualize.py": 3,
    "sources.py": 3,
    "tiling.py": 4,
    # What knows the config and every part, whole runs, and commands.
    "build/__init__.py": 5,
    "build/augment.py": 4,
    "automatic.py": 7,
    "build/data.py": 4,
    "build/loaders.py": 4,
    "build/model.py": 4,
    "build/shapes.py": 4,
    "build/tiles.py": 4,
    "build/train.py": 5,
    "work_dir.py": 4,
    "interop/recognise.py": 3,
    "predicting.py": 4,
    "interop/agreement.py": 4,
    "interop/export_forms.py": 4,
    "interop/export_metadata.py": 8,
    "interop/exported.py": 4,
    "interop/onnx_file.py": 6,
    "interop/onnx_network.py": 5,
    "conversion.py": 6,
    "evaluation.py": 7,
    "initialise.py": 7,
    "exporting.py": 8,
    "predictor.py": 7,
    "training.py": 8,
    "cli/ablate.py": 9,
    "benchmark/__init__.py": 0,
    "benchmark/coco_sample.py": 0,
    "benchmark/coco_speed.py": 8,
    "benchmark/inference.py": 9,
    "benchmark/light.py": 9,
    "benchmark/memory.py": 9,
    "benchmark/memory_program.py": 9,
    "benchmark/onnx_latency.py": 8,
    "benchmark/options.py": 9,
    "benchmark/peer.py": 8,
    "benchmark/peer_program.py": 0,
    "benchmark/pipeline.py": 8,
    "benchmark/record.py": 0,
    "benchmark/run.py": 9,
    "benchmark/scaling.py": 9,
    "benchmark/scaling_plan.py": 7,
    "benchmark/scaling_program.py": 9,
    "benchmark/setting.py": 7,
    "benchmark/start.py": 8,
    "benchmark/subjects.py": 8,
    "benchmark/table.py": 1,
    "benchmark/timing.py": 1,
    "benchmark/traffic.py": 0,
    "benchmark/training_step.py": 9,
    "cli/benchmark.py": 9,
    "cli/config.py": 9,
    "cli/convert.py": 9,
    "cli/lr_test.py": 9,
    "cli/main.py": 9,
    "__main__.py": 9,
    "cli/predict.py": 9,
    "cli/sample.py": 9,
    "cli/export.py": 9,
    "cli/test.py": 9,
    "cli/train.py": 9,
    "opening.py": 6,
    "teacher.py": 7,
    "rate_test.py": 8,
    "resuming.py": 5,
    "seeding.py": 0,
    "versions.py": 1,
    "validation.py": 7,
    "cli/env.py": 9,
    "data_check.py": 8,
    "cli/check_data.py": 9,
}

COMMANDS = [
    "train",
    "test",
    "convert",
    "predict",
    "env",
    "check_data",
    "export",
    "ablate",
    "benchmark",
    "analyze",
    "lr_test",
]

# Lines of a file with docstrings. No file needs an exception today.
LONGEST = 300


def is_type_checking(node: ast.AST) -> bool:
    """Whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imported_names(tree: ast.AST) -> set[str]:
    """Absolute dotted names a file imports, anywhere but under `if TYPE_CHECKING:`."""
    names = set()
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if is_type_checking(node):
            waiting += node.orelse
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the package imports by absolute names"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return names


def file_of(name: str) -> str | None:
    """The file under gfl/ that a dotted name is, or lies in; None for other packages."""
    first, *rest = name.split(".")
    if first != "gfl":
        return None
    while rest:
        for path in ("/".join(rest) + ".py", "/".join(rest) + "/__init__.py"):
            if path in FILES:
                return path
        rest.pop()
    return "__init__.py"


@functools.cache
def imports() -> dict[str, set[str]]:
    """For each file under gfl/, the files under gfl/ that it imports."""
    found = {}
    for file in FILES:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        found[file] = {file_of(name) for name in imported_names(tree)} - {None, file}
    return found


def all_below(file: str, graph: dict[str, set[str]]) -> set[str]:
    """What a file imports, directly or through others."""
    found, waiting = set(), [file]
    while waiting:
        for other in graph[waiting.pop()] - found:
            found.add(other)
            waiting.append(other)
    return found


def run(code: str, *flags: str, **env: str) -> str:
    """The stdout of code in a fresh interpreter, in a checkout."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **env}
    environment.pop("NO_ALBUMENTATIONS_UPDATE", None)
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


# Floors


def test_parser_sees_what_it_should():
    tree = ast.parse(
        "import gfl.boxes\nfrom gfl import build, train\nfrom gfl.data.batch import collate\n"
        "if TYPE_CHECKING:\n    from gfl.grid import make_grid\nelse:\n    import gfl.errors\n"
        "def f():\n    from gfl.models import neck\n    import torch\n"
    )
    assert {file_of(name) for name in imported_names(tree)} == {
        "boxes.py",
        "build/__init__.py",
        "__init__.py",
        "data/batch.py",
        "errors.py",
        "models/neck.py",
        None,
    }


def test_every_file_has_a_floor():
    assert sorted(FLOORS) == FILES


@pytest.mark.parametrize("file", FILES)
def test_imports_point_down(file):
    upward = {
        other: FLOORS[other] for other in imports()[file] if FLOORS[other] > FLOORS.get(file, 0)
    }
    assert upward == {}


def test_no_import_cycle():
    graph = imports()
    assert [file for file in FILES if file in all_below(file, graph)] == []


@pytest.mark.parametrize(
    ("room", "forbidden"),
    [
        ("engine/", ("models/", "losses/", "config.py", "schema/", "build/", "postprocess.py")),
        ("models/", ("data/", "engine/", "config.py", "schema/", "build/")),
        ("losses/", ("models/", "data/", "engine/", "config.py", "schema/", "build/")),
        ("data/", ("models/", "losses/", "engine/", "config.py", "schema/", "build/")),
    ],
)
def test_rooms_do_not_know_each_other(room, forbidden):
    graph = imports()
    files = [file for file in FILES if file.startswith(room)]
    assert len(files) > 2
    found = {
        file: sorted(o for o in all_below(file, graph) if o.startswith(forbidden)) for file in files
    }
    assert {file: others for file, others in found.items() if others} == {}


def test_only_runs_and_build_see_a_config():
    graph = imports()
    users = {file for file in FILES if graph[file] & {"config.py", "schema/__init__.py"}}
    assert "build/model.py" in users
    assert min(FLOORS[file] for file in users - {"config.py"}) >= FLOORS["build/model.py"]


# Speed


def test_import_is_cheap():
    code = (
        "import time; start = time.perf_counter(); import gfl\n"
        "took = time.perf_counter() - start\n"
        "import json, sys\n"
        "print(json.dumps([took, gfl.__file__, sorted(sys.modules)]))"
    )
    found = [json.loads(run(code)) for _ in range(3)]
    _, file, modules = found[0]
    assert Path(file).parent == PACKAGE
    assert {"torch", "numpy", "pydantic", "yaml", "cv2"} & set(modules) == set()
    assert min(took for took, _, _ in found) < 0.3


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick(command):
    code = (
        "import time; start = time.perf_counter()\n"
        "import contextlib, io, json, runpy, sys\n"
        f"sys.argv = ['tools/{command}.py', '-h']\n"
        "text, status = io.StringIO(), None\n"
        "with contextlib.redirect_stdout(text):\n"
        "    try:\n"
        f"        runpy.run_path('tools/{command}.py', run_name='__main__')\n"
        "    except SystemExit as end:\n"
        "        status = end.code\n"
        "took = time.perf_counter() - start\n"
        "print(json.dumps([took, status, text.getvalue(), sorted(sys.modules)]))"
    )
    found = [json.loads(run(code)) for _ in range(3)]
    _, status, text, modules = found[0]
    assert status == 0
    assert text.startswith(f"usage: {command}")
    assert {"torch", "numpy", "pydantic"} & set(modules) == set()
    assert min(took for took, *_ in found) < 1.0


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c not in ("env", "benchmark")]
)  # these two need no argument
def test_script_itself_ends_with_the_status_of_its_command(command):
    path = REPOSITORY / "tools" / f"{command}.py"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    statuses = [
        subprocess.run([sys.executable, path, *args], capture_output=True, env=environment)
        for args in (["-h"], [])
    ]
    assert [done.returncode for done in statuses] == [0, 2]
    assert b"usage:" in statuses[0].stdout
    assert b"required" in statuses[1].stderr


def test_the_package_is_a_command_too():
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "gfl"]
    version = subprocess.run([*command, "--version"], capture_output=True, env=environment)
    assert version.returncode == 0 and version.stdout.startswith(b"gfl ")
    wrong = subprocess.run([*command, "trian"], capture_output=True, env=environment)
    assert wrong.returncode == 2 and b"did you mean 'train'" in wrong.stderr


# What a training needs is torch (whose optimisers import torch._dynamo and with it sympy),
# torchvision, OpenCV, Pillow, pycocotools, pydantic and PyYAML. Nothing of these:
NEEDLESS = (
    "IPython albumentations huggingface_hub matplotlib onnx onnx_ir onnxruntime onnxscript pandas "
    "scipy sklearn tensorboard timm trio"
).split()


def test_start_of_a_training_imports_nothing_needless():
    code = (
        "import json, sys\n"
        "import gfl.training\n"
        "from gfl import build\n"
        "from gfl.config import load_config\n"
        "config = load_config('quickstart', ['train.precision=bf16'])\n"
        "device = sys.modules['torch'].device('cpu')\n"
        "build.build_state(config, 3, 1, device, load_pretrained=False)\n"
        "build.build_criterion(config)\n"
        "print(json.dumps(sorted(sys.modules)))"
    )
    modules = json.loads(run(code))
    assert {"torch", "torchvision", "gfl.models.head"} <= set(modules)
    assert set(NEEDLESS) & set(modules) == set()


def test_collector_rests_while_a_command_imports():
    # The first to be registered is the last to run.
    code = (
        "import atexit, gc, sys, types\n"
        "atexit.register(lambda: print(gc.get_freeze_count()))\n"
        "from gfl.cli.imports import imports_uncollected\n"
        "with imports_uncollected():\n"
        "    print(gc.isenabled(), gc.get_freeze_count())\n"
        "print(gc.isenabled(), gc.get_freeze_count() > 1000)\n"
    )
    assert run(code).split() == ["False", "0", "True", "True", "0"]


def test_collector_is_left_alone_in_a_process_that_has_torch_or_runs_without_it():
    code = (
        "import gc, sys, types\n"
        "from gfl.cli.imports import imports_uncollected\n"
        "def look():\n"
        "    with imports_uncollected():\n"
        "        inside = gc.isenabled()\n"
        "    print(inside, gc.isenabled(), gc.get_freeze_count())\n"
        "gc.disable()\n"
        "look()\n"
        "gc.enable()\n"
        "sys.modules['torch'] = types.ModuleType('torch')\n"
        "look()\n"
    )
    assert run(code).splitlines() == ["False False 0", "True True 0"]


# Network


def test_data_opens_no_connection():
    # albumentations asks PyPI for its newest version when imported, unless told not to.
    code = (
        "import socket\n"
        "asked = []\n"
        "def refuse(*args, **kwargs):\n"
        "    asked.append(repr(args))\n"
        "    raise OSError('no network in this test')\n"
        "socket.socket.connect = socket.socket.connect_ex = refuse\n"
        "socket.getaddrinfo = socket.create_connection = refuse\n"
        "import json, sys\n"
        "from gfl.data.transforms import Transform\n"
        "Transform(64, flip_horizontal=0.5)\n"
        "asked += ['imported for nothing'] * ('albumentations' in sys.modules)\n"
        "Transform(64, color=0.5)\n"
        "print(json.dumps([asked, 'albumentations' in sys.modules]))"
    )
    assert json.loads(run(code)) == [[], True]


# Files


@pytest.mark.parametrize("file", FILES)
def test_file_is_not_long(file):
    count = len((PACKAGE / file).read_text(encoding="utf-8").splitlines())
    assert count <= LONGEST


def test_no_file_is_a_drawer():
    drawers = {"misc", "util", "utils", "common", "helper", "helpers"}
    names = {part.removesuffix(".py") for file in FILES for part in file.split("/")}
    assert names & drawers == set()
