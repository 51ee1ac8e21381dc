"""The model card of a fine-tuning: what was trained beside or in which model, how good it is, and how to load it."""

import math
from collections.abc import Sequence
from pathlib import Path

from entrenar_core.exporting.card import is_hub_name
from entrenar_core.exporting.card_files import escaped, front_matter
from entrenar_core.reports import Scores, TuneReport
from entrenar_core.training.card import loading
from entrenar_core.training.card_front import PIPELINES
from entrenar_core.units import count, percent, perplexity, size


def tuned_card(report: TuneReport, settings: str, *, adapted: bool, label_names: Sequence[str] | None) -> str:
    """Markdown with the front matter that the Hub reads. `settings` is the configuration as YAML; `adapted` whether
    the folder holds an adapter and not a whole model.
    """
    warnings = "".join(f"\n> {warning}.\n" for warning in report.warnings)
    model, data = escaped(report.model.name), escaped(report.dataset)
    what = f"An adapter for {model}" if adapted else f"{model}, fine-tuned"
    labelled = "" if report.labelled_rows is None else f", {report.labelled_rows:,} of them labelled"
    trained = f"{count(report.trained_parameters)} of {count(report.model.parameters or 0)} parameters"
    return f"""---
{_front(report, adapted=adapted)}---

# {what}

Trained by entrenar: {report.method}, {trained} ({size(report.model.weight_bytes or 0)} on disk).

## Scores

On {report.eval_rows:,} held-out rows of {data}, with seed {report.seed}:

{_table(report)}{warnings}
## Data

{data}: {report.train_rows:,} training rows{labelled}.

## Loading

```python
{loading(report.task, report.model.name if adapted else None, label_names)}
```

## Settings

{report.steps:,} optimiser steps; the weights are those after step {report.selected_step:,}. `run.json` has the
fingerprints of model and data and the versions of all packages.

```yaml
{settings.rstrip()}
```
"""


def _front(report: TuneReport, *, adapted: bool) -> str:
    name = report.model.name.partition("@")[0]
    on_hub = is_hub_name(name) and not Path(name).exists()
    return front_matter(
        {
            "library_name": "peft" if adapted else "transformers",
            "pipeline_tag": PIPELINES[report.task],
            "base_model": [name] if on_hub else [],
            "base_model_relation": ("adapter" if adapted else "finetune") if on_hub else None,
            "tags": [*(["lora"] if "LoRA" in report.method else []), "entrenar"],
        }
    )


def _table(report: TuneReport) -> str:
    language = report.scores.perplexity is not None
    if language:
        heading, cells = "perplexity", _perplexity
    else:
        heading, cells = "accuracy", _accuracy
    lines = [("before training", report.scores_before), ("after", report.scores)]
    rows = "".join(f"| {name} | {cells(scores)} |\n" for name, scores in lines)
    majority = "" if report.majority_accuracy is None else f"| majority class | {percent(report.majority_accuracy)} |\n"
    return f"| | {heading} |\n| --- | --- |\n{rows}{majority}"


def _perplexity(scores: Scores) -> str:
    return perplexity(scores.perplexity or math.inf)


def _accuracy(scores: Scores) -> str:
    return percent(scores.accuracy)
