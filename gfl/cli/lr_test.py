"""Try rising learning rates on a network that is thrown away; suggest a range for train.lr."""

import argparse
import math
import sys

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`lr-test CONFIG [key=value ...] --out DIR`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="lr_test", description=__doc__)
    parser.add_argument("config", help="YAML file, or a shipped name such as gfl_s")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.path=FOLDER"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="for lr_test.csv, lr_test.png")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="default: 100")
    parser.add_argument(
        "--lowest", type=float, metavar="LR", help="default: a thousandth of train.lr"
    )
    parser.add_argument(
        "--highest", type=float, metavar="LR", help="default: a thousand times train.lr"
    )
    parser.add_argument("--json", metavar="FILE", help="write the numbers as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: lr_test(args), "lr-test")


def lr_test(args: argparse.Namespace) -> None:
    """Test, write, print."""
    own = [f"{args.out}/lr_test.csv", f"{args.out}/lr_test.png"]
    require_writable(args.json, sources=[args.config], others=own)
    from gfl.config import load_config
    from gfl.rate_test import rate_test, summary_lines

    config = load_config(args.config, args.overrides)
    config.data.spare(args.json)
    found = rate_test(
        config,
        args.out,
        args.steps,
        args.lowest,
        args.highest,
        say=lambda message: print(message, file=sys.stderr),
    )
    for line in summary_lines(found, args.steps):
        print(line)
    print(f"written: {', '.join(own)}")
    numbers = {name: _plain(values) for name, values in vars(found).items()}
    write_json(args.json, {**numbers, "suggestion": found.suggestion})


def _plain(values: object) -> object:
    """As JSON has it, which knows no NaN."""
    if not isinstance(values, tuple):
        return values
    return [value if math.isfinite(value) else None for value in values]
