"""`gfl COMMAND ...`: every command under one name, for people who installed the package."""

import importlib
import sys

# Command to the module whose `main(argv)` it is, and one line about it.
COMMANDS = {
    "train": ("gfl.cli.train", "train a detector from a config"),
    "test": ("gfl.cli.test", "COCO numbers of a checkpoint"),
    "analyze": ("gfl.cli.analyze", "what scores and doubt know: statistics and an HTML page"),
    "predict": ("gfl.cli.predict", "find objects in images, folders and videos"),
    "check-data": ("gfl.cli.check_data", "the data set check, as a table"),
    "ablate": ("gfl.cli.ablate", "the paper's ablation tables on your data"),
    "lr-test": ("gfl.cli.lr_test", "try rising learning rates, suggest a range for train.lr"),
    "env": ("gfl.cli.env", "versions, devices, shared memory, optional packages"),
    "config": ("gfl.cli.config", "show a config resolved, or explain every key"),
    "export": ("gfl.cli.export", "ONNX or torch.export, with proof that it matches"),
    "sample": ("gfl.cli.sample", "draw the sample data set that configs/quickstart uses"),
    "benchmark": ("gfl.cli.benchmark", "speed and memory beside their limits and rivals"),
    "convert": ("gfl.cli.convert", "a public mmdetection or GFocal checkpoint into one of gfl"),
}


def main(argv: list[str] | None = None) -> int:
    """Run a command; gives its exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["--version"]:
        from gfl import __version__

        print(f"gfl {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: gfl COMMAND ... (gfl COMMAND -h explains one)\n")
        for name, (_, about) in COMMANDS.items():
            print(f"  {name:12s}{about}")
        return 0 if argv else 2
    if argv[0] not in COMMANDS:
        from gfl.errors import did_you_mean

        hint = did_you_mean(argv[0], COMMANDS)
        print(f"error: unknown command {argv[0]!r}{hint} Try gfl --help.", file=sys.stderr)
        return 2
    return importlib.import_module(COMMANDS[argv[0]][0]).main(argv[1:])
