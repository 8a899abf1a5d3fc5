"""A table as Markdown and as CSV."""

import csv
import io
import statistics

from gfl.ablation.findings import AP_NAMES

HEADER = (
    "row",
    "AP",
    "AP50",
    "AP75",
    "AP less the reference's",
    "paper's AP",
    "paper's AP50",
    "paper's AP75",
    "paper's AP less its reference's",
    "training step",
    "inference",
    "score-IoU rank correlation",
    "seeds",
)


def markdown(study: dict) -> str:
    """The table for readers, with what its figures mean.

    Args:
        study: `table`, `config`, `overrides`, `seeds`, `times` (or None) and `rows`, the entries
            of `gfl.ablation.findings.collect`.
    """
    lines = [f"# Ablation: {study['table']}", ""]
    lines += ["| " + " | ".join(HEADER) + " |", "|" + "---|" * len(HEADER)]
    lines += ["| " + " | ".join(_cells(row)) + " |" for row in study["rows"]]
    lines += ["", *(f"- {line}" for line in _notes(study)), ""]
    return "\n".join(lines)


def to_csv(study: dict) -> str:
    """One line a row; AP columns are fractions x 100."""
    fields = ["row", "title", "reference", "seeds_finished", "seeds_failed"]
    for name in AP_NAMES:
        fields += [f"{name}_x100_{part}" for part in ("mean", "sd", "min", "max")]
    fields += ["AP_x100_difference", "AP_difference_verdict"]
    fields += [f"paper_{name}_x100" for name in AP_NAMES] + ["paper_AP_x100_difference"]
    for kind in ("training", "inference"):
        fields += [f"{kind}_time_{part}" for part in ("ratio", "low", "high", "pairs", "verdict")]
    fields += [f"score_iou_correlation_{part}" for part in ("mean", "sd", "min", "max")]
    text = io.StringIO()
    writer = csv.DictWriter(text, fields, lineterminator="\n")
    writer.writeheader()
    for row in study["rows"]:
        writer.writerow(_csv_row(row))
    return text.getvalue()


def _csv_row(row: dict) -> dict:
    states = [state["status"] for state in row["seeds"].values()]
    line = {
        "row": row["name"],
        "title": row["title"],
        "reference": row["reference"],
        "seeds_finished": states.count("finished"),
        "seeds_failed": states.count("failed"),
        "paper_AP_x100_difference": _times_100(row["paper"]["delta"]),
    }
    for name in (*AP_NAMES, "score_iou_correlation"):
        found, scale = row[name] or {}, 1 if name not in AP_NAMES else 100
        prefix = name if scale == 1 else f"{name}_x100"
        for part, key in (("mean", "mean"), ("sd", "sd"), ("min", "low"), ("max", "high")):
            value = found.get(key)
            line[f"{prefix}_{part}"] = None if value is None else round(scale * value, 4)
        if name in AP_NAMES:
            line[f"paper_{name}_x100"] = _times_100(row["paper"][name])
    if row["difference"]:
        line["AP_x100_difference"] = round(100 * row["difference"]["value"], 4)
        line["AP_difference_verdict"] = row["difference"]["verdict"]
    for kind in ("training", "inference"):
        found = row[f"{kind}_time"]
        if found:
            line[f"{kind}_time_ratio"] = round(found["median"], 5)
            line |= {f"{kind}_time_{k}": round(found[k], 5) for k in ("low", "high")}
            line |= {f"{kind}_time_{k}": found[k] for k in ("pairs", "verdict")}
    return line


def _cells(row: dict) -> list[str]:
    paper, apart = row["paper"], row["difference"]
    reference = "reference" if row["reference"] is None else None
    difference = "-"
    if apart:
        difference = f"{100 * apart['value']:+.1f} {apart['verdict']}"
    delta = paper["delta"]
    return [
        row["title"],
        *(_spread(row[name], 100, 1) for name in AP_NAMES),
        reference or difference,
        *("-" if paper[name] is None else f"{100 * paper[name]:.1f}" for name in AP_NAMES),
        reference or ("-" if delta is None else f"{100 * delta:+.1f}"),
        *(reference or _ratio(row[f"{kind}_time"]) for kind in ("training", "inference")),
        _spread(row["score_iou_correlation"], 1, 3),
        _seeds(row["seeds"]),
    ]


def _spread(found: dict | None, scale: float, digits: int) -> str:
    if found is None:
        return "-"
    mean, low, high = (f"{scale * found[k]:.{digits}f}" for k in ("mean", "low", "high"))
    if found["n"] == 1:
        return f"{mean} (1 seed)"
    return f"{mean} ({low}..{high}, sd {scale * found['sd']:.{digits + 1}f})"


def _ratio(found: dict | None) -> str:
    if found is None:
        return "-"
    return f"{found['median']:.3f} [{found['low']:.3f}, {found['high']:.3f}] {found['verdict']}"


def _seeds(states: dict[str, dict]) -> str:
    """Counts of each status, such as "2 finished, 1 failed"."""
    found = [state["status"] for state in states.values()]
    return ", ".join(f"{found.count(status)} {status}" for status in dict.fromkeys(found))


def _notes(study: dict) -> list[str]:
    """What a reader needs in order not to read too much into the figures."""
    seeds = ", ".join(map(str, study["seeds"]))
    notes = [
        f"Config {study['config']}"
        + "".join(f" {text}" for text in study["overrides"])
        + f", seeds {seeds}; gfl {study['version']}. Each row is laid over this config.",
        "AP, AP50 and AP75 are fractions x 100, of the weights after the last epoch on the "
        "config's val: mean (lowest..highest over seeds, sample standard deviation).",
        "A difference of AP is called higher or lower where it exceeds the distance of lowest "
        'and highest seed in both rows; otherwise, and with one seed, it is "not resolved". The '
        "reference is the first row of its group.",
        "The paper's figures (arXiv 2006.04388, percent) were measured on COCO minival with "
        "ResNet-50, 12 epochs, one training each; only their differences can be compared with "
        "those of other data.",
        "The rank correlation (Spearman) is that of the score and the best IoU with an object of "
        "the same class, over all detections on val; crowd regions are left out.",
    ]
    times = study["times"]
    if times:
        pairs = len(next(iter(times["training"].values())))
        notes.append(
            f"Times are ratios to the reference: median of {pairs} pairs, 95 % bootstrap interval. "
            "All rows took turns on the same batches in one process; the first seed's weights "
            f"were used. {times['device']}. {_seconds(study)}"
        )
    else:
        notes.append(f"Times are not measured{_because(study.get('times_problem'))}.")
    notes += study.get("remarks", [])
    for row in study["rows"]:
        for seed, state in row["seeds"].items():
            if state["status"] == "failed":
                reason = " ".join(str(state["reason"]).split())
                notes.append(f"{row['title']}, seed {seed}, failed: {reason}")
    return notes


def _seconds(study: dict) -> str:
    """Medians of the references, so that ratios can be turned into seconds."""
    times, lines = study["times"], []
    for row in study["rows"]:
        if row["reference"] is None and row["name"] in times["training"]:
            train, infer = (
                statistics.median(times[kind][row["name"]]) for kind in ("training", "inference")
            )
            lines.append(
                f"{row['title']}: {train:.4g} s a step of {times['batch_size']}, {infer:.4g} s to "
                f"detect in {times['eval_batch_size']}"
            )
    return "; ".join(lines) + "."


def _because(problem: str | None) -> str:
    return f": {' '.join(problem.split())}" if problem else " yet"


def _times_100(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 2)
