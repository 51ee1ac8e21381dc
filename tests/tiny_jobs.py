"""Whole distillations of a second: tiny models, rows that a test writes, and configurations of both."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiny_models import CORPUS, tiny_bert, tiny_llama

ANIMALS, PLACES = "the quick brown fox jumps over the lazy dog", "open the folder and write the file to the river"


@dataclass(frozen=True, slots=True)
class Models:
    """A classifier and a language model, each with a student of its vocabulary; a classifier of another vocabulary."""

    classifier: Path
    small_classifier: Path
    other_classifier: Path
    llama: Path
    small_llama: Path


def build_models(folder: Path) -> Models:
    """Builds them in a folder."""
    return Models(
        classifier=tiny_bert(folder / "classifier", num_labels=2),
        small_classifier=tiny_bert(folder / "small_classifier", num_labels=2, num_hidden_layers=1, seed=1),
        other_classifier=tiny_bert(
            folder / "other_classifier", num_labels=2, seed=2, vocab_size=160, tokenizer_texts=CORPUS[1:3]
        ),
        llama=tiny_llama(folder / "llama"),
        small_llama=tiny_llama(folder / "small_llama", num_hidden_layers=1, seed=1),
    )


def write_rows(file: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Rows as JSON lines; if none are given, 40 about two subjects, of lengths that differ, with labels 0 and 1."""
    if rows is None:
        rows = []
        for index in range(40):
            words = (ANIMALS, PLACES)[index % 2].split()
            rows.append({"text": " ".join(words[: 4 + index % 5]) + f" {index}", "label": index % 2})
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def merged(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with the settings of `changes` in their place. None removes a section's key."""
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in values.items()}
    for name, section in changes.items():
        if not isinstance(section, Mapping):
            result[name] = section
            continue
        result[name] = {key: item for key, item in {**result.get(name, {}), **section}.items() if item is not None}
    return result


def classification(models: Models, folder: Path, **changes: Any) -> dict[str, Any]:
    """Five steps from the classifier to a narrower one, on `rows.jsonl` in the folder, into its `out`."""
    rows = folder / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    job = {
        "teacher": {"model_id": str(models.classifier)},
        "student": {"hidden_size": 16, "num_layers": 1, "num_heads": 2},
        "dataset": {"path": str(rows), "max_length": 16},
        "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01},
        "output": {"dir": str(folder / "out")},
    }
    return merged(job, changes)


def language(models: Models, folder: Path, **changes: Any) -> dict[str, Any]:
    """The same with a language model, whose student is one of its layers."""
    teacher = {"teacher": {"model_id": str(models.llama)}, "task": "causal-lm"}
    job = classification(models, folder) | teacher | {"student": {"init_from": {"teacher_layers": 1}}}
    return merged(job, changes)


def write_config(file: Path, job: Mapping[str, Any]) -> Path:
    """A configuration as a YAML file (of which JSON is a part)."""
    file.write_text(json.dumps(job, indent=1))
    return file
