"""Convert a public mmdetection, GFocal or GFocalV2 checkpoint into one of gfl."""

import argparse
import json

from gfl.cli.command import require_writable, run, write_json
from gfl.errors import UserError


def main(argv: list[str] | None = None) -> int:
    """`convert FILE.pth --out FILE.pt`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="convert", description=__doc__)
    parser.add_argument("file", help=".pth of mmdetection, GFocal or GFocalV2; it is not executed")
    parser.add_argument("--out", required=True, metavar="FILE", help="checkpoint to write")
    parser.add_argument("--config", help="its architecture, where it is not recognised")
    parser.add_argument("--json", metavar="FILE", help="write what was printed as JSON")
    args = parser.parse_args(argv)
    return run(lambda: convert(args))


def convert(args: argparse.Namespace) -> None:
    """Read, compare, write, and say what was done."""
    require_writable(args.out, sources=[args.file, args.config])
    require_writable(args.json, sources=[args.file, args.config], others=[args.out])
    from pathlib import Path

    from gfl.conversion import convert as convert_file
    from gfl.engine.checkpoint import save_checkpoint

    content, comparison = convert_file(args.file, args.config)
    try:
        save_checkpoint(Path(args.out), content)
    except OSError as error:
        raise UserError(f"cannot write {args.out}: {error.strerror or error}") from None
    source, config = content["source"], content["config"]
    names = content["class_map"]["names"]
    print(comparison)
    print(f"source      {source['project']} {source['project_version']}".rstrip())
    print(f"licence     {source['licence']} (of the source; it stays with the weights)")
    print(f"config      {source['config']}")
    print(f"backbone    {json.dumps(config['model']['backbone'])}")
    print(f"classes     {len(names)}: {', '.join(names[:5])}" + (", ..." if names[5:] else ""))
    conventions = {
        "grid_origin": config["model"]["grid_origin"],
        **{key: config["data"][key] for key in ("color_order", "mean", "std", "test_size")},
        "pre_nms_rule": config["postprocess"]["pre_nms_rule"],
    }
    for key, value in conventions.items():
        print(f"{key:11s} {json.dumps(value)}")
    if source["left_out"]:
        print(f"left out    {len(source['left_out'])} averages that the weights already hold")
    if source["name_says_hash"] is False:
        print(f"warning     sha256 {source['sha256'][:8]}... is not the one in the file's name:")
        print("            a damaged download, or not the published file")
    print(f"written     {args.out}")
    write_json(
        args.json,
        {
            "matched": len(comparison.matched),
            "missing": list(comparison.missing),
            "unexpected": list(comparison.unexpected),
            "mismatched": [list(row) for row in comparison.mismatched],
            "source": source,
            "class_map": content["class_map"],
            "config": config,
        },
    )
