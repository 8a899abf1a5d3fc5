"""Draw the sample data set: shapes whose box edges are blurred by known amounts."""

import argparse

from gfl.cli.command import run


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
    args = parser.parse_args(argv)
    return run(lambda: sample(args))


def sample(args: argparse.Namespace) -> None:
    """Draw and write."""
    from gfl.errors import UserError
    from gfl.sample import make_shapes

    try:
        width, height = map(int, args.size.split("x"))
        size, kinds = (width, height), (args.annotator, args.by_colour)
        make_shapes(args.out, args.train, args.val, args.seed, size, *kinds)
        print(f"{args.out}: {args.train} pictures to train on, {args.val} to evaluate on")
    except (OSError, ValueError) as error:
        raise UserError(f"cannot draw the sample: {error}") from None
