"""What `convert` returns."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class AdapterConversion:
    """What was written. `cast` counts tensors whose dtype changed, `folded` modules into whose B a part of the scale
    went, and `relative_rms` is how far the values of these moved; None where there are none.
    """

    source: str
    source_format: str
    output: Path
    form: str
    files: tuple[str, ...]
    size_bytes: int
    tensors: int
    parameters: int
    cast: int
    folded: int
    relative_rms: float | None
    notes: tuple[str, ...]
