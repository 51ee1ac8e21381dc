"""`plan`: the best way to train a model within a limit of memory, by what a quality profile values."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from entrenar_common.progress import Progress
from entrenar_core.config.schema import Task
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.memory.jobs import DeviceType
from entrenar_lora.planning_jobs import Asked, Predictions
from entrenar_lora.planning_search import FULL, Candidate, Search, Values
from entrenar_lora.planning_telling import assumptions, binding, rows_of, runners_up
from entrenar_lora.profiles import Dimension, Profile, Quality, profiles
from entrenar_lora.reports.advice import Advice
from entrenar_lora.reports.plan import PlanReport
from entrenar_lora.resolving import Precision, Subject, machine_of, precision_on, resolved

Method = Literal["auto", "full", "lora", "qlora", "dora"]
_LARGE = 10**9
"""Parameters above which there is no doubt that weights in 4 bits take less than those in 16, and adapters than all."""


RESERVE = 0.05
"""Of a limit that is left free: about what a prediction may be off by."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked; the flags of the command say what each of them means."""

    vram: str | None = None
    device: DeviceType | None = None
    method: Method = "auto"
    rank: int | None = None
    targets: str | None = None
    batch_size: int = 4
    sequence_length: int = 1024
    quality: Quality = "balanced"
    precision: Precision | None = None
    write: Path | None = None
    dataset: str | None = None
    sample: int | None = None
    calibrate: bool = False
    revision: str | None = None
    task: Task | None = None
    force: bool = False
    reserve: float = RESERVE


def plan(model: str, wanted: Wanted) -> PlanReport:
    """The best plan that fits, and the next two; without one, how much is missing.

    Raises:
        EntrenarError: of the kind that fits: there is no such model or device, options exclude each other, or the
            model takes none of what was asked for.
    """
    _require_sense(wanted)
    from entrenar_core.memory.machine import named_machine

    if wanted.vram is not None:
        named_machine(wanted.vram)  # a mistake in it is told before torch is loaded
    began = time.monotonic()
    with Progress() as progress:
        task = progress.task("loading libraries")
        subject = resolved(model, wanted.revision, wanted.task)
        machine = machine_of(wanted.vram, wanted.device, subject)
        if machine is None:
            raise UsageError(f"{model} is a known size: on which machine?", "say --vram 16GB, or --device")
        from entrenar_core.memory.constants import constants_of
        from entrenar_core.memory.positions import require_positions

        require_positions(subject.config, wanted.sequence_length, model)
        asked = Asked(
            subject,
            wanted.batch_size,
            wanted.sequence_length,
            machine.device,
            precision_on(machine.device, wanted.precision),
        )
        constants = constants_of(machine.device)
        predictions = Predictions(asked, constants)
        task.end()
        advice = _advice(subject, wanted, progress)
        profile = profiles()[wanted.quality]
        values = _suggested(_known_modules(values_of(profile, wanted), subject), wanted, advice)
        task = progress.task("plans")

        def needs(candidate: Candidate) -> int | None:
            task.advance(note=_short(candidate))
            return predictions.needs(candidate)

        usable = round(machine.available_bytes * (1 - wanted.reserve))
        search = Search(values, needs, usable, _sure(asked, predictions))
        report = _report(PlanReport(
            model=model, note=subject.note, device=machine.device, machine=machine.name,
            limit_bytes=machine.available_bytes, usable_bytes=usable, process_bytes=constants.beside_bytes,
            sequence_length=wanted.sequence_length, quality=profile.name, says=profile.says,
            values=(), chosen=None, advice=advice,
        ), search, predictions, profile, wanted)  # fmt: skip
        if wanted.calibrate:
            from entrenar_lora.planning_speed import measured

            report = measured(report, predictions, search, machine)
        task.end()
    report = replace(report, took_s=time.monotonic() - began, predictions=search.asked)
    if wanted.write is not None and report.chosen is not None:
        from entrenar_lora.planning_writing import write

        report = write(report, subject, wanted.write, wanted.dataset, force=wanted.force)
    return report


def _require_sense(wanted: Wanted) -> None:
    """Options that exclude each other, or need one another.

    Raises:
        UsageError: some do.
    """
    if wanted.method == FULL and (wanted.rank is not None or wanted.targets is not None):
        flag = "--rank" if wanted.rank is not None else "--targets"
        raise UsageError(f"{flag} is of adapters, and --method full trains all weights", f"leave {flag} out")
    if wanted.sample is not None and wanted.rank is not None and wanted.targets is not None:
        raise UsageError("--sample chooses rank and modules, and both are given", "leave --sample, or one of them, out")
    if wanted.sample is not None and wanted.method == FULL:
        raise UsageError("--sample chooses rank and modules, and --method full has none", "leave --sample out")
    if wanted.sample is not None and wanted.dataset is None:
        raise UsageError("--sample takes rows of a data set", "name one: --dataset")
    if wanted.calibrate and wanted.vram is not None:
        raise UsageError("--calibrate takes real steps on this machine", "leave --vram out")
    if wanted.write is not None and wanted.write.exists() and not wanted.force:
        raise UsageError(f"{wanted.write} is there already", "name another file, or add --force")


def values_of(profile: Profile, wanted: Wanted) -> Values:
    """What may be chosen: what the profile names, but for what was asked for."""
    found: dict[Dimension, Sequence[object]] = {one.dimension: one.order for one in profile.values}
    rows = wanted.batch_size
    found["micro_batch"] = [size for size in range(rows, 0, -1) if rows % size == 0]
    if wanted.method != "auto":
        found["method"] = ["lora" if wanted.method == "qlora" else wanted.method]
    elif wanted.rank is not None or wanted.targets is not None:
        found["method"] = [one for one in found["method"] if one != FULL]
    if wanted.method == "qlora":
        found["quantisation"] = ["nf4"]
    elif wanted.method == "lora":
        found["quantisation"] = ["none"]
    if wanted.rank is not None:
        found["rank"] = [wanted.rank]
    if wanted.targets is not None:
        found["modules"] = [_targets(wanted.targets)]
    return found


def _targets(text: str) -> str | tuple[str, ...]:
    from entrenar_core.config.adapters import GROUPS

    if text in GROUPS:
        return text
    names = tuple(one.strip() for one in text.split(",") if one.strip())
    if not names:
        raise UsageError("--targets names no module", f"give one of {', '.join(GROUPS)}, or names: q_proj,v_proj")
    return names


def _known_modules(values: Values, subject: Subject) -> Values:
    """Without groups that no table knows in this family: every linear layer, where none is left."""
    from entrenar_core.config.adapters import GROUPS
    from entrenar_core.models.adapter_targets import ALL_LINEAR, targets_of_group

    config = subject.config.to_dict()
    unknown = {group for group in GROUPS if targets_of_group(config, group) is None}
    return {**values, "modules": [one for one in values["modules"] if one not in unknown] or [ALL_LINEAR]}


def _suggested(values: Values, wanted: Wanted, advice: Advice | None) -> Values:
    """With the modules and the rank that sample data speak for, where nothing else was asked for."""
    found = dict(values)
    if advice is not None and advice.modules is not None and wanted.targets is None:
        found["modules"] = [advice.modules.suggested, *(one for one in values["modules"])]
    if advice is not None and advice.rank is not None and wanted.rank is None:
        most = advice.rank.suggested
        found["rank"] = [one for one in values["rank"] if isinstance(one, int) and one <= most] or values["rank"][-1:]
    return found


def _advised(advice: Advice | None, wanted: Wanted) -> dict[Dimension, tuple[str, str]]:
    """Reason and source of what `_suggested` puts first."""
    from entrenar_lora.advising.gradients import SUGGESTED

    found: dict[Dimension, tuple[str, str]] = {}
    if advice is not None and advice.modules is not None and wanted.targets is None:
        found["modules"] = (
            f"on {advice.modules.rows} rows their gradients for a weight are {SUGGESTED:.0%} of the longest or more; "
            "then groups",
            "the idea of Zhang et al. 2023, arXiv:2303.10512",
        )
    if advice is not None and advice.rank is not None and wanted.rank is None:
        found["rank"] = (
            f"rank {advice.rank.suggested} keeps {advice.rank.energy:.0%} of the square of most gradients of the rows",
            "the idea of Wang et al. 2024, arXiv:2407.05000",
        )
    return found


def _advice(subject: Subject, wanted: Wanted, progress: Progress) -> Advice | None:
    from entrenar_lora.advising import advise

    if wanted.method == FULL:
        return None
    gradients = wanted.sample is not None and (wanted.rank is None or wanted.targets is None)
    return advise(subject, wanted.dataset, wanted.sample, wanted.sequence_length, progress, gradients=gradients)


def _sure(asked: Asked, predictions: Predictions) -> tuple[Dimension, ...]:
    """Of which things it is known which value takes least."""
    from entrenar_core.memory.closed_form import weights_of

    large = weights_of(predictions.asked.subject.held("bf16"))[1] >= _LARGE
    return () if not large else ("method", "quantisation", *(("optimizer",) if asked.device != "cpu" else ()))


def _report(
    report: PlanReport, search: Search, predictions: Predictions, profile: Profile, wanted: Wanted
) -> PlanReport:
    chosen, given = search.best()
    advised = _advised(report.advice, wanted)
    rows = tuple(rows_of(profile, search.values, chosen, advised))
    if chosen is None:
        least = search.smallest()
        if least is None:
            raise _refusal(predictions)
        setting = predictions.setting(least[0], 0.0)
        return replace(report, values=rows, smallest=setting, missing_bytes=least[1] - report.usable_bytes)
    full = predictions.full_flops_per_token()
    setting = predictions.setting(chosen, full)
    estimate = predictions.estimate(chosen)
    assert estimate is not None, "it fits"
    return replace(
        report,
        values=rows,
        chosen=setting,
        runners_up=tuple(runners_up(search, predictions, chosen, setting, full, advised)),
        binds=tuple(binding(given, setting)),
        assumptions=tuple(assumptions(predictions, chosen)),
    )


def _refusal(predictions: Predictions) -> Exception:
    if predictions.refused:
        return predictions.refused[0]
    return ModelError("this model takes none of what was asked for", "ask for another method")


def _short(candidate: Candidate) -> str:
    parts = [candidate.method, candidate.quantisation, candidate.rank and f"r={candidate.rank}"]
    return " ".join(str(part) for part in parts if part and part != "none")
