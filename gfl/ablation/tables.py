"""The paper's ablation tables: their rows, and the figures that the paper gives for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gfl.errors import UserError, choose, did_you_mean


@dataclass(frozen=True)
class Row:
    """A variant of the method.

    Attributes:
        name: of its file in configs/ablations/ and of its directory.
        title: what a reader calls it.
        AP, AP50, AP75: the paper's, in percent (COCO minival, R-50, 1x); None where it has none.
        group: rows of one group are compared with the first of them; the assigner, or the part of
            the table.
        file: its YAML file; by default NAME.yaml among the shipped ablations.
    """

    name: str
    title: str
    AP: float | None = None
    AP50: float | None = None
    AP75: float | None = None
    group: str = "atss"
    file: str | Path | None = None


_NAMES = {"fcos": "FCOS", "atss": "ATSS"}

_QUALITY = {
    "none": ("no quality", {"fcos": (37.8, 56.2, 40.8), "atss": (38.0, 56.5, 40.7)}),
    "centerness_branch": (
        "centerness, its own branch",
        {"fcos": (38.5, 56.8, 41.6), "atss": (39.2, 57.4, 42.2)},
    ),
    "iou_branch": (
        "IoU, its own branch",
        {"fcos": (38.7, 56.7, 42.0), "atss": (39.6, 57.6, 43.0)},
    ),
    "centerness_guided": (
        "centerness weighs the loss",
        {"fcos": (37.9, 56.7, 40.7), "atss": (38.2, 56.2, 41.0)},
    ),
    "iou_guided": (
        "IoU weighs the loss",
        {"fcos": (38.2, 57.0, 41.1), "atss": (38.9, 57.4, 41.8)},
    ),
    "joint": ("joint, QFL", {"fcos": (39.0, 57.8, 41.9), "atss": (39.9, 58.5, 43.0)}),
}

_BOX = {
    "dirac": ("Dirac delta", {"fcos": (38.5, 56.8, 41.6), "atss": (39.2, 57.4, 42.2)}),
    "gaussian": ("Gaussian", {"fcos": (38.6, 56.5, 41.6), "atss": (39.3, 57.0, 42.4)}),
    "general": ("general", {"fcos": (38.8, 56.6, 42.0), "atss": (39.3, 57.1, 42.5)}),
    "general_dfl": ("general + DFL", {"fcos": (39.0, 57.0, 42.3), "atss": (39.5, 57.3, 42.8)}),
}


def _for_both(table: str, variants: dict) -> list[Row]:
    """Rows of a table that the paper gives for both assigners."""
    return [
        Row(f"{table}_{group}_{name}", f"{_NAMES[group]}: {title}", *figures[group], group=group)
        for group in _NAMES
        for name, (title, figures) in variants.items()
    ]


_QUALITY_ROWS = _for_both("quality", _QUALITY)

# Source: arXiv 2006.04388, tables 1a, 1b, 1c, 2a, 2b with 2c, and 3.
TABLES: dict[str, list[Row]] = {
    "overall": [
        Row("overall_baseline", "ATSS", 39.2, 57.4, 42.2),
        Row("overall_qfl", "ATSS + QFL", 39.9, 58.5, 43.0),
        Row("overall_dfl", "ATSS + DFL", 39.5, 57.3, 42.8),
        Row("overall_qfl_dfl", "ATSS + QFL + DFL (GFL)", 40.2, 58.6, 43.4),
    ],
    "quality": _QUALITY_ROWS,
    "box": _for_both("box", _BOX),
    "beta": [
        Row("beta_0", "beta 0", 37.6, 55.4, 40.3),
        Row("beta_1", "beta 1", 39.0, 58.1, 41.7),
        Row("beta_2", "beta 2", 39.9, 58.5, 43.0),
        Row("beta_2.5", "beta 2.5", 39.7, 58.1, 42.7),
        Row("beta_4", "beta 4", 38.2, 55.4, 41.6),
    ],
    "bins": [
        Row("bins_n12", "n 12, width 1", 40.1, 58.4, 43.1, "n"),
        Row("bins_n14", "n 14, width 1", 40.2, 58.3, 43.6, "n"),
        Row("bins_n16", "n 16, width 1", 40.2, 58.6, 43.4, "n"),
        Row("bins_n18", "n 18, width 1", 40.1, 58.1, 43.1, "n"),
        Row("bins_width_0.5", "width 0.5, n 16", 40.2, 58.4, 43.0, "width"),
        Row("bins_width_1", "width 1, n 16", 40.2, 58.6, 43.4, "width"),
        Row("bins_width_2", "width 2, n 16", 39.9, 58.3, 42.9, "width"),
        Row("bins_width_4", "width 4, n 16", 39.8, 58.5, 42.8, "width"),
    ],
    "assigner": [
        Row("assigner_retinanet", "RetinaNet", 35.6, 55.5, 38.1, "retinanet"),
        Row("assigner_retinanet_qfl", "RetinaNet + QFL", 36.4, 56.3, 39.1, "retinanet"),
        *(row for row in _QUALITY_ROWS if row.name.endswith(("_none", "_joint"))),
        # Not in the paper, beside GFL itself.
        Row("overall_qfl_dfl", "GFL (ATSS)", 40.2, 58.6, 43.4, "gfl"),
        Row("assigner_tal", "GFL, task-aligned", group="gfl"),
        Row("assigner_simota", "GFL, SimOTA", group="gfl"),
    ],
}


def choose_rows(
    table: str,
    detector: str | None = None,
    names: Sequence[str] | None = None,
    tables: dict[str, list[Row]] = TABLES,
) -> list[Row]:
    """The rows of a table that are asked for, in the table's order.

    Args:
        table: a name of `tables`.
        detector: rows of this group only.
        names: rows of these names only.
        tables: by default those of the paper.

    Raises:
        UserError: no such table or row, or nothing is left.
    """
    rows = choose("table", table, tables)
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UserError(
                f"table {table} has no row {name!r}{did_you_mean(name, known)} "
                f"Its rows: {', '.join(known)}."
            )
    kept = [
        row
        for row in rows
        if detector in (None, row.group) and (names is None or row.name in names)
    ]
    if not kept:
        raise UserError(
            f"table {table} has no row of detector {detector}"
            + (f" among {', '.join(names)}" if names else "")
            + ": leave --detector out, or choose another table."
        )
    return kept
