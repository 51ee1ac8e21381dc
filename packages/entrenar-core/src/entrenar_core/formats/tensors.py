"""What every reader of a format gives: the tensors of a file, where their bytes lie, and what else the file says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from entrenar_core.formats.dtypes import Dtype
from entrenar_core.formats.kinds import WeightFormat


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a file. `shape` is in torch's order, `offset` counts bytes from the start of `file`.

    `file` is relative to the folder of the model. `strides`, in values, are there where values do not lie row by row;
    several tensors may lie at one place. A tensor that is not stored as its bytes (`inline`) has no offset: its header
    holds its values.
    """

    name: str
    dtype: Dtype
    shape: tuple[int, ...]
    file: str
    offset: int
    size_bytes: int
    strides: tuple[int, ...] | None = None
    inline: bool = False

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The first byte after it."""
        return self.offset + self.size_bytes


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    `oddities` are what common readers let pass and a strict one should not, a sentence each. `inline` has the bytes,
    little-endian and row by row, of the tensors that the header itself holds. `details` is what only its format has.
    """

    format: WeightFormat
    tensors: tuple[StoredTensor, ...]
    metadata: Mapping[str, Any]
    header_bytes: int
    oddities: tuple[str, ...] = ()
    inline: Mapping[str, bytes] = field(default_factory=dict)
    details: Any = None


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with the files of a model, though its tensors can be read: an index that says something else than
    the headers of shards do, or settings that are broken. A `harmless` one stops no program that loads the model.
    """

    about: Literal["shards", "settings"]
    message: str
    harmless: bool = False
