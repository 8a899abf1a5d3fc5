"""The configuration explained: every key with its meaning, as Markdown and as a JSON Schema."""

import types
import typing
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gfl.schema import Config
from gfl.schema.automatic import AUTO, OrAuto
from gfl.schema.section import LARGEST


def json_schema() -> dict:
    """A JSON Schema of config files, `extends` included, by which editors complete YAML."""
    schema = Config.model_json_schema()
    schema["title"] = "gfl config"
    schema["properties"]["extends"] = {
        "type": "string",
        "description": "Another config, relative to this one, whose values this one changes.",
    }
    return schema


def markdown() -> str:
    """Every key, its type, default and meaning, a table a section."""
    parts = [
        "# Configuration keys",
        "",
        "Written by `gfl config --markdown`; do not edit. `gfl config --schema FILE.json` writes "
        "a JSON Schema:",
        "put `# yaml-language-server: $schema=FILE.json` on the first line of a config, and "
        "editors complete keys and",
        "check values. On the command line a key is dotted: `train.epochs=3`.",
        "",
        "`extends: FILE.yaml` takes another file's values first, of one beside it or of a shipped "
        "config (`extends: gfl_r50_fpn_1x`).",
        "A section changes only the keys that it names, in a file and on the command line alike:",
        "`data.augment={color: 0.5}` leaves a mosaic of the config on, and "
        "`data.augment.mosaic=0` turns it off.",
    ]
    parts += _section(Config, "")
    return "\n".join(parts) + "\n"


def _section(section: type[BaseModel], prefix: str) -> list[str]:
    """The table of a section's own keys, then the sections inside it."""
    rows, inner = [], []
    for name, field in section.model_fields.items():
        below = _sections_in(field.annotation)
        if below and not isinstance(field.default, str | int | float | list):
            known = [part for _, part in inner]  # what lists hold is explained once
            if field.annotation is below[0]:
                known = []
            inner += [(f"{prefix}{name}", part) for part in below if part not in known]
            if field.annotation is below[0] and not _may_be_auto(field):
                continue
        rows.append(
            f"| `{prefix}{name}` | {_type(field.annotation)}{_limits(field)}{_auto(field)} "
            f"| {_default(field)} "
            f"| {_one_line(field.description)} |"
        )
    title = f"## `{prefix.removesuffix('.')}`" if prefix else "## Top level"
    lines = ["", title, "", _one_line(section.__doc__)]
    if rows:
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows]
    for name, part in inner:
        lines += _section(part, f"{name}.")
    return lines


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    """Schema sections that a value is, or that a list or mapping holds."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    found = [part for inner in typing.get_args(annotation) for part in _sections_in(inner)]
    return list(dict.fromkeys(found))


def _type(annotation: Any) -> str:
    """A type in words, escaped for a table."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(inner[0])
    if origin is typing.Literal:
        return " \\| ".join(f"`{value}`" for value in inner)
    if origin in (typing.Union, types.UnionType):
        return " \\| ".join(_type(part) for part in inner)
    if origin is tuple and inner[-1] is not ...:
        return f"{len(inner)} x {_type(inner[0])}"
    if origin in (list, tuple):
        return f"list of {_type(inner[0])}"
    if origin is dict:
        return f"{_type(inner[0])}: {_type(inner[1])}"
    words = {type(None): "null", str: "text", int: "integer", float: "number", bool: "true/false"}
    return words.get(annotation, getattr(annotation, "__name__", str(annotation)).lower())


def _may_be_auto(field: FieldInfo) -> bool:
    return any(isinstance(item, OrAuto) for item in field.metadata)


def _auto(field: FieldInfo) -> str:
    return f" \\| `{AUTO}`" if _may_be_auto(field) else ""


def _limits(field: FieldInfo) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<", "multiple_of": "multiple of"}
    found = []
    for item in [*field.metadata, *_inner_limits(field.annotation)]:
        found += [
            f"{sign} {getattr(item, key)}"
            for key, sign in signs.items()
            if getattr(item, key, None) not in (None, LARGEST, -LARGEST)
        ]
    return f", {', '.join(found)}" if found else ""


def _inner_limits(annotation: Any) -> list:
    """Those of what may also be null."""
    parts = [part for part in typing.get_args(annotation) if part is not type(None)]
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType) or len(parts) > 1:
        return []
    marks = getattr(parts[0], "__metadata__", ())
    return [item for mark in marks for item in getattr(mark, "metadata", [mark])]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "see below"
    words = {None: "null", True: "true", False: "false"}
    if isinstance(value, tuple):
        return f"`{list(value)}`"
    return f"`{words.get(value, value) if isinstance(value, bool | None) else value}`"


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")
