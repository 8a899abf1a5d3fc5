"""The generated reference of the configuration, and the JSON Schema for editors."""

import json

import yaml
from conftest import REPOSITORY
from pydantic import BaseModel

from gfl.cli.config import main
from gfl.config import load_config
from gfl.config_reference import json_schema, markdown
from gfl.schema import Config


def keys_of(section, prefix=""):
    for name, value in section:
        if isinstance(value, BaseModel):
            yield from keys_of(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_every_key_is_explained():
    text = markdown()
    keys = list(keys_of(Config()))
    assert len(keys) > 60
    for key in keys:
        assert f"| `{key}` |" in text, key
    assert "PydanticUndefined" not in text


def test_limits_choices_and_defaults_are_told():
    text = markdown()
    choices = " \\| ".join(f"`{name}`" for name in ("fp32", "bf16", "fp16", "auto"))
    assert f"| `train.precision` | {choices} | `fp32` |" in text
    assert "| `data.repeat_factor` | number \\| null, > 0, <= 1 | `null` |" in text
    assert "| `data.workers` | integer, >= 0, <= 1024 | `2` |" in text
    assert "| `postprocess.score_threshold` | number, >= 0, < 1 | `0.05` |" in text
    assert "| `data.train.images` | text | required |" in text


def test_the_page_in_docs_is_up_to_date():
    """Write it anew with: gfl config --markdown > docs/config.md"""
    assert (REPOSITORY / "docs" / "config.md").read_text(encoding="utf-8") == markdown()


def test_the_schema_knows_every_shipped_config():
    schema = json_schema()
    for path in (REPOSITORY / "configs").glob("*.yaml"):
        for key in yaml.safe_load(path.read_text()):
            assert key in schema["properties"], (path, key)
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["Train"]["properties"]["epochs"]["minimum"] == 1


def test_the_command_prints_a_resolved_config(tmp_path, capsys):
    assert main(["quickstart", "train.epochs=2"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed == load_config("quickstart", ["train.epochs=2"]).to_dict()
    assert main(["--schema", str(tmp_path / "schema.json")]) == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == json_schema()
    own = tmp_path / "own.yaml"
    own.write_text("extends: quickstart\n")
    assert main([str(own), "--schema", str(own)]) == 2
    assert "the source itself" in capsys.readouterr().err
    assert own.read_text() == "extends: quickstart\n"
    assert main(["quickstrat"]) == 2
    assert "did you mean 'quickstart'" in capsys.readouterr().err
