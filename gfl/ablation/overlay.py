"""A row of a table laid over a user's config."""

from pathlib import Path

import yaml

from gfl.ablation.tables import Row
from gfl.config import (
    CONFIG_FOLDER,
    Config,
    load_config,
    merge_overrides,
    merge_values,
    parse_config,
)
from gfl.errors import UserError
from gfl.yaml_text import parse_yaml

# A row is a variant of the method: data, schedule and backbone's weights are the user's.
SECTIONS = ("model", "loss", "assigner", "postprocess")


def row_values(row: Row) -> dict:
    """What a row's own file states, without what it extends.

    Raises:
        UserError: it can not be read, or states something that is not the method's.
    """
    path = Path(row.file or CONFIG_FOLDER / "ablations" / f"{row.name}.yaml")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read row {row.name}: {path}: {error.strerror or error}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    values = values if isinstance(values, dict) else {}
    values.pop("extends", None)
    others = sorted(set(values) - set(SECTIONS))
    if others:
        raise UserError(
            f"{path} states {', '.join(others)}: a row of an ablation states keys of "
            f"{', '.join(SECTIONS)} only, everything else is the config's."
        )
    return values


def row_config(
    config: str | Path,
    row: Row,
    overrides: list[str],
    seed: int = 0,
    chosen: dict[str, object] | None = None,
) -> Config:
    """The config of a row's run: the file, the row over it, then the overrides.

    Args:
        config: a YAML file or the name of a shipped config.
        row: its own keys are laid over the config's.
        overrides: "key=value" strings.
        seed: added to the config's train.seed.
        chosen: dotted keys to the values of what is left auto.
    """
    # The overrides come twice: the config may be valid only with them, and they lie over the row.
    values = merge_values(load_config(config, overrides).to_dict(), row_values(row))
    values = merge_overrides(values, overrides)
    found = parse_config(values, f"row {row.name} over {config}")
    values["train"]["seed"] = found.train.seed + seed
    for key in found.auto_keys if chosen else ():
        section, name = key.split(".")
        values[section][name] = chosen[key]
    if chosen and "data.train_size" in chosen:
        values["data"]["auto_largest"] = None
    return parse_config(values, f"row {row.name} over {config}")


def overridden(row: Row, overrides: list[str]) -> list[str]:
    """Dotted keys of a row that the overrides state as well: there the row is not itself."""
    given = dotted(merge_overrides({}, overrides))
    return [
        key
        for key in dotted(row_values(row))
        if any(key == g or key.startswith(g + ".") or g.startswith(key + ".") for g in given)
    ]


def dotted(values: dict, prefix: str = "") -> dict:
    """Nested values as {"section.key": value}."""
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= dotted(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
