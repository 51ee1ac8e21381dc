"""What a single setting can be, in words that errors quote, and what a group of settings is."""

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from entrenar_core.errors import UsageError
from entrenar_core.quantization.mixes import MIXES, mix_named
from entrenar_core.units import parse_size


def _bytes(value: object) -> object:
    """What is no size stays as it is, for the type to refuse."""
    try:
        return parse_size(value) if isinstance(value, str) else value
    except UsageError:
        return value


def _mix(value: object) -> object:
    """One spelling of a mix of types; what is no text stays as it is, for the type to refuse."""
    if not isinstance(value, str):
        return value
    try:
        return mix_named(value).name
    except UsageError:
        raise ValueError(f"should be one of {', '.join(MIXES)}") from None


# A title says in plain words what is accepted; errors quote it.
Count = Annotated[int, Field(strict=True, ge=1, lt=2**31, title="a whole number, at least 1")]
Index = Annotated[int, Field(strict=True, ge=0, lt=2**31, title="a whole number, at least 0")]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32, title="a whole number, at least 0 and below 2³²")]
Decay = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False, title="a number from 0 to below 1")]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False, title="a number above 0")]
NonNegative = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False, title="a number, at least 0")]
Weight = Annotated[float, Field(strict=True, ge=0, le=1e6, allow_inf_nan=False, title="a number from 0 to 1,000,000")]
Rate = Annotated[float, Field(strict=True, gt=0, le=1e30, title="a number above 0, at most 1e30")]
Fraction = Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False, title="a number between 0 and 1")]
Temperature = Annotated[float, Field(strict=True, ge=0.01, le=1000, title="a number from 0.01 to 1000")]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False, title="a number from 0 to 1")]
Probability = Annotated[
    float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False, title="a number, at least 0 and below 1")
]
Switch = Annotated[bool, Field(strict=True, title="true or false")]
Text = Annotated[str, Field(strict=True, min_length=1, title="a text that is not empty")]
Texts = Annotated[tuple[Text, ...], Field(min_length=1, title="a list of at least one text, such as [a, b]")]
Size = Annotated[
    int, BeforeValidator(_bytes), Field(strict=True, ge=1, lt=2**60, title="a size such as 2GB, or a number of bytes")
]
MixName = Annotated[str, BeforeValidator(_mix), Field(strict=True, title="a type such as q4_k_m")]
Folder = Annotated[Path, Field(title="the path of a folder")]


class Section(BaseModel):
    """A group of settings: immutable, and closed to keys that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False, protected_namespaces=())
