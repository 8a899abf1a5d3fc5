"""Show a config with all it extends, or explain every key."""

import argparse

from gfl.cli.command import require_writable, run, write_json


def main(argv: list[str] | None = None) -> int:
    """`config [CONFIG key=value ...]`; gives the exit status."""
    parser = argparse.ArgumentParser(prog="config", description=__doc__)
    parser.add_argument("config", nargs="?", help="YAML file or shipped name: print it resolved")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--markdown", action="store_true", help="print every key with its meaning")
    parser.add_argument("--schema", metavar="FILE", help="write a JSON Schema for editors")
    args = parser.parse_intermixed_args(argv)
    return run(lambda: config(args, parser))


def config(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """Print or write what is asked for."""
    require_writable(args.schema, [args.config], plain=False)
    if args.markdown:
        from gfl.config_reference import markdown

        print(markdown(), end="")
    if args.schema:
        from gfl.config_reference import json_schema

        write_json(args.schema, json_schema())
    if args.config:
        import yaml

        from gfl.config import load_config

        values = load_config(args.config, args.overrides).to_dict()
        print(yaml.safe_dump(values, sort_keys=False), end="")
    if not (args.markdown or args.schema or args.config):
        parser.print_help()
