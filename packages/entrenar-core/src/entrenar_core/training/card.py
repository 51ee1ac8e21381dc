"""The model card: what was made from what, with which settings, how good it is, and how to load it."""

import math
from collections.abc import Sequence

from entrenar_core.exporting.card_files import escaped
from entrenar_core.references import HubReference, PackageReference, parse_reference
from entrenar_core.reports import ModelFacts, RunReport, Scores
from entrenar_core.training.card_front import front_of_run, holds_adapter
from entrenar_core.units import count, perplexity, size

LOADERS = {
    "causal-lm": "AutoModelForCausalLM",
    "masked-lm": "AutoModelForMaskedLM",
    "sequence-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
}
_SENTENCES = """
A sentence's vector is pooled from the last hidden states, as `1_Pooling/config.json` says; sentence-transformers does
so by itself:

```python
from sentence_transformers import SentenceTransformer

vectors = SentenceTransformer("path/to/this/folder").encode(["a sentence", "another one"])
```
"""


def _size(model: ModelFacts) -> str:
    if model.parameters is None:
        return "unknown size, which a server ran"
    bytes_ = "" if model.weight_bytes is None else f" ({size(model.weight_bytes)})"
    return f"{count(model.parameters)} parameters{bytes_}"


def loading(task: str, base: str | None, label_names: Sequence[str] | None) -> str:
    """The lines of Python that load what is in a folder: a model, or an adapter of `base`."""
    loader, folder = LOADERS[task], '"path/to/this/folder"'
    if base is None:
        return (
            f"from transformers import AutoTokenizer, {loader}\n\n"
            f"model = {loader}.from_pretrained({folder})\ntokenizer = AutoTokenizer.from_pretrained({folder})"
        )
    imports, name = _base(base)
    labels, classes = "", ""
    if label_names is not None:
        labels = f"labels = {list(label_names)!r}\n"
        classes = ", id2label=dict(enumerate(labels)), ignore_mismatched_sizes=True"
    return (
        f"{imports}from peft import PeftModel\nfrom transformers import AutoTokenizer, {loader}\n\n"
        f"{labels}base = {loader}.from_pretrained({name}{classes})\n"
        f"model = PeftModel.from_pretrained(base, {folder})\ntokenizer = AutoTokenizer.from_pretrained({folder})"
    )


def _base(reference: str) -> tuple[str, str]:
    """What is to be imported, and the arguments of `from_pretrained`, also of a model in an installed package, or of a
    GGUF.
    """
    found = parse_reference(reference)
    name = found.repo_id if isinstance(found, HubReference) else found.path
    folder, _, file = name.rpartition("/") if name.endswith(".gguf") else (name, "", "")
    which = f", gguf_file={file!r}" if file else ""
    if not isinstance(found, PackageReference):
        return "", f"{folder or '.'!r}{which}"
    inside = f" / {folder!r}" if folder else ""
    return "from importlib.resources import files\n\n", f"str(files({found.package!r}){inside}){which}"


def model_card(report: RunReport, settings: str, label_names: Sequence[str] | None = None) -> str:
    """Markdown with the front matter that the Hub reads. `settings` is the configuration as YAML; `label_names` are the
    classes of a classifier.
    """
    adapted = holds_adapter(report)
    labelled = "" if report.labelled_rows is None else f", {report.labelled_rows:,} of them labelled"
    warnings = "".join(f"\n> {warning}.\n" for warning in report.warnings)
    student, teacher, data = (escaped(name) for name in (report.student.name, report.teacher.name, report.dataset))
    return f"""---
{front_of_run(report)}---

# {"An adapter for " if adapted else ""}{student}, distilled from {teacher}

A student of {_size(report.student)}, trained by entrenar on
the outputs of a teacher of {_size(report.teacher)}.

## Scores

On {report.eval_rows:,} held-out rows of {data}, with seed {report.seed}:

{_table(report)}{warnings}
## Data

{data}: {report.train_rows:,} training rows{labelled}.

## Loading

```python
{loading(report.task, report.student.name if adapted else None, label_names)}
```
{_SENTENCES if report.task == "embedding" and not adapted else ""}
## Settings

{report.steps:,} optimiser steps; the weights are those after step {report.selected_step:,}. `run.json` has the
fingerprints of models and data and the versions of all packages.

```yaml
{settings.rstrip()}
```
"""


def _table(report: RunReport) -> str:
    lines = "".join(f"| {escaped(name)} | {_cells(report.task, scores)} |\n" for name, scores in report.scored)
    if report.task == "causal-lm":
        return "| | perplexity | KL to the teacher |\n| --- | --- | --- |\n" + lines
    if report.task == "masked-lm":
        return "| | cross-entropy | accuracy | KL to the teacher |\n| --- | --- | --- | --- |\n" + lines
    if report.task == "embedding":
        header = "| | mean average precision | nearest is right | rank correlation with the teacher | cosine to it |\n"
        return header + "| --- | --- | --- | --- | --- |\n" + lines
    entities = report.teacher_scores.entity_f1 is not None
    majority = (
        f"| majority class | {report.majority_accuracy:.1%} | |{' |' * entities}\n"
        if report.majority_accuracy is not None
        else ""
    )
    heading = f"| | accuracy |{' entity F1 |' * entities} agreement with the teacher |"
    return f"{heading}\n| --- | --- | --- |{' --- |' * entities}\n{lines}{majority}"


def _cells(task: str, scores: Scores) -> str:
    if task == "causal-lm":
        return f"{perplexity(scores.perplexity or math.inf)} | {'' if scores.kl is None else f'{scores.kl:.3f}'}"
    if task == "masked-lm":
        kl = "" if scores.kl is None else f"{scores.kl:.3f}"
        return f"{scores.cross_entropy:.3f} | {scores.accuracy:.1%} | {kl}"
    if task == "embedding":
        beside = (scores.rank_correlation, scores.cosine)
        shown = " | ".join("" if value is None else f"{value:.3f}" for value in beside)
        return f"{scores.mean_average_precision or 0.0:.1%} | {scores.accuracy:.1%} | {shown}"
    entities = "" if scores.entity_f1 is None else f" | {scores.entity_f1:.1%}"
    return f"{scores.accuracy:.1%}{entities} | {'' if scores.agreement is None else f'{scores.agreement:.1%}'}"
