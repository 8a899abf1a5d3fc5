"""Train a detector from a config."""

import argparse
from pathlib import Path

from gfl.cli.command import is_first_process, require_writable, run, write_json
from gfl.cli.imports import imports_uncollected
from gfl.files import is_class_map


def main(argv: list[str] | None = None) -> int:
    """`train CONFIG [key=value ...]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="train", description=__doc__)
    parser.add_argument("config", help="YAML file, or a shipped name such as gfl_r50_fpn_1x")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.epochs=3 data.path=FOLDER"
    )
    parser.add_argument(
        "--work-dir",
        help="checkpoints and logs; default runs/CONFIG'S NAME, for the config.yaml of an earlier "
        "training that training's own",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from last.pt, if there is one: `gfl train runs/NAME/config.yaml --resume`",
    )
    parser.add_argument("--json", metavar="FILE", help="write the final numbers as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: train(args))


def train(args: argparse.Namespace) -> None:
    """Load the config, train, print the outcome."""
    require_writable(args.json, sources=[args.config], plain=False)
    from gfl.config import load_config

    config = load_config(args.config, args.overrides)
    config.data.spare(args.json)
    work_dir = args.work_dir or _default_work_dir(Path(args.config))

    with imports_uncollected():
        from gfl.training import train as run_training

    outcome = run_training(config, work_dir=work_dir, resume=args.resume)
    write_json(args.json, outcome)
    if is_first_process() and outcome["best"]:
        best = outcome["best"]
        kind = f"epoch {best['epoch']}, {outcome['weights']} weights"
        print(f"best AP {best['AP']:.4f} on val ({kind}): {work_dir}/best.pt")


def _default_work_dir(config: Path) -> Path:
    """runs/NAME; the folder that a training has written its config.yaml to, beside its classes."""
    if config.name == "config.yaml" and is_class_map(config.parent / "class_map.json"):
        return config.parent
    return Path("runs") / config.stem
