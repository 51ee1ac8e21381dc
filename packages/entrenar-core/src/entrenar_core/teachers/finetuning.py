"""Fits a teacher to the labelled rows before it teaches. What came out is kept, and reused while nothing that made it
has changed: weights, tokenizer, labelled rows, settings."""

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from entrenar_core.artifact import inspect_folder
from entrenar_core.config.schema import GradientFinetuning, ProbeFinetuning, TrainingConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import ModelError
from entrenar_core.models.loading import load_model
from entrenar_core.reports import Scores
from entrenar_core.teachers.probe import Probe, ProbeClassifier, embed, fit_probe, load_probe, save_probe
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.files import new_folder, remove_folder
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep, Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.preparation import Preparation

VERSION = 1
"""Part of every key: raised when the same settings come to mean another teacher."""


def kept_folder() -> Path:
    """Where fitted teachers are kept: `$ENTRENAR_HOME/teachers`, or in the user's cache folder."""
    home = os.environ.get("ENTRENAR_HOME")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return (Path(home) if home else cache / "entrenar") / "teachers"


def readable_length(prepared: "Preparation") -> int:
    """Tokens of a text that the teacher reads: `dataset.max_length`, or its own positions if those are fewer."""
    return min(prepared.config.dataset.max_length, prepared.teacher.architecture.max_positions or sys.maxsize)


def finetuned_key(prepared: "Preparation") -> str:
    """SHA-256 of all that decides the fitted teacher."""
    finetune = prepared.config.teacher.finetune
    assert finetune is not None
    rows = prepared.rows.train
    labelled = sorted((row["text"], row["label"]) for row in rows if row["label"] >= 0)
    made_of = {
        "version": VERSION,
        "teacher": prepared.teacher.fingerprint(),
        "dtype": prepared.config.teacher.dtype,
        "settings": finetune.model_dump(),
        "rows": labelled,
        "labels": prepared.label_names,
        "max_length": readable_length(prepared),
        "seed": prepared.config.training.seed,
        "precision": prepared.config.training.mixed_precision,
    }
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def probe_classifier(
    prepared: "Preparation", body: "PreTrainedModel", accelerator: Accelerator
) -> tuple[ProbeClassifier, bool]:
    """The teacher's body with a probe on it, and whether the probe was kept from before."""
    settings = prepared.config.teacher.finetune
    assert isinstance(settings, ProbeFinetuning)
    file = kept_folder() / f"{finetuned_key(prepared)}.safetensors"
    kept = _kept_probe(file)
    if kept is not None:
        return ProbeClassifier(body, kept), True
    rows = [row for row in prepared.rows.train if row["label"] >= 0]
    embeddings_NH = embed(
        body,
        prepared.teacher_tokenizer,
        [row["text"] for row in rows],
        batch_size=prepared.config.training.eval_batch_size or prepared.config.training.batch_size,
        max_length=readable_length(prepared),
        device=accelerator.device,
    )
    labels_N = torch.tensor([row["label"] for row in rows])
    classes = len(prepared.label_names or ())
    probe = fit_probe(embeddings_NH, labels_N, classes, l2=settings.l2, seed=prepared.config.training.seed)
    if accelerator.is_main_process:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_probe(probe, file)
    return ProbeClassifier(body, probe), False


def _kept_probe(file: Path) -> Probe | None:

    try:
        return load_probe(file) if file.is_file() else None
    except ModelError:
        return None  # a damaged copy is made again


def finetuned_model(
    prepared: "Preparation", accelerator: Accelerator, callbacks: Sequence[Callback], stop: StopRequest
) -> tuple["PreTrainedModel", bool]:
    """The teacher with a head, or all of it, trained on the labelled rows; and whether it was kept from before."""
    from entrenar_core.training.batches import StoredBatches
    from entrenar_core.training.loop import Loop, LoopSettings

    config, settings = prepared.config, prepared.config.teacher.finetune
    assert isinstance(settings, GradientFinetuning)
    folder = kept_folder() / finetuned_key(prepared)
    if (folder / "model" / "config.json").is_file():
        kept = inspect_folder(folder / "model")
        return load_model(kept, prepared.task, dtype=config.teacher.dtype, label_names=prepared.label_names), True
    model = load_model(
        prepared.teacher,
        prepared.task,
        label_names=prepared.label_names,
        trust_remote_code=config.teacher.trust_remote_code,
        seed=config.training.seed,
        pad_token_id=prepared.teacher_tokenizer.pad_token_id,
    )
    if settings.method == "head":
        model.base_model.requires_grad_(False)
    train = prepared.rows.train
    rows = train.select([index for index, label in enumerate(train["label"]) if label >= 0])
    tokens = tokenize_rows(
        rows,
        prepared.teacher_tokenizer,
        task=prepared.task,
        config=config.dataset,
        max_length=readable_length(prepared),
    )
    training = TrainingConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=config.training.seed,
        mixed_precision=config.training.mixed_precision,
    )
    pad = prepared.teacher_tokenizer.pad_token_id
    assert isinstance(pad, int), "load_tokenizer gives a pad token"
    batches = StoredBatches(tokens, Collator(pad), training, accelerator.process_index, accelerator.num_processes)
    for callback in callbacks:
        callback.on_phase("teacher", batches.total_steps)
    loop = Loop(
        DistillationStep(model, Objective(causal=False, alpha=0.0, temperature=1.0, divergence="forward_kl")),
        batches,
        None,
        accelerator,
        LoopSettings(training, folder / "work", batches.total_steps, 1, _no_evaluation, _no_score),
        callbacks,
        stop,
    )
    loop.run(resume=True)
    accelerator.free_memory()
    if accelerator.is_main_process:
        with new_folder(folder / "model") as aside:
            model.save_pretrained(aside)
        remove_folder(folder / "work")
    accelerator.wait_for_everyone()
    return model.to(getattr(torch, config.teacher.dtype)), False


def _no_evaluation() -> Scores:
    raise AssertionError("a teacher is evaluated when it is ready")


def _no_score(scores: Scores) -> float:
    return scores.accuracy
