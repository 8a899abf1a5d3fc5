"""What all commands share: how they end."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gfl.errors import ExportFailed, TrainingFailed, TrainingStopped, UserError, printable
from gfl.files import replacing

# What `run` gives for a training that a signal has ended (EX_TEMPFAIL of sysexits.h), for one that
# failed, for a user's mistake, for Ctrl-C before there was anything to save, and where nobody reads
# what is printed.
STOPPED, FAILED, MISTAKE, INTERRUPTED, UNHEARD = 75, 1, 2, 130, 141


def run(work: Callable[[], None], what: str = "training") -> int:
    """Do the work of a command, that is `what`; give its exit status, 0 or one of those above.

    Such errors are one message on stderr. Everything else is a bug and keeps its traceback.
    """
    several = os.environ.get("WORLD_SIZE", "1") != "1"
    prefix = f"[rank {os.environ.get('RANK', '0')}] " if several else ""
    try:
        work()
        sys.stdout.flush()
    except BrokenPipeError:  # `... | head` has seen enough; nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNHEARD
    except UserError as error:
        _complain(f"{prefix}error: {printable(str(error))}")
        return MISTAKE
    except TrainingFailed as error:
        _complain(f"{prefix}{what} failed: {error}")
        return FAILED
    except ExportFailed as error:
        _complain(f"{prefix}export failed: {error}")
        return FAILED
    except TrainingStopped as error:
        if is_first_process():
            _complain(str(error))
        return STOPPED
    except KeyboardInterrupt:
        _complain(f"{prefix}interrupted")
        return INTERRUPTED
    except Exception as error:
        if several:
            _complain(f"{prefix}failed: {type(error).__name__}: {error}")
        raise
    return 0


def _complain(text: str) -> None:
    """On stderr; the status says it too, should nobody be able to read that."""
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def is_first_process() -> bool:
    """Whether this process prints results and writes files, known before torch is imported."""
    return os.environ.get("RANK", "0") == "0"


def require_folder(*paths: str | None) -> None:
    """Refuse output files in folders that do not exist, before the work is done."""
    for path in filter(None, paths):
        folder = Path(path).resolve().parent
        if not os.path.isdir(folder):
            raise UserError(f"cannot write {path}: its folder does not exist.")
        is_device = os.path.exists(path) and not os.path.isfile(path)
        if not is_device and not os.access(folder, os.W_OK):
            raise UserError(f"cannot write {path}: its folder is not yours to write to.")


def require_writable(
    path: str | None,
    sources: Sequence[str | None] = (),
    others: Sequence[str | None] = (),
    plain: bool = True,
) -> None:
    """Refuse an output file that can not be, or that would fall on something of the user's.

    Of several processes the first alone writes: on other machines the folder may be missing.

    Args:
        path: where a file is to be written; an old one there is replaced.
        sources: files that are read.
        others: other outputs of the same command.
        plain: whether it has to be a file; else devices such as /dev/stdout will do.
    """
    if path is None or not is_first_process():
        return
    require_folder(path)
    place = Path(path).resolve()
    if any(place == Path(source).resolve() for source in sources if source):
        raise UserError(f"{path} is the source itself: choose another place to write to.")
    if any(place == Path(other).resolve() for other in others if other):
        raise UserError(f"{path} is meant for both of two outputs: choose two files.")
    try:
        if place.is_dir():
            raise UserError(f"cannot write {path}: it is a folder.")
        if plain and place.exists() and not place.is_file():
            raise UserError(f"cannot write {path}: it is no plain file.")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


def write_json(path: str | None, content: object) -> None:
    """Write what was printed, if a file is asked for; an old file is replaced in one move."""
    if path is None or not is_first_process():
        return
    place, text = Path(path).resolve(), json.dumps(content, indent=1) + "\n"
    try:
        if place.exists() and not place.is_file():  # such as /dev/stdout
            place.write_text(text, encoding="utf-8")
            return
        with replacing(place) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
