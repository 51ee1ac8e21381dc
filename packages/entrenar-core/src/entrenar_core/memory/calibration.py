"""What `entrenar-inspect calibrate` measured on a machine, and where it is kept.

A calibration holds for the device, the version of torch and, of a processor, the number of threads that it was made
with. Others are there for other machines that share the folder; they are not used, and it is said that they are not.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Literal

from entrenar_core.errors import EntrenarError, UsageError
from entrenar_core.memory.jobs import DeviceType
from entrenar_core.user_folder import user_folder

Precision = Literal["fp32", "bf16", "fp16"]
Kind = Literal["training", "update", "reading", "decoding"]
"""What was timed: the forward and backward pass of a training step; the optimiser's part of it; a forward pass alone;
the writing of a token.
"""
ModelName = Literal["tiny", "small", "medium"]
"""What it is measured with: Llamas of a few thousand weights, of millions, and of as many as keep the device busy."""
UNITS: dict[Kind, str] = {"training": "FLOP", "update": "parameters", "reading": "FLOP", "decoding": "bytes"}

_FORMAT = 1
_MOST, _ROUNDED = 1 << 60, 1 << 30
"""No operations, seconds or bytes of a step are as many, and no allocator rounds to more; beyond it is damage."""
_AGAIN = "calibrate again: `entrenar-inspect calibrate`"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a calibration holds for. `threads` are those of a processor, 0 of other devices."""

    device: DeviceType
    name: str
    torch_version: str
    threads: int

    def __str__(self) -> str:
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.threads else ""
        return f"{self.name}, torch {self.torch_version}{threads}"


@dataclass(frozen=True, slots=True)
class Rate:
    """One thing that was timed: `amount` of its unit (`UNITS`) in each of so many `seconds`."""

    kind: Kind
    precision: Precision
    model: str
    amount: int
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        if not 0 < self.amount < _MOST or not self.seconds or not all(0 < one < _MOST for one in self.seconds):
            raise ValueError(f"the rate of {self.kind} is of no amount or no time that can be")

    @property
    def per_second(self) -> float:
        """The median."""
        return self.amount / median(self.seconds)

    @property
    def slowest(self) -> float:
        """Of the round that took longest, in units per second."""
        return self.amount / max(self.seconds)

    @property
    def fastest(self) -> float:
        """Of the shortest round."""
        return self.amount / min(self.seconds)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What was measured, in bytes and rates. What could not be measured is None, or in `notes`."""

    setting: Setting
    measured_at: str
    process_bytes: int
    rounding_bytes: int | None
    workspace_bytes: int | None
    rates: tuple[Rate, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        held = (self.process_bytes, self.workspace_bytes or 0)
        if not all(0 <= size_bytes < _MOST for size_bytes in held) or not 1 <= (self.rounding_bytes or 1) <= _ROUNDED:
            raise ValueError("a number of bytes is none that can be")
        datetime.fromisoformat(self.measured_at)

    @property
    def day(self) -> str:
        """The date of it."""
        return self.measured_at[:10]

    def rates_of(self, kind: Kind, precision: Precision) -> tuple[Rate, ...]:
        """By what they were measured with, the smallest first."""
        found = (rate for rate in self.rates if (rate.kind, rate.precision) == (kind, precision))
        return tuple(sorted(found, key=lambda rate: rate.amount))


@dataclass(frozen=True, slots=True)
class Kept:
    """The calibration of this machine, if there is one, and what is said of those that do not hold here."""

    calibration: Calibration | None
    ignored: tuple[str, ...] = ()


def calibrations_folder() -> Path:
    """Where calibrations are kept."""
    return user_folder() / "calibrations"


def setting_of(device: DeviceType) -> Setting:
    """What a calibration would hold for that were made now; of a processor, with the threads that torch uses."""
    from entrenar_core.memory.machine import this_machine

    threads = 0
    if device == "cpu":
        import torch

        threads = torch.get_num_threads()
    return Setting(device, this_machine(device).name, version("torch"), threads)


def kept_calibration(device: DeviceType) -> Kept:
    """What was measured on this device with this torch.

    Raises:
        EntrenarError: the file is damaged.
    """
    files = sorted(calibrations_folder().glob(f"{device}-*.json"))
    if not files:
        return Kept(None)
    try:
        setting = setting_of(device)
    except UsageError as error:  # memory may be predicted for a device that is not here
        return Kept(None, (f"calibrations of {device} are not used: {error.message}",))
    own = file_of(setting)
    calibration = read_calibration(own) if own in files else None
    if calibration is not None and calibration.setting != setting:
        raise _damaged(own, f"it is of {calibration.setting}")
    return Kept(calibration, tuple(_ignored(file, setting) for file in files if file != own))


def file_of(setting: Setting) -> Path:
    """Where the calibration for a setting is kept."""
    digest = hashlib.sha256(json.dumps(asdict(setting)).encode()).hexdigest()[:16]
    return calibrations_folder() / f"{setting.device}-{digest}.json"


def read_calibration(file: Path) -> Calibration:
    """A calibration that was kept.

    Raises:
        EntrenarError: the file cannot be read, or is not one.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        stored = json.loads(file.read_bytes())
    except OSError as error:
        raise _damaged(file, error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(file, "it is not JSON") from error
    if not isinstance(stored, dict) or stored.pop("format", None) != _FORMAT:
        raise _damaged(file, f"it does not say `format: {_FORMAT}`")
    try:
        return TypeAdapter(Calibration).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise _damaged(file, f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}") from error


def keep_calibration(calibration: Calibration) -> Path:
    """Keeps it in place of an earlier one for the same setting, and says where.

    Raises:
        OutputError: it cannot be written; an earlier one is left as it was.
    """
    from entrenar_core.training.files import write_json, writing

    file = file_of(calibration.setting)
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"format": _FORMAT, **asdict(calibration)})
    return file


def _damaged(file: Path, why: str) -> EntrenarError:
    return EntrenarError(f"the calibration {file} is damaged: {why}", _AGAIN)


def _ignored(file: Path, setting: Setting) -> str:
    try:
        other = read_calibration(file)
    except EntrenarError:
        return f"the calibration {file.name} is of another machine or torch, and damaged; it is not used"
    differs = ", ".join(_differences(other.setting, setting))
    return f"the calibration of {other.day} is not used: it is of {differs}"


def _differences(other: Setting, setting: Setting) -> Iterator[str]:
    if other.name != setting.name:
        yield f"{other.name}, and this is {setting.name}"
    if other.torch_version != setting.torch_version:
        yield f"torch {other.torch_version}, and this is {setting.torch_version}"
    if other.threads != setting.threads:
        yield f"{other.threads} threads, and these are {setting.threads}"
