"""Keys that may say `auto`: their values are chosen when a training starts, most by the data."""

from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import core_schema

AUTO = "auto"
# In the order in which they are chosen; `gfl.automatic` knows how.
AUTO_KEYS = (
    "data.format",
    "data.val_fraction",
    "data.train_size",
    "data.test_size",
    "model.reg_max",
    "train.batch_size",
    "train.epochs",
    "train.precision",
)


class OrAuto:
    """Lets a field hold the word auto too; to code that reads values it has its plain type.

    Such code meets plain values only: `Config.require_chosen` is its guard.
    """

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler):
        inner = handler(source)

        def unless_auto(value, handle):
            return AUTO if value == AUTO else handle(value)

        return core_schema.no_info_wrap_validator_function(
            unless_auto,
            inner,
            serialization=core_schema.wrap_serializer_function_ser_schema(
                unless_auto, schema=inner
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict:
        plain = handler(schema)
        kinds = plain.pop("anyOf", None) or [
            {key: plain.pop(key) for key in ("type", "$ref") if key in plain}
        ]
        return {**plain, "anyOf": [*kinds, {"const": AUTO}]}


OR_AUTO = OrAuto()
