"""Does a ResNet-18 student gain from the side distributions of a ResNet-50 teacher?

    python tools/experiments/distillation.py --data data/shapes --out runs/distillation

One teacher, then students with and without it, the same seeds. Finished runs are kept in OUT and
not repeated; one that was stopped goes on.
"""

import argparse
import functools
import sys
from pathlib import Path

from compared import kept, table


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
    longer = [f"train.epochs={args.teacher_epochs}"] if args.teacher_epochs else []
    large = ["model.backbone.name=resnet50", *longer]
    teacher = kept(out / "teacher.json", functools.partial(train, args, out / "teacher", large))
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
    import gfl
    from gfl.config import load_config

    config = load_config(args.config, [f"data.path={args.data}", *args.overrides, *changes])
    return gfl.train(config, work_dir=work_dir, resume=True)["last"]["AP"]


if __name__ == "__main__":
    sys.exit(main())
