"""What devices take beside tensors: the rows of `constants.toml`, and over them what was measured on this machine."""

import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from entrenar_core.memory.calibration import Calibration, kept_calibration
from entrenar_core.memory.jobs import DeviceType
from entrenar_core.units import size


@dataclass(frozen=True, slots=True)
class Constant:
    """So many bytes, and where this is known from. What is not `measured` is assumed."""

    size_bytes: int
    source: str
    measured: bool


@dataclass(frozen=True, slots=True)
class DeviceConstants:
    """Of one device: what a tensor's bytes are rounded up to, what the process takes of its memory, and what libraries
    take while they multiply.

    `kept_share` is what the allocator may keep of memory that was freed, as a share of the peak of tensors. Where a
    calibration of this machine was laid over them, it is `calibrated`, with the date and the version of torch; `notes`
    are about calibrations that do not hold here. `adapters_bytes` are what a process takes more that trains adapters.
    """

    device: DeviceType
    rounding: Constant
    process: Constant
    workspace: Constant
    kept_share: float = 0.0
    calibrated: bool = False
    calibrated_at: str | None = None
    torch_version: str | None = None
    notes: tuple[str, ...] = ()
    adapters_bytes: int = 0

    @property
    def beside_bytes(self) -> int:
        """Process and workspace together."""
        return self.process.size_bytes + self.workspace.size_bytes

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is to be said of these figures where they are used."""
        said = {"rounding": self.rounding, "process": self.process, "workspace": self.workspace}
        return (*(f"{name}: {size(one.size_bytes)} ({one.source})" for name, one in said.items()), *self.notes)


def constants_of(device: DeviceType) -> DeviceConstants:
    """The constants of a device, as they were measured here if it was calibrated, as the table has them if not.

    Raises:
        EntrenarError: the calibration is damaged.
    """
    kept = kept_calibration(device)
    return constants_with(device, kept.calibration, kept.ignored)


def constants_with(device: DeviceType, calibration: Calibration | None, notes: tuple[str, ...] = ()) -> DeviceConstants:
    """The constants of a device, and over them those of a calibration."""
    table, kept = _table()[device], _kept_shares().get(device, 0.0)
    adapters = table["adapters"].size_bytes if "adapters" in table else 0
    if calibration is None:
        return DeviceConstants(
            device,
            table["rounding"],
            table["process"],
            table["workspace"],
            kept,
            notes=notes,
            adapters_bytes=adapters,
        )
    source = f"measured here on {calibration.day}, with torch {calibration.setting.torch_version}"

    def over(name: str, size_bytes: int | None) -> Constant:
        return table[name] if size_bytes is None else Constant(size_bytes, source, measured=True)

    return DeviceConstants(
        device,
        over("rounding", calibration.rounding_bytes),
        over("process", calibration.process_bytes),
        over("workspace", calibration.workspace_bytes),
        kept,
        calibrated=True,
        calibrated_at=calibration.measured_at,
        torch_version=calibration.setting.torch_version,
        notes=notes,
        adapters_bytes=adapters,
    )


@cache
def _table() -> dict[str, dict[str, Constant]]:
    return {
        device: {
            name: Constant(row["bytes"], row["source"], row["measured"]) for name, row in one.items() if "bytes" in row
        }
        for device, one in _rows().items()
    }


def _kept_shares() -> dict[str, float]:
    return {device: one["kept"]["share"] for device, one in _rows().items() if "kept" in one}


@cache
def _rows() -> dict[str, dict[str, Any]]:
    return tomllib.loads(files(__package__).joinpath("constants.toml").read_text("utf-8"))
