"""Reading configurations: YAML files, what they extend, overrides, and errors in plain words."""

import os
import typing
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from gfl.errors import SHOWN, UserError, did_you_mean
from gfl.schema import Config
from gfl.yaml_text import parse_yaml

__all__ = ["Config", "load_config", "merge_overrides", "merge_values", "parse_config"]

SPLITS = ("train", "val", "test")
_HERE = Path(__file__).resolve().parent
# Inside the wheel, else beside the package in a checkout.
CONFIG_FOLDER = _HERE / "configs" if (_HERE / "configs").is_dir() else _HERE.parent / "configs"


def load_config(path: str | Path, overrides: list[str] | None = None) -> Config:
    """Read a YAML config with all that it extends, then apply overrides.

    Args:
        path: a YAML file, or the name of a shipped config.
        overrides: "dotted.key=value" strings; values are YAML.

    Raises:
        UserError: file, key, value or combination is wrong; the message names it.
    """
    path = Path(path)
    shipped = CONFIG_FOLDER / f"{path}.yaml"
    if not os.path.exists(path) and (os.path.exists(shipped) or path.name == path.stem):
        path = shipped
    layers = _read_layers(path, seen=())
    values = merge_overrides(layers, overrides or [])
    try:
        return parse_config(values, str(path))
    except UserError:
        if not overrides:
            raise
        parse_config(layers, str(path))  # the file's own mistakes are named first
        return parse_config(values, f"{path.name} as changed by {_shown(overrides)}")


def merge_overrides(values: dict, overrides: list[str]) -> dict:
    """Plain config values with "dotted.key=value" strings laid over them, in order."""
    layer: dict = {}
    for override in overrides:
        layer = merge_values(layer, _parse_override(override))
    return _merge(values, layer)


def parse_config(values: dict, origin: str = "config") -> Config:
    """Check plain values against the schema; `origin` is named in errors."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        # A list whose entries are wrong is called too short as well.
        wrong = [item["loc"] for item in items]
        lines = [
            _explain(item)
            for item in items
            if item["type"] != "too_short" or not any(_lies_in(loc, item["loc"]) for loc in wrong)
        ]
        raise UserError(f"{origin}: " + "\n".join(dict.fromkeys(lines))) from None


def _lies_in(place: tuple, other: tuple) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def _shown(overrides: list[str]) -> str:
    """Overrides for a message."""
    more = f" and {len(overrides) - SHOWN} more" if len(overrides) > SHOWN else ""
    return " ".join(overrides[:SHOWN]) + more


def _read_layers(path: Path, seen: tuple[Path, ...]) -> dict:
    path = path.resolve()
    if path in seen:
        raise UserError(f"{path.name} extends itself: {' -> '.join(p.name for p in (*seen, path))}")
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except OSError as error:
        near = sorted(p.stem for p in CONFIG_FOLDER.glob("*.yaml"))
        every = [_shipped_name(p) for p in CONFIG_FOLDER.rglob("*.yaml")]
        hint = did_you_mean(_shipped_name(path), every)
        raise UserError(
            f"cannot read config {path}: {error.strerror or error}{hint}"
            + (f" Shipped configs: {', '.join(near)}." if near else "")
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise UserError(f"{path} holds {type(values).__name__}, expected keys and values")
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends is {parent!r}, expected the name of a YAML file")
    return _merge(_read_layers(_parent(path.parent, parent), (*seen, path)), values)


def _parent(folder: Path, name: str) -> Path:
    """The file that a config of a folder extends: beside it, else a shipped one, by its name."""
    shipped = CONFIG_FOLDER / name
    places = (folder / name, shipped, shipped.with_name(f"{shipped.name}.yaml"))
    return next((place for place in places if os.path.isfile(place)), places[0])


def _shipped_name(path: Path) -> str:
    """How a file of `CONFIG_FOLDER` is called, such as ablations/beta_2.5; others by their stem."""
    if path.is_relative_to(CONFIG_FOLDER):
        return path.relative_to(CONFIG_FOLDER).with_suffix("").as_posix()
    return path.stem


def _parse_override(text: str) -> dict:
    key, equals, value = text.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"override {text!r} is not of the form key=value, such as train.epochs=3")
    try:
        parsed: Any = parse_yaml(value)
    except yaml.YAMLError:
        parsed = value
    plain = value.strip()
    if isinstance(parsed, str):
        if "#" in plain and plain[0] not in "\"'":
            parsed = plain  # of "batch #3" YAML takes the end for a comment
    elif _takes_text(key) and not isinstance(parsed, dict | list):
        is_nothing = plain.lower() in ("", "~", "null")
        parsed = None if is_nothing else value  # a folder called 2017 is no number
    for part in reversed(key.split(".")):
        parsed = {part: parsed}
    return parsed


def _takes_text(key: str) -> bool:
    """Whether a dotted key holds a text, or nothing."""
    *sections, name = key.split(".")
    section: type[BaseModel] | None = Config
    for part in sections:
        field = section.model_fields.get(part) if section else None
        section = field and _section_in(field.annotation)
    field = section.model_fields.get(name) if section else None
    if field is None:
        return False
    kinds = typing.get_args(field.annotation) or (field.annotation,)
    return {getattr(kind, "__origin__", kind) for kind in kinds} <= {str, type(None)}


def _merge(base: dict, layer: dict) -> dict:
    """`layer` over `base`. A new data.path also takes the place of inherited splits, and no sample
    is drawn into it."""
    data = layer.get("data")
    if isinstance(data, dict) and data.get("path") and isinstance(base.get("data"), dict):
        is_new = data["path"] != base["data"].get("path")
        left_behind = (*SPLITS, "draw_sample") if is_new else SPLITS
        inherited = {k: v for k, v in base["data"].items() if k not in left_behind}
        base = {**base, "data": inherited}
    return merge_values(base, layer)


def merge_values(base: dict, layer: dict) -> dict:
    """`layer` over `base`, section by section."""
    merged = dict(base)
    for key, value in layer.items():
        old = merged.get(key)
        if isinstance(value, dict) and isinstance(old, list) and len(old) == 1:
            old = old[0]  # a list of one source may be changed like the source itself
        both = isinstance(value, dict) and isinstance(old, dict)
        merged[key] = merge_values(old, value) if both else value
    return merged


def _explain(item: dict) -> str:
    """One schema error in words: key, what we got, what we expected."""
    if item["type"] == "extra_forbidden":
        *place, last = item["loc"]
        parts, section = _follow(place)
        known = list(section.model_fields)
        hint = did_you_mean(str(last), known)
        elsewhere = [place for place in _places() if place.rpartition(".")[2] == last]
        if elsewhere:
            hint = f"; did you mean {' or '.join(elsewhere)}?"
        return (
            f"unknown key {'.'.join([*parts, str(last)])!r}{hint} "
            f"Known keys here: {', '.join(known)}."
        )
    parts, section = _follow(item["loc"])
    key, got = ".".join(parts), item["input"]
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("model_type", "model_attributes_type"):
        known = list(section.model_fields)
        message = f"expected keys and values, such as {{{known[0]}: ...}}; keys: {', '.join(known)}"
    elif item["type"] in ("tuple_type", "list_type"):
        message = f"expected a list, such as [{got}]"
    elif item["type"] == "string_type":
        message = "expected a text"
        if not isinstance(got, dict | list | tuple):
            message += f', in quotes where it looks like something else: "{got}"'
    elif item["type"] == "string_pattern_mismatch" and key == "device":
        message = "expected cpu, cuda or cuda:N"
    if item["type"] == "missing" or isinstance(got, dict | BaseModel):
        return f"{key}: {message}." if key else f"{message}."
    hint = "."
    if isinstance(got, str) and "expected" in (item.get("ctx") or {}):
        choices = [c.strip(" '") for c in item["ctx"]["expected"].replace(" or ", ",").split(",")]
        hint = did_you_mean(got, choices)
    return f"{key} is {got!r}: {message}{hint}"


def _places(section: type[BaseModel] = Config, prefix: str = "") -> typing.Iterator[str]:
    """Dotted keys of all sections."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}"
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _places(field.annotation, f"{prefix}{name}.")


def _follow(location: typing.Iterable[str | int]) -> tuple[list[str], type[BaseModel]]:
    """The keys of an error's location, without pydantic's names of types, and the last section."""
    parts: list[str] = []
    section: type[BaseModel] = Config
    in_section = True
    for part in location:
        if isinstance(part, int):
            parts.append(str(part))
        elif in_section and part in section.model_fields:
            parts.append(part)
            inner = _section_in(section.model_fields[part].annotation)
            in_section, section = inner is not None, inner or section
    return parts, section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The schema section that a field holds, also in a list or beside None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, typing.get_args(annotation))), None)
