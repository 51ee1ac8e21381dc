"""What a fine-tuning says of itself in the end."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from entrenar_core.config.adapters import AnyAdapter, LoraSettings, Quantization
from entrenar_core.config.finetuning import FineTuneConfig
from entrenar_core.diagnosis.troubles import find_troubles
from entrenar_core.errors import OutputError
from entrenar_core.models.adapted import trained_count
from entrenar_core.models.facts import parameter_count
from entrenar_core.reports import ModelFacts, Scores, TuneReport
from entrenar_core.training.checkpoints import Progress
from entrenar_core.training.preparation import Preparation
from entrenar_core.training.reporting import majority_of
from entrenar_core.training.result import REPORT, read_exports
from entrenar_core.training.run_folder import read_metrics
from entrenar_core.training.verdict import FEW_ROWS, few_rows, quality

_NAMES = {
    "ia3": "IA³",
    "prompt": "prompt tuning",
    "prefix": "prefix tuning",
    "bias": "bias tuning",
    "adaption-prompt": "adaption prompts",
}


def method_name(config: FineTuneConfig) -> str:
    """What trains, in a few words."""
    return method_of(config.adapter, config.model.quantization)


def method_of(adapter: AnyAdapter | None, quantization: Quantization | None) -> str:
    """The same of an adapter and how the weights beside it are held."""
    if adapter is None:
        return "all weights"
    held = "" if quantization is None else f", beside weights in {quantization.load_in}"
    if isinstance(adapter, LoraSettings):
        kind = "DoRA" if adapter.dora else "rsLoRA" if adapter.rslora else "LoRA"
        targets = adapter.target_modules
        where = targets if isinstance(targets, str) else ", ".join(targets)
        return f"{'Q' if quantization else ''}{kind} of rank {adapter.rank}, alpha {adapter.alpha:g}, on {where}{held}"
    return f"{_NAMES[adapter.method]}{held}"


def tune_report(
    prepared: Preparation, folder: Path, progress: Progress, model: nn.Module, before: Scores, scores: Scores
) -> TuneReport:
    """The report of a fine-tuning that is over, without the files of its result."""
    config, rows = prepared.tuning, prepared.rows
    assert config is not None, "a fine-tuning"
    assert progress.initial_loss is not None, "a run has a step"
    assert progress.final_loss is not None, "a run has a step"
    majority = None if prepared.over_tokens else majority_of(prepared)
    best = progress.best_step if config.training.select == "best" else None
    return TuneReport(
        task=prepared.task,
        output_dir=folder,
        dataset=rows.name,
        train_rows=rows.num_train_rows,
        labelled_rows=rows.num_labelled_rows,
        eval_rows=len(rows.evaluation),
        seed=config.training.seed,
        steps=progress.step,
        selected_step=best or progress.step,
        initial_loss=progress.initial_loss,
        final_loss=progress.final_loss,
        model=ModelFacts(config.model.model_id, parameter_count(model), 0),
        method=method_name(config),
        trained_parameters=trained_count(model),
        scores_before=before,
        scores=scores,
        majority_accuracy=majority,
        train_s=progress.train_s,
        examples_per_s=progress.examples / max(progress.train_s, 1e-9),
        files=(),
        warnings=(*prepared.warnings, *_warnings(prepared, before, scores, majority, folder)),
    )


def _warnings(
    prepared: Preparation, before: Scores, scores: Scores, majority: float | None, folder: Path
) -> Iterator[str]:
    """What a reader should know before believing the scores."""
    config = prepared.config
    if majority is not None and scores.accuracy <= majority:
        yield "the model is no better than always giving the commonest class"
    elif quality(scores, language=prepared.over_tokens) <= quality(before, language=prepared.over_tokens):
        yield "the model is no better than it was before training"
    if majority is not None and scores.examples < FEW_ROWS:
        yield few_rows(scores, "model")
    if config.training.select == "best":
        yield "the weights were selected on the evaluation rows, so the model's score is optimistic"
    for trouble in find_troubles(read_metrics(folder / "metrics.jsonl")):
        if trouble.name != "overfitting" or config.training.select != "best":  # which is its remedy
            yield str(trouble)


def read_tune_report(folder: Path) -> TuneReport:
    """The report of a complete fine-tuning.

    Raises:
        OutputError: it is gone or damaged.
    """
    try:
        return _report(json.loads((folder / REPORT).read_text(encoding="utf-8")), folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"{folder / REPORT} of the complete run is damaged: {error}", "give --force to run again"
        ) from error


def _report(document: Mapping[str, Any], folder: Path) -> TuneReport:
    read: dict[str, Any] = {
        **document,
        "output_dir": folder,
        "model": ModelFacts(**document["model"]),
        "scores_before": Scores(**document["scores_before"]),
        "scores": Scores(**document["scores"]),
        "exports": read_exports(document),
        "files": tuple(document["files"]),
        "warnings": tuple(document["warnings"]),
    }
    return TuneReport(**read)
