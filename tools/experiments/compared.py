"""What the experiments share: runs that are kept, and a table of two or more variants."""

import json
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from gfl.errors import UserError


def kept(record: Path, run: Callable[[], float]) -> float:
    """The outcome of a run, read from `record` if it was finished before."""
    if not record.exists():
        record.parent.mkdir(parents=True, exist_ok=True)
        part = record.with_suffix(".part")
        part.write_text(json.dumps(run()))
        os.replace(part, record)
    value = json.loads(record.read_text())
    print(f"{record.stem}: {value:.4f}", file=sys.stderr)
    return value


def same_settings(out: Path, settings: dict) -> None:
    """Keep what the runs of a folder have in common; end where it is not what others there had."""
    record = out / "settings.json"
    settings = json.loads(json.dumps(settings))
    if record.exists():
        before = json.loads(record.read_text())
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise UserError(
                f"{out} holds runs of other settings ("
                + "; ".join(f"{n} {before.get(n)!r}, now {settings[n]!r}" for n in changed)
                + "): one table would mix both. Choose another --out."
            )
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(settings))
    except OSError as error:
        raise UserError(f"cannot write {record}: {error.strerror or error}") from None


def last_ap(config, work_dir: Path) -> float:
    """AP on val of the weights after the last epoch of a training; goes on if it was begun."""
    import gfl

    metrics = gfl.train(config, work_dir=work_dir, resume=True)["last"]
    if metrics is None:  # it had ended, and its AP was not written down
        metrics, _ = gfl.evaluate(work_dir / "last.pt", say=lambda message: None)
    return metrics["AP"]


def table(rows: dict[str, Sequence[Sequence[float]]], variants: Sequence[str], heading: str) -> str:
    """Markdown of means and ranges.

    Args:
        rows: title of a row to the values over seeds of each variant.
        variants: titles of the columns, the first the one that the last is compared with.
        heading: what the values are.

    Returns:
        Text; the difference of last and first variant is called resolved where it exceeds the
        wider of their two ranges, and never with one seed, which has none.
    """
    lines = [
        f"{heading}: mean (range)",
        "",
        f"| | {' | '.join(variants)} | difference | resolved |",
        "|---" * (len(variants) + 3) + "|",
    ]
    for title, columns in rows.items():
        cells = [
            f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"
            for values in columns
        ]
        difference = statistics.mean(columns[-1]) - statistics.mean(columns[0])
        spread = max(max(values) - min(values) for values in (columns[0], columns[-1]))
        several = min(map(len, columns)) > 1
        verdict = "yes" if several and abs(difference) > spread else "no"
        lines.append(f"| {title} | {' | '.join(cells)} | {difference:+.3f} | {verdict} |")
    return "\n".join([*lines, ""])
