"""What `calibrate` returns."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RateRow:
    """One thing that was timed: how many units of `unit` in a second, the median of so many rounds, and of the slowest
    and the fastest round. `kind` is a training step's forward and backward pass (`training`), the optimiser's part of
    it (`update`), a forward pass alone (`reading`), or the writing of a token (`decoding`).
    """

    kind: str
    precision: str
    model: str
    unit: str
    per_second: float
    slowest_per_second: float
    fastest_per_second: float
    rounds: int


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """What was measured on a machine and is kept in `file`. `process_bytes` is what a process takes of the device's
    memory before there is a model; `rounding_bytes` and `workspace_bytes` are None where they were not measured.
    """

    device: str
    name: str
    torch_version: str
    threads: int | None
    measured_at: str
    file: Path
    process_bytes: int
    rounding_bytes: int | None
    workspace_bytes: int | None
    rates: tuple[RateRow, ...]
    notes: tuple[str, ...]
