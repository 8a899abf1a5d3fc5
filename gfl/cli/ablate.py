"""Train and judge the rows of one of the paper's ablation tables on a config's data."""

import argparse
import sys

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`ablate CONFIG [key=value ...] --out DIR`; gives the exit status."""
    from gfl.ablation.tables import TABLES

    parser = argparse.ArgumentParser(prog="ablate", description=__doc__)
    parser.add_argument("config", help="YAML file, or a shipped name such as quickstart")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="such as train.epochs=3 data.path=FOLDER"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="runs, tables; goes on there")
    parser.add_argument("--table", choices=TABLES, default="overall", help="default: overall")
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="trainings of each row")
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="these rows of the table only")
    parser.add_argument("--detector", choices=("atss", "fcos"), help="rows of this assigner only")
    parser.add_argument(
        "--pairs", type=int, default=30, metavar="N", help="rounds of comparing times; 0 for none"
    )
    parser.add_argument("--plan", action="store_true", help="print rows and cost, train nothing")
    parser.add_argument("--json", metavar="FILE", help="write the table as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: ablate(args))


def ablate(args: argparse.Namespace) -> None:
    """Plan, train, judge, print the table."""
    require_writable(args.json, sources=[args.config], plain=False)
    from gfl.ablation.tables import choose_rows
    from gfl.config import load_config

    load_config(args.config, args.overrides).data.spare(args.json)
    rows = choose_rows(args.table, args.detector, args.rows)

    from gfl.ablation.report import markdown
    from gfl.ablation.study import Study
    from gfl.errors import TrainingFailed

    table = args.table if args.detector is None else f"{args.table}_{args.detector}"
    study = Study(args.config, rows, args.out, args.overrides, args.seeds, args.pairs, table)
    if args.plan:
        lines = study.plan()
        print("\n".join(lines))
        write_json(args.json, {"plan": lines})
        return
    found = study.run()
    print(markdown(found), end="")
    print(f"written to {args.out}/{table}.md, .csv, .png and .json", file=sys.stderr)
    write_json(args.json, found)
    if study.failures:
        raise TrainingFailed(
            f"{len(study.failures)} runs of the table ({', '.join(map(str, study.failures))}); it "
            "gives the reasons. The same command tries again."
        )
