"""Write a detector as ONNX or as torch's exported program, and compare it with PyTorch."""

import argparse
import sys

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`export CHECKPOINT --out FILE.onnx`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="export", description=__doc__)
    parser.add_argument("checkpoint", help="best.pt, last.pt or a public .pth")
    parser.add_argument("--out", required=True, metavar="FILE", help=".onnx, or .pt2 for torch")
    parser.add_argument(
        "--form",
        choices=("raw", "decoded", "nms"),
        default="decoded",
        help="raw: scores and side distributions; decoded: boxes, scores, edge_std of all "
        "locations; nms: the final detections (default: %(default)s)",
    )
    parser.add_argument("--half", action="store_true", help="weights and convolutions in float16")
    parser.add_argument("--image", help="picture to compare on; default: a drawn one")
    parser.add_argument(
        "--tolerance",
        nargs=2,
        type=float,
        metavar=("PIXELS", "SCORE"),
        help="largest difference that passes; default 0.05 0.0001, with --half wider",
    )
    parser.add_argument("--opset", type=int, help="of ONNX; default 20")
    parser.add_argument("--json", metavar="FILE", help="write what was printed as JSON")
    args = parser.parse_args(argv)
    return run(lambda: export(args))


def export(args: argparse.Namespace) -> None:
    """Export, compare, and say what was found."""
    sources = [args.checkpoint, args.image]
    require_writable(args.out, sources)
    require_writable(args.json, sources, others=[args.out], plain=False)
    from gfl.exporting import export as export_file

    report = export_file(
        args.checkpoint,
        args.out,
        form=args.form,
        half=args.half,
        image=args.image,
        tolerance=args.tolerance,
        opset=args.opset,
        say=lambda message: print(message, file=sys.stderr),
    )
    print(f"form        {report['form']}" + (", half precision" if report["half"] else ""))
    if report["opset"]:
        print(f"opset       {report['opset']}")
    for key in ("inputs", "outputs"):
        for name, what in report[key].items():
            print(f"{key[:-1]:11s} {name} {what}")
    print(f"compared    {report['runtime']} with PyTorch on {report['image']}:")
    for run_ in report["runs"]:
        print(f"            {run_['batch']} of {run_['height']} x {run_['width']} pixels")
    for name, value in report["largest_difference"].items():
        unit = " px" if name in ("boxes", "edge_std") else ""
        print(f"{name:14s} differ by at most {value:.3g}{unit}")
    found = report["detections"]
    print(f"detections  {found['same']} the same, {found['near']} alone within a rounding of a")
    print("            decision (score threshold, suppression, number kept)")
    print(f"written     {args.out}")
    write_json(args.json, report)
