"""Speed and memory, each figure beside its limit and its rivals, measured in one run.

The machine must be quiet: whatever else computes meanwhile is in the figures. The load average
before the first figure is printed with them.
"""

import argparse

from gfl.cli.command import require_writable, run, write_json

# Options of a measurement, which a plan has no use for.
MEASURED = (
    *("device", "size", "batch", "backbone", "precision", "repeats", "threads", "only", "pictures"),
    *("eval_images", "peer", "onnx", "channels_last"),
)
# What is measured without --only; and options that only some figures look at.
USUAL = ("train", "infer", "data", "eval", "start", "memory")
NEEDED = {
    "pictures": ("data",),
    "eval_images": ("eval",),
    "peer": ("train", "infer"),
    "onnx": ("onnx",),
    "channels_last": ("train", "memory", "scaling"),
}


def main(argv: list[str] | None = None) -> int:
    """`benchmark [--json FILE] [...]`; gives the exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmark", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="write what was printed as JSON")
    parser.add_argument("--device", help="cpu (small by default) or cuda (full size)")
    parser.add_argument(
        "--size",
        nargs=2,
        type=int,
        metavar=("H", "W"),
        help="network input, multiples of 32; default 320 320 on cpu, 800 1344 on cuda",
    )
    parser.add_argument("--batch", type=int, help="images of a step; default 2 or 16")
    parser.add_argument("--backbone", help="default resnet50")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16", "fp16"), help="default fp32 on cpu, bf16 on cuda"
    )
    parser.add_argument(
        "--channels-last",
        action=argparse.BooleanOptionalAction,
        help="memory layout of training, ours and the rivals'; default no on cpu, yes on cuda",
    )
    parser.add_argument("--repeats", type=int, help="timed rounds; default 10 or 30")
    parser.add_argument("--threads", type=int, help="of torch; default as torch chooses")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help="train, infer, data, eval, start, memory (the default), scaling, onnx or light",
    )
    parser.add_argument("--pictures", metavar="DIR", help="JPEGs for data; default drawn ones")
    parser.add_argument("--eval-images", type=int, metavar="N", help="images of eval; default 5000")
    parser.add_argument(
        "--peer", metavar="PYTHON", help="interpreter of an environment with mmdetection"
    )
    parser.add_argument(
        "--onnx", nargs="+", metavar="FILE", help="files that --only onnx times, beside the first"
    )
    _add_plan(parser)
    args = parser.parse_args(argv)
    return run(lambda: benchmark(args) if args.plan is None else plan(args))


def _add_plan(parser: argparse.ArgumentParser) -> None:
    several = parser.add_argument_group("a plan for several GPUs, in place of a measurement")
    several.add_argument(
        "--plan",
        nargs="*",
        metavar="CONFIG",
        help="print what a step of these configs exchanges (docs/scaling.md); default some shipped",
    )
    several.add_argument(
        "--step-ms", type=float, metavar="MS", help="of a step of one GPU: adds the efficiency"
    )
    several.add_argument(
        "--gbytes",
        nargs="+",
        type=float,
        metavar="GB/S",
        help="bandwidth of the slowest link in one direction; default nominal figures of some",
    )
    several.add_argument(
        "--overlap", type=float, help="share of a step that hides the exchange; default 0.5"
    )


def _is_given(args: argparse.Namespace, name: str) -> bool:
    return getattr(args, name) not in (None, [])


def plan(args: argparse.Namespace) -> None:
    """Print the plan, write it."""
    from gfl.errors import UserError

    require_writable(args.json, sources=args.plan)
    measured = [f"--{name.replace('_', '-')}" for name in MEASURED if _is_given(args, name)]
    if measured:
        raise UserError(f"--plan measures nothing: leave {', '.join(measured)} out.")
    if args.step_ms is None and (args.gbytes or args.overlap is not None):
        raise UserError("--gbytes and --overlap say how long a step waits: add --step-ms.")
    from gfl.benchmark.scaling_plan import OVERLAP, plan_text
    from gfl.benchmark.scaling_plan import plan as planned

    links = {f"{gigabytes:g} GB/s": gigabytes for gigabytes in args.gbytes or []}
    seconds = None if args.step_ms is None else args.step_ms / 1000
    overlap = OVERLAP if args.overlap is None else args.overlap
    found = planned(args.plan, seconds, links or None, overlap)
    print(plan_text(found))
    write_json(args.json, found)


def benchmark(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    from gfl.errors import UserError

    require_writable(args.json, sources=args.onnx or ())
    for name in ("step_ms", "gbytes", "overlap"):
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise UserError(f"{option} belongs to --plan, which is not given.")
    for name, figures in NEEDED.items():
        if _is_given(args, name) and not set(figures) & set(args.only or USUAL):
            option = "--" + name.replace("_", "-")
            raise UserError(
                f"{option} is for --only {' or '.join(figures)}, which is not asked for: leave "
                f"{option} out, or add it."
            )
    import torch

    from gfl.benchmark.run import benchmark as measure
    from gfl.benchmark.setting import setting
    from gfl.benchmark.table import table

    if args.threads is not None:
        if args.threads < 1:
            raise UserError(f"--threads is {args.threads}, expected a number from 1 on.")
        torch.set_num_threads(args.threads)
    given = {"size": tuple(args.size) if args.size else None, "eval_images": args.eval_images}
    names = ("batch", "backbone", "precision", "repeats", "pictures", "peer", "channels_last")
    given["onnx_files"] = tuple(args.onnx) if args.onnx else None
    given |= {name: getattr(args, name) for name in names}
    report = measure(setting(args.device, **given), tuple(args.only))
    print(table(report))
    write_json(args.json, report)
