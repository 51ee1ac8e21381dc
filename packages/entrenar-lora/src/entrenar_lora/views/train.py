"""How a fine-tuning looks: its scores, what was made, how the loss went."""

import math

from entrenar_common.output import Block
from entrenar_common.plots import Plot
from entrenar_common.tables import Cell, Table, key_values
from entrenar_core.reports import ExportFacts, Scores, TunePlan, TuneReport
from entrenar_core.training.run_folder import read_metrics
from entrenar_core.units import count, duration, percent, perplexity, size


def tuned(report: TuneReport) -> list[Block]:
    """Scores before and after, then what was made, then how the loss went."""
    blocks: list[Block] = [_scores(report), _facts(report)]
    lines = read_metrics(report.output_dir / "metrics.jsonl")
    points = [(line["step"], line["loss"]) for line in lines if "loss" in line]
    if len(points) > 1:
        blocks.append(Plot("Loss", {"loss": points}, "optimiser step", "loss"))
    return blocks


def tune_plan(plan: TunePlan) -> Table:
    """What a fine-tuning would do."""
    labelled = "" if plan.labelled_rows is None else f", {plan.labelled_rows:,} of them labelled"
    facts: dict[str, Cell | None] = {
        "Task": plan.task,
        "Model": f"{plan.model}, {count(plan.parameters)} parameters",
        "Trains": f"{plan.method}: {_share(plan.trained_parameters, plan.parameters)}",
        "Data": f"{plan.dataset}: {plan.train_rows:,} training rows{labelled}, {plan.eval_rows:,} for evaluation",
        "Steps": f"{plan.steps:,} of {plan.examples_per_step:,} examples",
        "Packed": None if plan.fill is None else f"{percent(plan.fill)} of the places hold a token",
        "Output": str(plan.output_dir),
        "Resumes": None if plan.resumes_from_step is None else f"after step {plan.resumes_from_step:,}",
    }
    return key_values("Plan", {name: value for name, value in facts.items() if value is not None})


def _share(trained: int, parameters: int) -> str:
    return f"{count(trained)} parameters, {percent(trained / max(parameters, 1))} of all"


def _scores(report: TuneReport) -> Table:
    language, entities = report.scores.perplexity is not None, report.scores.entity_f1 is not None
    title = "perplexity" if language else "accuracy"
    rows: list[tuple[Cell, ...]] = [
        (name, _score(scores), *([percent(scores.entity_f1 or 0.0)] if entities else []))
        for name, scores in (("before training", report.scores_before), ("after", report.scores))
    ]
    if report.majority_accuracy is not None:
        rows.append(("majority class", percent(report.majority_accuracy), *(["–"] if entities else [])))
    note = f"on {report.eval_rows:,} held-out rows of {report.dataset}, seed {report.seed}"
    return Table("Scores", ("", title, *(["entity F1"] if entities else [])), tuple(rows), (note,))


def _score(scores: Scores) -> str:
    return percent(scores.accuracy) if scores.perplexity is None else perplexity(scores.perplexity or math.inf)


def _facts(report: TuneReport) -> Table:
    parameters = report.model.parameters or 0
    labelled = "" if report.labelled_rows is None else f", {report.labelled_rows:,} of them labelled"
    facts: dict[str, Cell | None] = {
        "Model": f"{report.model.name}, {count(parameters)} parameters",
        "Trained": f"{report.method}: {_share(report.trained_parameters, parameters)}",
        "Written": size(report.model.weight_bytes or 0),
        "Data": f"{report.train_rows:,} training rows{labelled}",
        "Steps": f"{report.steps:,}, the weights are those of step {report.selected_step:,}",
        "Loss": f"{report.initial_loss:.4f} → {report.final_loss:.4f}",
        "Speed": f"{report.examples_per_s:.3g} examples/s, {duration(report.train_s)} of training",
        "Merged": None if report.merged is None else str(report.output_dir / report.merged),
        **{f"As {facts.format}": _export(facts) for facts in report.exports},
        "Files": f"{report.output_dir}: {', '.join(report.files)}",
    }
    notes = (
        *(f"! {one.file}: {note}" for one in report.exports for note in one.notes),
        *(f"! {name} was not written: {why}" for name, why in report.not_exported.items()),
    )
    return key_values("Result", {name: value for name, value in facts.items() if value is not None}, notes)


def _export(facts: ExportFacts) -> str:
    """A file of the merged model in another format, and how it answers beside it."""
    kl = f"KL {facts.kl:.4f} to the model" if facts.kl is not None else None
    return ", ".join(part for part in (facts.file, size(facts.size_bytes), kl) if part)
