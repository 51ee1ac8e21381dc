"""How the memory of a job or a run looks: the same in every tool."""

from collections.abc import Iterator
from dataclasses import replace

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.memory.report import Alternative, MemoryReport, PartMemory, PhasePeak, Tried
from entrenar_core.memory.timing import StepTime
from entrenar_core.units import count, duration, percent, size

_METHODS = {
    "traced": "traced, layer by layer",
    "extrapolated": "a few layers traced, the others told from them",
    "closed form": "by formulas",
}


def memory(report: MemoryReport) -> list[Block]:
    """The verdict, what the peak is made of, when it is, and what else could be done."""
    blocks: list[Block] = [_verdict(report), _components(report), _phases(report)]
    if report.layers:
        blocks.append(_layers(report))
    if report.alternatives:
        blocks.append(_others("Other ways to train", report.alternatives))
    if report.changes:
        blocks.append(_others("Single changes, each predicted", report.changes))
    return blocks


def bytes_cell(size_bytes: int | None) -> Cell:
    """A size for a reader, and its bytes for a script."""
    return None if size_bytes is None else Amount(size_bytes, size(size_bytes))


def _verdict(report: MemoryReport) -> Table:
    part = report.largest
    facts: dict[str, Cell] = {"peak, predicted": bytes_cell(report.peak_bytes), "when": _when(report, part)}
    if report.process_bytes:
        facts["the process beside it"] = bytes_cell(report.process_bytes)
    if report.devices > 1:
        shared = ", which share its memory" if report.device == "cpu" else ""
        facts["devices"] = f"{report.devices}, each with this{shared}"
    if part.host_bytes:
        facts["in main memory beside"] = bytes_cell(part.host_bytes)
    if report.available_bytes is not None:
        facts["available"] = Amount(report.available_bytes, f"{size(report.available_bytes)}, {report.machine}")
        facts["fits"] = _fits(report)
    last = report.parts[-1]
    facts["parameters"] = _parameters(last, max(one.teacher_parameters for one in report.parts))
    if last.flops:
        facts["operations of a step"] = Amount(last.flops, f"{count(last.flops)} floating-point operations")
    if report.step_time is not None:
        facts["time of a step"] = _time(report.step_time)
    if report.run_time is not None and report.run_time.known:
        facts["time of the run"] = _time(replace(report.run_time, how="without evaluations"))
    if report.tried is not None and report.tried.peak_bytes is not None:
        facts["peak, measured"] = _tried(report.tried)
    if report.batch:
        facts["batch"] = report.batch
    facts["how"] = _METHODS[part.method]
    return key_values(f"Memory: {report.subject}", facts, tuple(_notes(report)))


def _time(found: StepTime) -> Cell:
    if found.seconds is None or found.low_s is None or found.high_s is None:
        return found.how
    spread = f" ({duration(found.low_s)} to {duration(found.high_s)})"
    return Amount(found.seconds, f"{duration(found.seconds)}{spread}, {found.how}")


def _tried(tried: Tried) -> Cell:
    assert tried.peak_bytes is not None, "asked before"
    said = f"{size(tried.peak_bytes)} in {tried.steps + 1} real steps"
    return Amount(
        tried.peak_bytes, said if tried.error is None else f"{said}; the prediction is {tried.error:+.1%} off"
    )


def _fits(report: MemoryReport) -> str:
    assert report.available_bytes is not None, "of a machine"
    share = percent(report.needed_bytes / max(report.available_bytes, 1), 0)
    if report.tight:
        return f"just: {share} of it, and up to {size(report.at_most_bytes)} if the allocator keeps what is freed"
    if report.fits:
        return f"yes, {share} of it"
    return f"no: {size(report.needed_bytes)} are needed, {share} of it"


def _when(report: MemoryReport, part: PartMemory) -> str:
    where = "" if part.layer is None else ", behind the layers" if part.behind else f", layer {part.layer}"
    name = f"{part.name}: " if len(report.parts) > 1 else ""
    return f"{name}{part.phase}{where}"


def _parameters(part: PartMemory, of_teacher: int) -> str:
    said = [f"{count(part.parameters)}"] if part.parameters else []
    if part.trainable_parameters and part.trainable_parameters != part.parameters:
        share = percent(part.trainable_parameters / part.parameters, 2)
        said.append(f"{count(part.trainable_parameters)} of them trained ({share})")
    if of_teacher:
        said.append(f"teacher {count(of_teacher)}")
    return ", ".join(said)


def _notes(report: MemoryReport) -> Iterator[str]:
    if report.enough:
        yield f"it would fit with {' and '.join(report.enough)}"
    elif report.fits is False:
        yield "no few changes make it fit: take a smaller model, or a larger machine"
    yield "predictions: see `--json` for all that they assume"


def _components(report: MemoryReport) -> Table:
    part = report.largest
    alone = all(not one.teacher_parameters for one in report.parts)
    rows = [
        (_named(name, alone), bytes_cell(held), percent(held / part.peak_bytes))
        for name, held in part.components.items()
    ]
    dtypes = ", ".join(f"{name} {size(held)}" for name, held in part.dtypes.items() if held >= part.peak_bytes / 1000)
    columns = ("", Column("bytes", "right"), Column("share", "right"))
    return Table("At the peak", columns, tuple(rows), (f"by precision: {dtypes}",))


def _named(component: str, alone: bool) -> str:
    """Of a model that nobody teaches."""
    return "weights" if alone and component == "student weights" else component


def _phases(report: MemoryReport) -> Table:
    several, alone = len(report.parts) > 1, all(not part.teacher_parameters for part in report.parts)
    rows = [
        (
            f"{part.name}: {phase.phase}" if several else phase.phase,
            bytes_cell(phase.peak_bytes),
            _largest(phase, alone),
        )
        for part in report.parts
        for phase in part.phases
    ]
    return Table("The most in each phase", ("", Column("bytes", "right"), "mostly"), tuple(rows))


def _largest(phase: PhasePeak, alone: bool) -> str:
    ordered = sorted(phase.components.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{_named(name, alone)} {size(held)}" for name, held in ordered)


def _layers(report: MemoryReport) -> Table:
    names = list(dict.fromkeys(name for layer in report.layers for name in layer.components))
    rows = [(layer.layer, *(bytes_cell(layer.components.get(name)) for name in names)) for layer in report.layers]
    return Table("By layer", ("layer", *(Column(name, "right") for name in names)), tuple(rows))


def _others(title: str, found: tuple[Alternative, ...]) -> Table:
    rows = [
        (one.name, bytes_cell(one.peak_bytes), bytes_cell(one.saving_bytes), one.fits, count(one.trainable_parameters))
        for one in found
    ]
    columns = ("", Column("peak", "right"), Column("saves", "right"), "fits", Column("trained", "right"))
    return Table(title, columns, tuple(rows))
