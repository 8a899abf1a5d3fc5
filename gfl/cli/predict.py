"""Find objects in images, folders, videos or a camera's picture, and draw them."""

import argparse
import contextlib
import json
import signal
import sys
import threading

from gfl.cli.command import require_writable, run, write_json
from gfl.cli.imports import imports_uncollected


def main(argv: list[str] | None = None) -> int:
    """`predict CHECKPOINT SOURCE... --out DIR`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="predict", description=__doc__)
    parser.add_argument("checkpoint", help="best.pt, a public .pth, or an exported .onnx")
    parser.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="image, folder, glob, video or camera number"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="for pictures, predictions.json"
    )
    parser.add_argument(
        "--score", type=float, metavar="S", help="show and write detections from this score on"
    )
    parser.add_argument("--classes", nargs="+", metavar="NAME", help="only these classes")
    parser.add_argument(
        "--tile",
        type=int,
        metavar="PX",
        help="look at large images in pieces; default, as in training, 0 at whole images",
    )
    parser.add_argument(
        "--overlap", type=float, help="of neighbouring pieces; default, as in training, or 0.25"
    )
    parser.add_argument("--batch-size", type=int, default=8, help="images computed together")
    parser.add_argument("--device", help="cpu, cuda or cuda:N")
    parser.add_argument("--half", action="store_true", help="compute in half precision")
    parser.add_argument(
        "--compile", action="store_true", help="torch.compile for each size of images (docs/speed)"
    )
    parser.add_argument("--no-pictures", action="store_true", help="predictions.json only")
    parser.add_argument("--no-doubt", action="store_true", help="plain boxes, no bands of doubt")
    parser.add_argument("--html", action="store_true", help="predictions.html too, to look at")
    parser.add_argument(
        "--html-limit", type=int, default=50, metavar="N", help="pictures on that page at most"
    )
    parser.add_argument("--frames", type=int, metavar="N", help="stop a video or camera after N")
    parser.add_argument("--json", metavar="FILE", help="write what was printed as JSON")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: predict(args))


def predict(args: argparse.Namespace) -> None:
    """Detect, draw, write."""
    from gfl.errors import UserError

    if args.batch_size < 1:
        raise UserError(f"--batch-size is {args.batch_size}, expected 1 or more.")
    if args.tile and args.tile < 64:
        raise UserError(f"--tile is {args.tile}, expected at least 64 pixels, or 0 for none.")
    if args.score is not None and not 0 <= args.score <= 1:
        raise UserError(f"--score is {args.score}, expected 0 to 1.")
    if args.frames is not None and args.frames < 1:
        raise UserError(f"--frames is {args.frames}, expected 1 or more.")
    if args.html_limit < 1:
        raise UserError(f"--html-limit is {args.html_limit}, expected 1 or more.")
    if args.overlap is not None and not 0 <= args.overlap < 0.9:
        raise UserError(f"--overlap is {args.overlap}, expected 0 to 0.9.")
    with imports_uncollected():
        from gfl.predicting import Prediction, predict_sources
        from gfl.predictor import load
        from gfl.sources import find_sources

    sources = find_sources(args.sources, args.out)
    own = [f"{args.out}/{name}" for name in ("predictions.json", "predictions.html")]
    own += [f"{args.out}/{source.name}" for source in sources]
    read = [source.path for source in sources if source.camera is None]
    require_writable(args.json, [args.checkpoint, *read], others=own, plain=False)
    compile = "fixed" if args.compile else False
    detector = load(args.checkpoint, args.device, args.half, compile)
    trained = detector.config.data.tiles
    if args.tile is None and trained is not None:
        args.tile = trained.size
        said = f"images are looked at in tiles of {trained.size} pixels, as in training"
        print(f"{said} (--tile 0: as a whole)", file=sys.stderr)
    if args.overlap is not None and not args.tile:
        raise UserError("--overlap is for --tile, which is not given: add it.")
    prediction = Prediction(
        out=args.out,
        score=args.score,
        classes=args.classes,
        tile=args.tile or None,
        overlap=args.overlap,
        batch_size=args.batch_size,
        pictures=not args.no_pictures,
        doubt=not args.no_doubt,
        frames=args.frames,
        html_limit=args.html_limit if args.html else None,
    )
    with _terminated_as_by_ctrl_c():
        summary = predict_sources(detector, sources, prediction)
    for path, reason in summary["skipped"].items():
        print(f"skipped {path}: {reason}", file=sys.stderr)
    if not summary["images"]:
        raise UserError(f"none of the {len(sources)} sources could be read.")
    counts = json.dumps(summary["per_class"])
    print(f"{summary['images']} images, {summary['detections']} detections: {counts}")
    print(f"written: {args.out}")
    write_json(args.json, summary)


@contextlib.contextmanager
def _terminated_as_by_ctrl_c():
    """SIGTERM, as of `timeout` or a scheduler, keeps what was detected so far, as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():  # which alone handles signals
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
