"""Check the data of a config before training: one table of what was found."""

import argparse
import sys
from pathlib import Path

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`check_data CONFIG [key=value ...]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="check_data", description=__doc__)
    parser.add_argument("config", help="YAML file, or a shipped name such as gfl_r50_fpn_1x")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as data.path=FOLDER"
    )
    parser.add_argument("--split", choices=("train", "val", "test", "all"), default="all")
    parser.add_argument("--json", metavar="FILE", help="write every finding as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: check(args))


def check(args: argparse.Namespace) -> None:
    """Check and print."""
    from gfl.config import load_config
    from gfl.errors import UserError, printable

    config = load_config(args.config, args.overrides)
    data = config.data
    require_writable(args.json, sources=[args.config])
    data.spare(args.json)
    if args.json and data.path and Path(data.path).resolve() in Path(args.json).resolve().parents:
        raise UserError(f"{args.json} lies in the data set: choose another place to write to.")

    from gfl.data_check import check_data, table

    def show(report: dict) -> None:
        encoding = sys.stdout.encoding or "utf-8"
        if any(part["counts"] or part["findings"] for part in report["splits"].values()):
            print(table(report).encode(encoding, "backslashreplace").decode(encoding))
        for line in () if report["errors"] else report["warnings"]:
            print(f"WARNING: {printable(line)}", file=sys.stderr)
        write_json(args.json, report)

    check_data(config, args.split, show)
