"""How `plan` looks: the configuration in a box, what binds and what else would fit, and what was valued."""

from collections.abc import Iterator, Sequence

from entrenar_common.output import Block
from entrenar_common.tables import Amount, Cell, Column, Table, key_values
from entrenar_core.units import count, duration, percent, size
from entrenar_lora.reports.advice import Advice
from entrenar_lora.reports.plan import PlanReport, RunnerUp, Setting

_METHODS = {"lora": "LoRA", "dora": "DoRA", "full": "full fine-tuning"}


def plan(report: PlanReport) -> list[Block]:
    """What to do; or by how much nothing fits."""
    blocks: list[Block] = [_chosen(report, report.chosen) if report.chosen else _nothing(report)]
    if report.binds:
        blocks.append(Table("What binds", ("",), tuple((text,) for text in report.binds)))
    if report.runners_up:
        blocks.append(_runners_up(report.runners_up))
    if report.advice is not None:
        blocks += _advice(report.advice)
    values: dict[str, Cell] = {
        row.dimension: f"{row.chosen or 'none fits'}, of {', '.join(row.order)}: {row.why} ({row.source})"
        for row in report.values
    }
    title = f"Valued by --quality {report.quality}, in this order: {report.says}"
    return [*blocks, key_values(title, values)]


def quiet(report: PlanReport) -> Sequence[str]:
    """The file that was written."""
    return [] if report.written is None else [report.written]


def method_of(setting: Setting) -> str:
    """As it is called."""
    name = _METHODS[setting.method]
    if setting.quantisation is None:
        return name
    bits = 8 if setting.quantisation == "int8" else 4
    return f"Q{name} ({bits}-bit {setting.quantisation})"


def _chosen(report: PlanReport, setting: Setting) -> Table:
    speed = setting.speed
    times = None if speed.times is None else Amount(speed.times, f"{speed.times:.1f}x, by {speed.how}")
    facts: dict[str, Cell] = {
        "Method": method_of(setting),
        "Rank": setting.rank,
        "Alpha": _alpha(setting),
        "Target Modules": ", ".join(setting.modules) or None,
        "Trainable Parameters": Amount(
            setting.trainable_parameters,
            f"{count(setting.trainable_parameters)} ({percent(setting.share, 2)} of {count(setting.parameters)})",
        ),
        "Predicted Memory": Amount(
            setting.needed_bytes, f"{size(setting.needed_bytes)} ({percent(report.use or 0)} of the limit)"
        ),
        "Rows of a pass": f"{setting.micro_batch} × {setting.accumulation} = {setting.batch_size} of a step",
        "Gradient checkpointing": setting.checkpointing,
        "Optimizer": setting.optimizer,
        "Weights": f"{setting.quantisation or setting.weights}, computed in {_computed(setting)}",
        "Speed beside full fine-tuning": times,
        "Time of a step": None if speed.seconds is None else Amount(speed.seconds, duration(speed.seconds)),
    }
    known = {name: value for name, value in facts.items() if value is not None}
    return key_values(_title("Recommended Configuration", report), known, tuple(_notes(report)))


def _alpha(setting: Setting) -> Amount | None:
    return None if setting.alpha is None else Amount(setting.alpha, f"{setting.alpha:g} ({setting.alpha_why})")


def _computed(setting: Setting) -> str:
    return setting.weights if setting.precision == "no" else setting.precision


def _title(what: str, report: PlanReport) -> str:
    return f"{what} of {report.model} for {size(report.limit_bytes)} ({report.device})"


def _nothing(report: PlanReport) -> Table:
    smallest = report.smallest
    assert smallest is not None, "what takes least"
    facts: dict[str, Cell] = {
        "Fits": False,
        "Missing": Amount(report.missing_bytes, size(report.missing_bytes)),
        "The smallest needs": Amount(smallest.needed_bytes, size(smallest.needed_bytes)),
        "It is": f"{method_of(smallest)}"
        + (f", rank {smallest.rank}, {', '.join(smallest.modules)}" if smallest.rank else "")
        + f", {smallest.micro_batch} row of {report.sequence_length:,} tokens, {smallest.optimizer}"
        + (", checkpoints" if smallest.checkpointing else ""),
    }
    advice = "shorter rows (--sequence-length), a smaller model, or more memory"
    if smallest.quantisation is None:
        advice += "; weights in 4 bits (--method qlora)"
    return key_values(_title("No Configuration", report), facts, (*_notes(report), f"what may help: {advice}"))


def _notes(report: PlanReport) -> Iterator[str]:
    if report.note is not None:
        yield report.note
    left = size(report.limit_bytes - report.usable_bytes)
    yield f"{report.machine}, of which {left} are left free (--reserve)"
    yield f"memory is a predicted peak with {size(report.process_bytes)} of the process, and what an allocator keeps"
    plans = "1 plan was" if report.predictions == 1 else f"{report.predictions} plans were"
    yield f"{plans} predicted; that and what was measured took {duration(report.took_s)}"
    if report.written is not None:
        yield f"written to {report.written}" + (f"; to fill in: {', '.join(report.places)}" if report.places else "")


def _runners_up(runners_up: Sequence[RunnerUp]) -> Table:
    rows = tuple(
        (
            one.differs,
            method_of(one.setting),
            one.setting.rank,
            Amount(one.setting.needed_bytes, size(one.setting.needed_bytes)),
            Amount(one.saved_bytes, _change(one.saved_bytes)),
            None if one.times is None else Amount(one.times, f"{one.times:.2f}x"),
        )
        for one in runners_up
    )
    headings = ("differs in", "method", "rank", Column("memory", "right"), Column("saves", "right"), "speed beside it")
    return Table("Runners-up", headings, rows)


def _change(size_bytes: int) -> str:
    return f"-{size(-size_bytes)}" if size_bytes < 0 else size(size_bytes)


def _advice(advice: Advice) -> Iterator[Block]:
    quantised = advice.quantisation
    if quantised is not None and quantised.measured:
        rows: list[tuple[Cell, ...]] = [("all", *quantised.overall.values())]
        rows += [(one.name, *one.errors.values()) for one in quantised.worst]
        title = f"Measured errors of quantisation, {quantised.matrices} matrices"
        yield Table(title, ("", *quantised.overall), tuple(rows), (quantised.says or "",))
    elif quantised is not None:
        yield f"Errors of quantisation were not measured: {quantised.why_not}."
    if advice.modules is not None:
        scores = tuple((one.name, one.matrices, one.gradient_norm, one.gradient_rms) for one in advice.modules.scores)
        note = f"suggested: {', '.join(advice.modules.suggested)}"
        title = f"Gradients of modules on {advice.modules.rows} rows"
        yield Table(title, ("modules", "matrices", "norm", "for each weight"), scores, (note,))
    if advice.rank is not None:
        rank = advice.rank
        yield (
            f"{percent(rank.energy, 0)} of the square of gradients on {rank.rows} rows is in {rank.median:g} "
            f"directions of a matrix as a rule, {rank.largest} at most: rank {rank.suggested} holds for nearly all."
        )
