"""COCO evaluation of a checkpoint: the 12 numbers and AP by class."""

import argparse
import sys

from gfl.cli.command import is_first_process, require_writable, run, write_json
from gfl.cli.imports import imports_uncollected


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
    parser.add_argument("--plots", metavar="DIR", help="write curves and confusion as PNG files")
    parser.add_argument("--flip", action="store_true", help="look at mirrored images too")
    parser.add_argument(
        "--scales",
        nargs="+",
        type=int,
        default=[],
        metavar="PX",
        help="more short sides to look at",
    )
    args = parser.parse_intermixed_args(argv)
    return run(lambda: test(args), "evaluation")


def test(args: argparse.Namespace) -> None:
    """Evaluate and print."""
    require_writable(args.results, sources=[args.checkpoint], plain=False)
    require_writable(args.json, sources=[args.checkpoint], others=[args.results], plain=False)
    with imports_uncollected():
        from gfl.evaluation import evaluate

    def say(message: str) -> None:
        print(message, file=sys.stderr)

    metrics, results = evaluate(
        args.checkpoint,
        args.overrides,
        args.split,
        say=say,
        flip=args.flip,
        scales=args.scales,
        plots=args.plots,
        outputs=[args.results, args.json],
    )
    try:
        write_json(args.results, results)
        write_json(args.json, metrics)
    finally:  # numbers that took long are not lost with a file that could not be written
        _print(metrics)


def _print(metrics: dict) -> None:
    if is_first_process():
        for name, value in metrics.items():
            if not isinstance(value, dict):
                print(f"{name:8s}{value:.4f}")
        for name, value in metrics["per_class"].items():
            cut = metrics["thresholds"][name]
            advice = f" (best F1 from score {cut:.2f} on)" if cut is not None else ""
            if cut is None and value is not None:
                advice = " (not once found)"
            print(
                f"AP of {name}: {'n/a (no objects)' if value is None else f'{value:.4f}'}{advice}"
            )
