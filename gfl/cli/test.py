"""COCO evaluation of a checkpoint: the 12 numbers and AP by class."""

import argparse
import sys

from gfl.cli.command import is_first_process, require_folder, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`test CHECKPOINT [key=value ...]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="test", description=__doc__)
    parser.add_argument("checkpoint", help="best.pt, last.pt or a public .pth")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.path=FOLDER"
    )
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--results", metavar="FILE", help="write COCO results, original ids")
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: test(args))


def test(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    require_folder(args.results, args.json)
    from gfl.evaluation import evaluate

    def say(message: str) -> None:
        print(message, file=sys.stderr)

    metrics, results = evaluate(args.checkpoint, args.overrides, args.split, say=say)
    write_json(args.results, results)
    write_json(args.json, metrics)
    if is_first_process():
        for name, value in metrics.items():
            if name != "per_class":
                print(f"{name:8s}{value:.4f}")
        for name, value in metrics["per_class"].items():
            print(f"AP of {name}: " + ("n/a (no objects)" if value is None else f"{value:.4f}"))
