"""Does a ResNet-18 student gain from the side distributions of a ResNet-50 teacher?

    python tools/experiments/distillation.py --data data/shapes --out runs/distillation

One teacher, then students with and without it, the same seeds. Finished runs are kept in OUT and
not repeated; one that was stopped goes on.
"""

import argparse
import functools
import sys
from pathlib import Path

from compared import kept, last_ap, same_settings, table

from gfl.cli import command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="a folder in COCO layout")
    parser.add_argument("--out", required=True, help="folder of runs and table")
    parser.add_argument("--config", default="quickstart")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--teacher-epochs", type=int, help="default, the config's")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of students and teacher")
    args = parser.parse_intermixed_args()
    out = Path(args.out)
    names = ("data", "config", "teacher_epochs", "overrides")
    same_settings(out, {name: getattr(args, name) for name in names})
    longer = [f"train.epochs={args.teacher_epochs}"] if args.teacher_epochs else []
    large = ["model.backbone.name=resnet50", *longer]
    teacher = kept(out / "teacher.json", functools.partial(teach, args, out / "teacher", large))
    taught = [f"distill.teacher={out / 'teacher' / 'best.pt'}"]
    columns = [
        [
            kept(
                out / f"{name}_{seed}.json",
                functools.partial(
                    train, args, out / f"{name}_{seed}", [*changes, f"train.seed={seed}"]
                ),
            )
            for seed in range(args.seeds)
        ]
        for name, changes in (("alone", []), ("taught", taught))
    ]
    heading = f"AP on val, {args.seeds} seeds; the teacher's is {teacher:.3f}"
    text = table({"ResNet-18 student": columns}, ("alone", "taught"), heading)
    (out / "table.md").write_text(text)
    print(text, end="")
    return 0


def train(args, work_dir: Path, changes: list[str]) -> float:
    """AP of the last epoch."""
    return last_ap(config_of(args, changes), work_dir)


def teach(args, work_dir: Path, changes: list[str]) -> float:
    """AP of the best epoch, whose weights teach."""
    import gfl

    outcome = gfl.train(config_of(args, changes), work_dir=work_dir, resume=True)
    return outcome["best"]["AP"]


def config_of(args, changes: list[str]):
    """The config with the user's changes and those of a variant."""
    from gfl.config import load_config

    return load_config(args.config, [f"data.path={args.data}", *args.overrides, *changes])


if __name__ == "__main__":
    sys.exit(command.run(main))
