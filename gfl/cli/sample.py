"""Draw the sample data set: shapes whose box edges are blurred by known amounts."""

import argparse
import re

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`sample [--out DIR]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="sample", description=__doc__)
    parser.add_argument("--out", default="data/shapes", help="output folder")
    parser.add_argument("--train", type=int, default=300, help="number of training pictures")
    parser.add_argument("--val", type=int, default=60, help="number of validation pictures")
    parser.add_argument("--size", default="256x192", help="landscape picture size, WxH")
    parser.add_argument("--seed", type=int, default=0, help="non-negative seed")
    parser.add_argument(
        "--annotator",
        action="store_true",
        help="labels as uncertain as the edges are blurred, in place of exact ones",
    )
    parser.add_argument(
        "--by-colour", action="store_true", help="classes are hues, each of all shapes"
    )
    parser.add_argument("--json", metavar="FILE", help="write what was printed as JSON")
    args = parser.parse_args(argv)
    return run(lambda: sample(args))


def sample(args: argparse.Namespace) -> None:
    """Draw and write."""
    from gfl.errors import UserError
    from gfl.sample import make_shapes

    require_writable(args.json, plain=False)
    size = re.fullmatch(r"(\d{1,5})x(\d{1,5})", args.size)
    if not size:
        raise UserError(f"--size is {args.size!r}, expected width x height, such as 256x192.")
    kinds = (args.annotator, args.by_colour)
    try:
        make_shapes(args.out, args.train, args.val, args.seed, (int(size[1]), int(size[2])), *kinds)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw the sample: {error}") from None
    print(f"{args.out}: {args.train} pictures to train on, {args.val} to evaluate on")
    write_json(args.json, {"out": args.out, "train": args.train, "val": args.val})
