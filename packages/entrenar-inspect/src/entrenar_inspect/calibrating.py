"""`entrenar-inspect calibrate`: this machine, as it was measured."""

from typing import TYPE_CHECKING

from entrenar_core.errors import NotFoundError
from entrenar_core.memory.calibration import UNITS, Calibration, Rate, file_of, kept_calibration, setting_of
from entrenar_inspect.reports.calibration import CalibrationReport, RateRow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from entrenar_core.memory.calibration import ModelName
    from entrenar_core.memory.jobs import DeviceType


def calibrate(
    device: "DeviceType | None" = None, models: "Sequence[ModelName]" = ("small", "medium")
) -> CalibrationReport:
    """Measures a device with these models, shows how far it is, and keeps what it finds.

    Raises as `entrenar_core.memory.calibrating.calibrate`.
    """
    from entrenar_common.progress import Progress
    from entrenar_core.memory.calibrating import calibrate as measure

    with Progress() as progress:
        task = progress.task("measures", unit="measurements")
        found = measure(device, lambda done, total, doing: task.update(done, total, doing), models)
    return _report(found, ())


def calibrated(device: "DeviceType | None" = None) -> CalibrationReport:
    """What was measured before.

    Raises:
        NotFoundError: nothing was.
        EntrenarError: its file is damaged.
        UsageError: there is no such device.
    """
    from entrenar_core.memory.machine import default_device

    kind = device or default_device()
    kept = kept_calibration(kind)
    if kept.calibration is None:
        others = f" ({'; '.join(kept.ignored)})" if kept.ignored else ""
        raise NotFoundError(
            f"{setting_of(kind)} was not calibrated{others}", f"run `entrenar-inspect calibrate --device {kind}`"
        )
    return _report(kept.calibration, kept.ignored)


def _report(found: Calibration, ignored: tuple[str, ...]) -> CalibrationReport:
    setting = found.setting
    return CalibrationReport(
        setting.device,
        setting.name,
        setting.torch_version,
        setting.threads or None,
        found.measured_at,
        file_of(setting),
        found.process_bytes,
        found.rounding_bytes,
        found.workspace_bytes,
        tuple(_row(rate) for rate in found.rates),
        (*found.notes, *ignored),
    )


def _row(rate: Rate) -> RateRow:
    return RateRow(
        rate.kind,
        rate.precision,
        rate.model,
        UNITS[rate.kind],
        rate.per_second,
        rate.slowest,
        rate.fastest,
        len(rate.seconds),
    )
