"""The printed table of a benchmark."""

from gfl.benchmark.record import NOT_MEASURED

HEAD = ("figure", "what", "median", "10 to 90 %", "limit", "ratio", "verdict")


def table(report: dict) -> str:
    """Rows under each other, where and when above them.

    Args:
        report: of `gfl.benchmark.run.benchmark`.
    """
    lines = [f"{name:24s}{value}" for name, value in report["environment"].items()]
    rows = [HEAD, *(_row(record) for record in report["records"])]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    lines.append("")
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _row(record: dict) -> tuple[str, ...]:
    note = f"{record['name']} ({record['note']})" if record["note"] else record["name"]
    if record["median"] is None:
        return (record["figure"], note, "-", "-", "-", "-", NOT_MEASURED)
    unit, is_bare = record["unit"], record["limit"] is None
    spread = f"{number(record['low'])} to {number(record['high'])}, {record['repeats']} x"
    limit = "-" if is_bare else f"{record['limit_name']}: {number(record['limit'])} {unit}"
    ratio = "-" if is_bare else f"{record['ratio']:.4g}"
    verdict = record["verdict"] or "-"
    if record["goal"] is not None:
        bound = "at most" if record["at_most"] else "at least"
        verdict += f" ({bound} {record['goal']:g}{f' {unit}' if is_bare else ''})"
    median = f"{number(record['median'])} {unit}"
    return (record["figure"], note, median, spread, limit, ratio, verdict)


def number(value: float) -> str:
    """Four digits that count."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"
