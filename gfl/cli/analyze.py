"""What a detector's scores, boxes and doubt know: statistics of a split and one HTML page."""

import argparse
import sys

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`analyze CHECKPOINT --out DIR [key=value ...]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="analyze", description=__doc__)
    parser.add_argument("checkpoint", help="best.pt, last.pt or a public .pth")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.path=FOLDER"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for report.html, report.json")
    parser.add_argument("--split", choices=("train", "val", "test"), default="val")
    parser.add_argument("--images", type=int, metavar="N", help="look at the first N images only")
    parser.add_argument(
        "--store-temperature",
        action="store_true",
        help="put the temperature fitted on val into the checkpoint: gfl.load then multiplies "
        "edge_std by it; boxes and scores stay as they are",
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: analyze(args))


def analyze(args: argparse.Namespace) -> None:
    """Measure, write, print."""
    own = [f"{args.out}/report.html", f"{args.out}/report.json"]
    require_writable(args.json, sources=[args.checkpoint], others=own)
    from gfl.analysis.run import analyze as measure
    from gfl.analysis.summary import summary_lines

    numbers = measure(
        args.checkpoint,
        args.out,
        args.overrides,
        args.split,
        args.images,
        args.store_temperature,
        say=lambda message: print(message, file=sys.stderr),
        outputs=[args.json],
    )
    write_json(args.json, numbers)
    for line in summary_lines(numbers):
        print(line)
    print(f"written: {args.out}/report.html, {args.out}/report.json")
