"""`compare`: methods of fine-tuning one model side by side, what each needs, trains and computes.

Of the quality of what comes out nothing is computed: what was published of a method is quoted, with its source.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from entrenar_common.progress import Progress
from entrenar_core.config.schema import Task
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.memory.jobs import DeviceType
from entrenar_lora.comparing_methods import USUAL, Method, methods_named, published_of
from entrenar_lora.planning_jobs import COUNTED, Asked, flops_per_token, with_process
from entrenar_lora.reports.compare import CompareReport, MethodRow
from entrenar_lora.reports.plan import Speed
from entrenar_lora.resolving import Precision, machine_of, precision_on, resolved

if TYPE_CHECKING:
    from entrenar_core.memory.constants import DeviceConstants
    from entrenar_core.memory.jobs import TrainingJob
    from entrenar_core.memory.machine import Machine


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked; the flags of the command say what each of them means."""

    methods: str = USUAL
    vram: str | None = None
    device: DeviceType | None = None
    batch_size: int = 4
    sequence_length: int = 1024
    precision: Precision | None = None
    checkpointing: bool = False
    calibrate: bool = False
    revision: str | None = None
    task: Task | None = None


def compare(model: str, wanted: Wanted) -> CompareReport:
    """Every method that is named, in this order.

    Raises:
        EntrenarError: of the kind that fits: there is no such model, device or method.
    """
    methods = methods_named(wanted.methods)
    if wanted.calibrate and wanted.vram is not None:
        raise UsageError("--calibrate takes real steps on this machine", "leave --vram out")
    from entrenar_core.memory.machine import asked_machine, named_machine

    if wanted.vram is not None:
        named_machine(wanted.vram)
    with Progress() as progress:
        task = progress.task("loading libraries")
        subject = resolved(model, wanted.revision, wanted.task)
        machine = machine_of(wanted.vram, wanted.device, subject)
        if wanted.calibrate and machine is None:
            machine = asked_machine(None)
        from entrenar_core.memory.constants import constants_of
        from entrenar_core.memory.positions import require_positions

        longest = max(getattr(one.adapter, "virtual_tokens", 0) for one in methods)
        require_positions(subject.config, wanted.sequence_length + longest, model)
        device = "cuda" if machine is None else machine.device
        precision = precision_on(device, wanted.precision)
        asked = Asked(subject, wanted.batch_size, wanted.sequence_length, device, precision)
        constants = constants_of(device)
        task.end()
        task = progress.task("methods", total=len(methods))
        comparing = _Comparing(asked, constants, machine, wanted)
        rows = []
        for method in methods:
            rows.append(comparing.row(method))
            task.advance(note=method.name)
        task.end()
    return CompareReport(
        model=model,
        note=subject.note,
        device=device,
        machine=None if machine is None else machine.name,
        limit_bytes=None if machine is None else machine.available_bytes,
        process_bytes=constants.beside_bytes,
        batch_size=wanted.batch_size,
        sequence_length=wanted.sequence_length,
        precision=precision,
        checkpointing=wanted.checkpointing,
        rows=tuple(rows),
        assumptions=tuple(comparing.assumptions()),
    )


class _Comparing:
    """Methods for one model; full training is predicted once, whether it is named or not."""

    def __init__(self, asked: Asked, constants: "DeviceConstants", machine: "Machine | None", wanted: Wanted) -> None:
        self.asked, self.constants, self.machine, self.wanted = asked, constants, machine, wanted
        self._full_flops: float | None = None
        self._full_s: float | None = None
        self._first: Any = None

    def row(self, method: Method) -> MethodRow:
        """What is said of one."""
        from entrenar_core.memory.predicting import predict
        from entrenar_core.training.tuned_report import method_of

        published, what = tuple(published_of(method)), method_of(method.adapter, method.quantisation)
        job = self._job(method)
        try:
            found = predict(job, self.constants.rounding.size_bytes)
        except ModelError as error:
            return MethodRow(method.name, method.kind, what, published=published, why_not=error.message)
        self._first = self._first or (job, found)
        if method.kind == "full":
            self._full_flops = flops_per_token(job, found)
        needed = with_process(self.constants, found.peak_bytes, adapted=method.adapter is not None)
        fits = None if self.machine is None else needed <= self.machine.available_bytes
        return MethodRow(
            method.name,
            method.kind,
            what,
            needed,
            found.peak_bytes,
            fits,
            found.trace.parameters,
            found.trace.trainable_parameters,
            self._speed(job, flops_per_token(job, found) or 0.0, fits=fits),
            published,
        )

    def assumptions(self) -> Iterator[str]:
        """Of the first method."""
        from entrenar_core.memory.assumptions import assumptions_of

        if self._first is not None:
            job, estimate = self._first
            yield from assumptions_of([job], [estimate], self.constants)

    def _job(self, method: Method) -> "TrainingJob":
        return self.asked.job(
            method.adapter,
            method.quantisation,
            micro_batch=self.asked.batch_size,
            checkpointing=self.wanted.checkpointing,
        )

    def _speed(self, job: "TrainingJob", flops: float, *, fits: bool | None) -> Speed:
        counted = self._of_full() / flops if flops else None
        if not self.wanted.calibrate:
            return Speed(flops, counted, COUNTED)
        if not fits:
            return Speed(flops, counted, f"it does not fit here: {COUNTED}")
        from entrenar_lora.planning_speed import seconds_of

        own = seconds_of(job)
        if (full := self._full_seconds()) is None:
            return Speed(
                flops, counted, f"measured; full training does not fit here, so the ratio is of {COUNTED}", own
            )
        return Speed(flops, full / own, "measured", own)

    def _full(self) -> "TrainingJob":
        return self._job(Method("full", "full", None))

    def _of_full(self) -> float:
        if self._full_flops is None:
            from entrenar_core.memory.predicting import predict

            job = self._full()
            self._full_flops = flops_per_token(job, predict(job, self.constants.rounding.size_bytes)) or 0.0
        return self._full_flops

    def _full_seconds(self) -> float | None:
        """None where it does not fit."""
        if self._full_s is None:
            from entrenar_core.memory.predicting import predict
            from entrenar_lora.planning_speed import seconds_of

            job = self._full()
            peak_bytes = predict(job, self.constants.rounding.size_bytes).peak_bytes
            needed = with_process(self.constants, peak_bytes, adapted=False)
            assert self.machine is not None, "this one"
            self._full_s = seconds_of(job) if needed <= self.machine.available_bytes else 0.0
        return self._full_s or None
