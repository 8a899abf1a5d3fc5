"""What a study's config leaves to the data (`auto`), chosen once for all rows and kept."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gfl.ablation.runs import write_file
from gfl.automatic import choose_all
from gfl.config import load_config
from gfl.distributed import local_device
from gfl.sample import drawn_if_missing

# In the study's folder.
FILE = "auto.json"


@dataclass(frozen=True)
class Chosen:
    """The values of a study, the same for all its rows and whenever it goes on.

    Attributes:
        values: by dotted key; empty where the config says no auto.
        lines: what was chosen and why.
        config: what they were chosen for, plain values.
    """

    values: dict[str, object] = field(default_factory=dict)
    lines: tuple[str, ...] = ()
    config: dict = field(default_factory=dict)

    def write(self, out: Path) -> None:
        """Keep them in the study's folder, if there are any."""
        if self.values:
            write_file(out / FILE, json.dumps(vars(self), indent=1).encode())


def chosen_for(config: str | Path, overrides: Sequence[str], out: Path) -> Chosen:
    """Choose, or take what an earlier part of the same study has chosen.

    Free memory differs from one day to the next: the rows' batches must not.

    Args:
        config: a YAML file or the name of a shipped config.
        overrides: "key=value" strings.
        out: folder of the study.
    """
    base = load_config(config, list(overrides))
    if not base.auto_keys:
        return Chosen()
    try:
        known = json.loads((out / FILE).read_text(encoding="utf-8"))
        if known["config"] == json.loads(json.dumps(base.to_dict())):
            return Chosen(known["values"], tuple(known["lines"]), known["config"])
    except (OSError, ValueError, KeyError):
        pass
    drawn_if_missing(base.data)
    _, _, choices = choose_all(base, None, None, local_device(base.device))
    values = {choice.key: choice.value for choice in choices}
    return Chosen(values, tuple(map(str, choices)), base.to_dict())
