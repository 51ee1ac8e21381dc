"""How the reports look in a terminal."""

from pathlib import Path
from typing import Any

from entrenar_common.memory_views import memory
from entrenar_common.output import Block, View, ViewTable
from entrenar_common.plots import Plot
from entrenar_common.tables import Table, exact, key_values
from entrenar_core.exporting.result import ExportReport
from entrenar_core.memory.report import MemoryReport
from entrenar_core.reports import ExportFacts, ModelFacts, Plan, RunReport
from entrenar_core.training.run_folder import read_metrics
from entrenar_core.units import bound, count, duration, percent, perplexity, size
from entrenar_distill.diagnosis_views import diagnosis
from entrenar_distill.export_views import exported
from entrenar_distill.reports import (
    CacheReport,
    Design,
    DiagnosisReport,
    Loss,
    LossTable,
    ProposedStudent,
    ValidationReport,
)


def run_report(report: RunReport) -> list[Block]:
    """Scores beside each other, then what was made, then how the loss went."""
    blocks: list[Block] = [_scores(report), _facts(report)]
    points = [
        (line["step"], line["loss"]) for line in read_metrics(report.output_dir / "metrics.jsonl") if "loss" in line
    ]
    if len(points) > 1:
        blocks.append(Plot("Loss of the student", {"loss": points}, "optimiser step", "loss"))
    return blocks


def _scores(report: RunReport) -> Table:
    columns = _columns(report)
    rows = [(name, *(_cell(column, getattr(scores, column)) for column in columns)) for name, scores in report.scored]
    if report.majority_accuracy is not None:
        told = {"accuracy": report.majority_accuracy}
        rows.append(("majority class", *(_cell(column, told.get(column)) for column in columns)))
    notes = [f"on {_rows(report.eval_rows, 'held-out')} of {report.dataset}, seed {report.seed}"]
    if report.task == "embedding":
        notes.append(f"{report.teacher_scores.targets:,} {_ASKED}")
    return Table("Scores", ("", *(_TITLES[column] for column in columns)), tuple(rows), tuple(notes))


_TITLES = {
    "perplexity": "perplexity",
    "cross_entropy": "cross-entropy",
    "accuracy": "accuracy",
    "entity_f1": "entity F1",
    "kl": "KL to teacher",
    "agreement": "agrees with teacher",
    "mean_average_precision": "average precision",
    "rank_correlation": "rank correlation",
    "cosine": "cosine to teacher",
}
_ASKED = (
    "queries: a text finds, by cosine, those of its label among all others; without labels, the first half of a text "
    "its second half among those of all"
)


def _columns(report: RunReport) -> tuple[str, ...]:
    """The scores that a task is judged by, as `Scores` calls them."""
    match report.task:
        case "causal-lm":
            return ("perplexity", "kl")
        case "masked-lm":
            return ("cross_entropy", "accuracy", "kl")
        case "embedding":
            return ("mean_average_precision", "accuracy", "rank_correlation", "cosine")
        case _:
            return ("accuracy", "entity_f1", "agreement") if _has_entities(report) else ("accuracy", "agreement")


def _has_entities(report: RunReport) -> bool:
    return report.teacher_scores.entity_f1 is not None


def _cell(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    match column:
        case "perplexity":
            return perplexity(value)
        case "kl" | "cross_entropy" | "rank_correlation" | "cosine":
            return f"{value:.3f}"
        case _:
            return percent(value)


def _facts(report: RunReport) -> Table:
    kept = "entity F1" if _has_entities(report) else "accuracy"
    kept = "mean average precision" if report.task == "embedding" else kept
    retention = (
        {} if report.retention is None else {"Retention": f"{percent(report.retention)} of the teacher's {kept}"}
    )
    ratio = (
        {}
        if report.perplexity_ratio is None
        else {"Perplexity": f"{perplexity(report.perplexity_ratio)} × the teacher's"}
    )
    return key_values(
        "Result",
        {
            **retention,
            **ratio,
            "Teacher": _model(report.teacher),
            "Student": _model(report.student),
            "Data": f"{_rows(report.train_rows, 'training')}{_labelled(report.labelled_rows)}",
            "Steps": f"{report.steps:,}, the weights are those of step {report.selected_step:,}",
            "Loss": f"{report.initial_loss:.4f} → {report.final_loss:.4f}",
            "Speed": f"{_rate(report.examples_per_s)} examples/s, {duration(report.train_s)} of training",
            **{f"As {facts.format}": _export(facts) for facts in report.exports},
            "Files": f"{report.output_dir}: {', '.join(report.files)}",
        },
        (
            *(f"! {facts.file}: {note}" for facts in report.exports for note in facts.notes),
            *(f"! {name} was not written: {why}" for name, why in report.not_exported.items()),
        ),
    )


def _export(facts: ExportFacts) -> str:
    """A file of the student in another format, and how it answers beside it."""
    bits = f"{facts.bits_per_weight:.2f} bits per weight" if facts.bits_per_weight is not None else None
    kl = f"KL {facts.kl:.4f} to the student" if facts.kl is not None else None
    same = f"the same likeliest token in {percent(facts.agreement)}" if facts.agreement is not None else None
    cosine = f"cosine {facts.cosine:.5f} at least" if facts.cosine is not None else None
    apart = f"{bound(facts.largest_difference)} from torch at most" if facts.largest_difference is not None else None
    return ", ".join(part for part in (facts.file, size(facts.size_bytes), bits, kl, same, cosine, apart) if part)


def _model(facts: ModelFacts) -> str:
    known = [] if facts.parameters is None else [f"{count(facts.parameters)} parameters"]
    known += [] if facts.weight_bytes is None else [f"{size(facts.weight_bytes)} on disk"]
    return ", ".join([facts.name, *known])


def _rate(per_s: float) -> str:
    return f"{per_s:,.{0 if per_s >= 9.95 else 1}f}"


def _rows(number: int, which: str) -> str:
    return f"{number:,} {which} row{'' if number == 1 else 's'}"


def _labelled(rows: int | None) -> str:
    return "" if rows is None else f", {rows:,} of them labelled"


def plan(report: Plan) -> Table:
    """What a run would do."""
    begins = "the beginning" if report.resumes_from_step is None else f"step {report.resumes_from_step:,}"
    packed = "" if report.fill is None else f" on average, in rows that are {report.fill:.1%} full"
    return key_values(
        "Plan",
        {
            "Task": report.task,
            "Teacher": f"{report.teacher} ({report.teacher_architecture})",
            "Student": f"{report.student}, {count(report.student_parameters)} parameters",
            "Data": f"{report.dataset}: {_rows(report.train_rows, 'training')}{_labelled(report.labelled_rows)}, "
            f"{report.eval_rows:,} for evaluation",
            "Loss": report.loss,
            "Steps": f"{report.steps:,} of {report.examples_per_step} examples{packed}, from {begins}",
            "Output": str(report.output_dir),
        },
        notes=("nothing was trained or written",),
    )


def validation(report: ValidationReport) -> Table:
    """What was checked."""
    marks = {"ok": "✓ ok", "skipped": "! skipped"}
    rows = tuple((check.name, marks[check.status], check.detail) for check in report.checks)
    return Table(f"{report.config} is valid", ("check", "", "detail"), rows)


def cache(report: CacheReport) -> Table:
    """What a cache holds."""
    measured, built = report.measured, report.built
    facts = {
        "Folder": str(report.folder),
        "Kept": _kept(report.kind),
        "Teacher": f"{report.teacher['reference']}{_parameters(report.teacher['parameters'])}",
        "Rows": f"{report.rows:,}, {count(report.positions)} positions",
        "Size": f"{size(report.bytes)} in {_shards(report.shards)}, {report.bytes_per_position:,.0f} bytes a position",
        "Read": f"{report.made_of['reads']}, at most {report.made_of['max_length']:,} a row, in "
        f"{_computed(report.made_of)}",
    }
    if built is not None and built["positions_per_s"] is not None:
        facts["Built"] = f"{_rate(built['positions_per_s'])} positions/s, in the last {duration(built['seconds'])}"
    if report.layers is not None:
        facts["Layers"] = _layers(report.layers)
    if measured is not None and "kl" in measured:
        facts["KL"] = (
            f"off by {measured['kl']:+.2g} nats, where a student is {measured['kl_live']:.2g} from the live teacher"
        )
        facts["Gradient"] = (
            f"{measured['gradient_angle']:.2g}° from the live teacher's, of a single position "
            f"{measured['position_angle']:.2g}°"
        )
    for name, what in (("error", "Error"), ("layers_error", "Error of layers")):
        if measured is not None and name in measured:
            facts[what] = f"{measured[name]:.2g} of what the live teacher says, root of mean squares"
    if measured is not None and "left_out" in measured:
        facts["Left out"] = f"{measured['left_out']:.2%} of the probability, on average"
    if not report.complete:
        facts["State"] = "not complete: the same `cache build` goes on with it"
    notes = ("every checksum is right",) if report.verified else ()
    return key_values("Cache", facts, notes=notes)


def _shards(number: int) -> str:
    return f"{number:,} shard{'' if number == 1 else 's'}"


def _computed(made_of: dict[str, Any]) -> str:
    """In which precision the teacher computes."""
    quantised = "" if made_of["load_in"] is None else f", quantised to {made_of['load_in']}"
    mixed = "" if made_of["precision"] == "no" else f", mixed with {made_of['precision']}"
    return f"{made_of['dtype']}{quantised}{mixed}"


def _parameters(number: int | None) -> str:
    return "" if number is None else f", {count(number)} parameters"


def _layers(layers: dict[str, Any]) -> str:
    hidden = ["embeddings" if layer < 0 else str(layer) for layer in layers["hidden"]]
    told = [f"hidden states of {', '.join(hidden)}"] if hidden else []
    told += [f"attention of {', '.join(layers['attention'])}"] if layers["attention"] else []
    return f"{' and '.join(told)}, in {layers['precision']}"


def _kept(kind: dict[str, Any]) -> str:
    match kind["name"]:
        case "hidden":
            return f"last hidden states in {kind['precision']}, {kind['width']} numbers, and the head"
        case "topk":
            return f"the likeliest {kind['k']} tokens, and what the others have together"
        case "sampled":
            return f"{kind['samples']} draws at temperature {kind['temperature']:g}"
        case "vectors":
            return f"vectors of sentences, {kind['columns']} numbers"
        case _:
            return f"all logits, of {kind['columns']} classes"


_SHARED = ("weight", "temperature", "top_k_tail", "entropy_threshold")


def losses(report: LossTable) -> Table:
    """Every loss by its name."""
    rows = tuple((loss.name, loss.formula, loss.needs, _settings(loss), loss.source) for loss in report.losses)
    notes = (
        "p is the teacher's distribution over tokens or classes, q the student's, both at the temperature; "
        "s and t are vectors of student and teacher",
        "any number of them, each with its `weight`, as `distillation.losses: [{name: …, weight: …}, …]`",
        "those of logits also take `temperature` (values hold its T², or T where that is enough), `entropy_threshold` "
        "and, but for cross_entropy_hard, `top_k` and `top_k_tail`",
    )
    return Table("Losses", ("name", "formula", "needs", "by default", "source"), rows, notes)


def _settings(loss: Loss) -> str:
    """What is not said below the table; a value that follows from the models or the widths is not shown."""
    shared = _SHARED if loss.family == "logits" else ("weight",)
    own = {name: value for name, value in loss.settings.items() if name not in shared}
    said = {name: value for name, value in own.items() if not (name == "top_k" and value is None)}
    return ", ".join(name if value is None else f"{name} {_value(value)}" for name, value in said.items())


def _value(value: Any) -> str:
    return " ".join(value) if isinstance(value, tuple) else exact(value)


def design(report: Design) -> list[Block]:
    """The proposals beside each other, and the first one as a part of a configuration."""
    columns = ("", "layers", "hidden", "heads", "KV heads", "feed-forward", "parameters", "ratio", "embeddings")
    rows = tuple(
        (
            str(number),
            str(one.num_layers),
            str(one.hidden_size),
            str(one.num_heads),
            str(one.num_kv_heads),
            str(one.intermediate_size),
            f"{one.parameters:,}",
            f"{one.ratio:.2f} ×",
            percent(one.embedding_share),
        )
        for number, one in enumerate(report.proposals, 1)
    )
    counted = "with the head over tokens, what is tied once" if report.with_head else "without a head"
    notes = (
        f"{report.teacher}: {report.family}, {report.teacher_parameters:,} parameters; "
        f"wanted: {report.wanted_parameters:,}",
        f"parameters are exact, {counted}; `ratio` is the teacher's over the student's",
    )
    yaml = "\n".join(_student_section(one, number) for number, one in enumerate(report.proposals, 1))
    return [Table(f"Students, --keep {report.keep}", columns, rows, notes), f"# for a configuration\n{yaml}"]


def _student_section(one: ProposedStudent, number: int) -> str:
    settings = ", ".join(f"{name}: {value}" for name, value in one.student["init_from"].items())
    return f"# {number}\nstudent: {{init_from: {{{settings}}}}}"


def _folder(folder: Path) -> list[str]:
    return [str(folder)]


def _troubles(report: DiagnosisReport) -> list[str]:
    return [trouble.name for trouble in report.diagnosis.troubles]


def _written(report: ExportReport) -> list[str]:
    return [report.pushed.url if report.pushed is not None else str(report.output)]


VIEWS: ViewTable = {
    RunReport: View(run_report, quiet=lambda report: _folder(report.output_dir)),
    Plan: View(plan, quiet=lambda report: _folder(report.output_dir)),
    ValidationReport: View(validation, quiet=lambda _: []),
    Design: View(design, quiet=lambda report: [_student_section(report.proposals[0], 1).partition("\n")[2]]),
    DiagnosisReport: View(diagnosis, quiet=_troubles),
    CacheReport: View(cache, quiet=lambda report: _folder(report.folder)),
    ExportReport: View(exported, quiet=_written),
    MemoryReport: memory,
    LossTable: View(losses, quiet=lambda report: [loss.name for loss in report.losses]),
}
