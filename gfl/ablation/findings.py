"""What a table has found so far, as plain values: the content of its JSON, and of every report."""

from dataclasses import asdict

from gfl.ablation.summary import UNRESOLVED, difference, ratio, spread
from gfl.ablation.tables import Row

AP_NAMES = ("AP", "AP50", "AP75")
# Of the numbers of a run: those that the table shows with their spread.
SHOWN = (*AP_NAMES, "score_iou_correlation")
WORDS = {"more": "slower", "less": "faster", UNRESOLVED: UNRESOLVED}


def collect(rows: list[Row], states: dict[str, dict[int, dict]], times: dict | None) -> list[dict]:
    """One entry a row.

    Args:
        rows: in order; the first of a group is what the others of it are compared with.
        states: row name to seed to {"status": ..., "reason": ..., "numbers": {...}}.
        times: "training" and "inference", each {row name: seconds of each round}; or None.

    Returns:
        For each row `name`, `title`, `group`, `reference` (the name of another row, or None for
        a reference), `seeds` (its states), `paper` ({AP, AP50, AP75}, fractions, and `delta`,
        its AP less the reference's), `SHOWN` ({mean, sd, low, high, n} of the finished seeds, or
        None), `difference` ({value, spread, verdict} of AP) and `training_time`, `inference_time`
        ({median, low, high, pairs, verdict} of the ratio to the reference).
    """
    entries, first = [], {}
    for row in rows:
        reference = first.setdefault(row.group, row)
        entry = {
            "name": row.name,
            "title": row.title,
            "group": row.group,
            "reference": None if reference is row else reference.name,
            "seeds": {str(seed): state for seed, state in states[row.name].items()},
            "paper": _paper(row, reference),
        }
        samples = {name: _sample(states[row.name], name) for name in SHOWN}
        entry |= {name: found and asdict(found) for name, found in samples.items()}
        apart = None
        if reference is not row:
            apart = difference(samples["AP"], _sample(states[reference.name], "AP"))
        entry["difference"] = apart and asdict(apart)
        for kind in ("training", "inference"):
            entry[f"{kind}_time"] = _time((times or {}).get(kind, {}), row, reference)
        entries.append(entry)
    return entries


def _sample(states: dict[int, dict], name: str):
    """The spread of a number over the finished seeds."""
    values = [s["numbers"][name] for s in states.values() if s.get("numbers")]
    # pycocotools gives -1 where there is nothing to find.
    return spread([value for value in values if value is not None and value != -1])


def _paper(row: Row, reference: Row) -> dict:
    """The paper's figures as fractions."""
    figures = {name: getattr(row, name) for name in AP_NAMES}
    paper = {name: None if f is None else round(f / 100, 4) for name, f in figures.items()}
    known = reference is not row and None not in (row.AP, reference.AP)
    return {**paper, "delta": round((row.AP - reference.AP) / 100, 4) if known else None}


def _time(seconds: dict[str, list[float]], row: Row, reference: Row) -> dict | None:
    if row is reference or row.name not in seconds or reference.name not in seconds:
        return None
    found = ratio(seconds[row.name], seconds[reference.name])
    return {**asdict(found), "verdict": WORDS[found.verdict]}
