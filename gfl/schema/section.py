"""What every part of the schema is made of."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def _no_bool(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("expected a number, not true or false")
    return value


# Far beyond what makes sense, far within what arithmetic holds.
LARGEST = 2**31

# Whole numbers from 1 on.
Count = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_no_bool)]
Int = Annotated[int, BeforeValidator(_no_bool), Field(ge=-LARGEST, le=LARGEST)]
Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Positive = Annotated[Float, Field(gt=0)]
Probability = Annotated[float, BeforeValidator(_no_bool), Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen part of the configuration; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
