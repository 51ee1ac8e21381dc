"""The front matter of a run's model card, which the Hub reads: where the student is from, and its scores.

Source: huggingface.co/docs/hub/model-cards.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from entrenar_core.errors import EntrenarError
from entrenar_core.exporting.card import CardFacts, card_facts, is_hub_name, shared_license
from entrenar_core.exporting.card_files import CARD, front_matter
from entrenar_core.models.heads import EMBEDDING
from entrenar_core.reports import RunReport, Scores

PIPELINES = {
    "causal-lm": "text-generation",
    "masked-lm": "fill-mask",
    "sequence-classification": "text-classification",
    "token-classification": "token-classification",
    EMBEDDING: "sentence-similarity",
}
"""What the Hub calls the tasks."""
_METRICS = {
    "perplexity": "Perplexity",
    "accuracy": "Accuracy",
    "entity_f1": "Entity F1",
    "mean_average_precision": "Mean average precision",
}
_TYPES = {"entity_f1": "f1", "mean_average_precision": "map"}


def holds_adapter(report: RunReport) -> bool:
    """Whether the folder of a run holds an adapter and no whole model."""
    return "adapter_model.safetensors" in report.files


def front_of_run(report: RunReport) -> str:
    """YAML without its lines of `---`. A licence is named where all models that the run began with are on this machine
    or in the Hub's cache with cards that name the same one.
    """
    named = _models(report)
    base_models = [name for name in named if is_hub_name(name) and not Path(name).exists()]
    relation = "adapter" if holds_adapter(report) else "finetune"
    scores = dict(_scores(report.student_scores))
    return front_matter(
        {
            "library_name": _library(report),
            "pipeline_tag": PIPELINES[report.task],
            "base_model": base_models,
            "base_model_relation": relation if base_models else None,
            "datasets": [report.dataset] if _on_the_hub(report.dataset) else None,
            **_license(named),
            "tags": ["distillation", "entrenar"],
            "metrics": [_TYPES.get(name, name) for name in scores],
            "model-index": [_results(report, scores)] if scores else None,
        }
    )


def _library(report: RunReport) -> str:
    if holds_adapter(report):
        return "peft"
    return "sentence-transformers" if report.task == EMBEDDING else "transformers"


def _models(report: RunReport) -> list[str]:
    """References of the models that the run began with; a student that is only described has none."""
    told = [report.student.name, *report.teacher.name.split(" + ")]
    names = [name.removeprefix("moving average of ").partition("@")[0] for name in told]
    return [name for name in dict.fromkeys(names) if is_hub_name(name) or Path(name).exists()]


def _on_the_hub(name: str) -> bool:
    return is_hub_name(name) and not Path(name).exists()


def _license(models: list[str]) -> Mapping[str, Any]:
    facts = [_facts(name) for name in models]
    known = [one for one in facts if one is not None]
    return shared_license(known) if len(known) == len(facts) else {}


def _facts(name: str) -> CardFacts | None:
    """What a model's card says, without the network."""
    folder = Path(name)
    if not folder.exists():
        folder = _cached(name) or folder
    return card_facts(folder) if (folder / CARD).is_file() else None


def _cached(repo_id: str) -> Path | None:
    from entrenar_core.hub.client import Repository, connect
    from entrenar_core.hub.transfer import cached_snapshot

    with suppress(EntrenarError):
        return cached_snapshot(connect(offline=True), Repository("model", repo_id))[1]
    return None


def _scores(scores: Scores) -> Iterator[tuple[str, float]]:
    for name in _METRICS:
        value = getattr(scores, name)
        if value is not None and math.isfinite(value):
            yield name, float(f"{value:.6g}")


def _results(report: RunReport, scores: Mapping[str, float]) -> Mapping[str, Any]:
    """The scores as the Hub's `model-index` has them."""
    data = report.dataset if _on_the_hub(report.dataset) else Path(report.dataset).name
    metrics = [
        {"type": _TYPES.get(name, name), "value": value, "name": f"{_METRICS[name]}, {report.eval_rows} held-out rows"}
        for name, value in scores.items()
    ]
    task = {"type": PIPELINES[report.task]}
    found = {"task": task, "dataset": {"type": data, "name": data}, "metrics": metrics}
    return {"name": Path(report.student.name).name, "results": [found]}
