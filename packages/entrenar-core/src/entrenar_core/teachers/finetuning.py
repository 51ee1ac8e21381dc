"""Fits a teacher to the labelled rows before it teaches. What came out is kept, and reused while nothing that made it
has changed: weights, tokenizer, labelled rows, settings."""

import hashlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.config.teachers import GradientFinetuning, ProbeFinetuning
from entrenar_core.data.collating import Collator
from entrenar_core.data.tags import standing
from entrenar_core.data.tokenizing import tokenize_rows
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.models.heads import TAGGING
from entrenar_core.models.loading import load_model
from entrenar_core.models.rows import Counting
from entrenar_core.reports import Scores
from entrenar_core.teachers.kept import held, keep_model, keeping, kept_folder, kept_model, require_writable
from entrenar_core.teachers.probe import Probe, ProbeClassifier, embed, fit_probe, load_probe, save_probe
from entrenar_core.training.callbacks import Callback
from entrenar_core.training.evaluation import OnBatch
from entrenar_core.training.objective import Objective, RowTerm
from entrenar_core.training.ranks import on_main, seed_rank
from entrenar_core.training.run_folder import complete_checkpoints, newest_step
from entrenar_core.training.signals import StopRequest
from entrenar_core.training.step import DistillationStep

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from entrenar_core.training.batches import StoredBatches
    from entrenar_core.training.preparation import Preparation

VERSION = 2
"""Part of every key: raised when the same settings come to mean another teacher."""


def readable_length(prepared: "Preparation") -> int:
    """Tokens of a text that the teacher reads: `dataset.max_length`, or its own positions if those are fewer."""
    return min(prepared.config.dataset.max_length, prepared.teacher.architecture.max_positions or sys.maxsize)


def finetuned_key(prepared: "Preparation", processes: int) -> str:
    """SHA-256 of all that decides the teacher that so many processes fit together."""
    finetune = prepared.config.teacher.finetune
    assert finetune is not None
    rows = prepared.rows.train
    read = "tokens" if prepared.task == TAGGING else "text"
    pairs = zip(rows[read], rows["label"], standing(rows["label"]), strict=True)
    labelled = [(words, label) for words, label, mark in pairs if mark >= 0]  # their order decides bits
    made_of = {
        "version": VERSION,
        "teacher": prepared.teacher.fingerprint(),
        "dtype": prepared.config.teacher.dtype,
        "settings": finetune.model_dump(),
        "rows": labelled,
        "labels": prepared.label_names,
        "max_length": readable_length(prepared),
        "seed": prepared.config.training.seed,
        "batch": prepared.config.training.evaluation_batch_size if isinstance(finetune, ProbeFinetuning) else None,
        "processes": processes,
        "precision": prepared.config.training.mixed_precision,
    }
    if prepared.config.teacher.load_in is not None:
        made_of["load_in"] = prepared.config.teacher.load_in
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def probe_classifier(
    prepared: "Preparation", body: "PreTrainedModel", accelerator: Accelerator, on_batch: OnBatch, *, keep: bool = True
) -> tuple[ProbeClassifier, bool]:
    """The teacher's body with a probe on it, and whether the probe was kept from before.

    Two runs may fit the same probe at once: it is one file, which appears as a whole. Without `keep` none is written.

    Raises:
        DataError, ModelError: the probe cannot be fitted.
        OutputError: it cannot be kept.
    """
    file = on_main(accelerator, lambda: kept_folder() / f"{finetuned_key(prepared, 1)}.safetensors")
    kept = on_main(accelerator, lambda: _kept_probe(file))
    if kept is not None:
        return ProbeClassifier(body, kept), True
    if keep:
        on_main(accelerator, require_writable)
    probe = _fitted_probe(prepared, body, accelerator, on_batch)
    if keep:
        on_main(accelerator, lambda: _keep_probe(probe, file))
    return ProbeClassifier(body, probe), False


def _kept_probe(file: Path) -> Probe | None:
    try:
        return load_probe(file) if file.is_file() else None
    except (ModelError, OSError):
        return None  # a damaged copy is made again


def _keep_probe(probe: Probe, file: Path) -> None:
    with keeping(file):
        save_probe(probe, file)


def _fitted_probe(
    prepared: "Preparation", body: "PreTrainedModel", accelerator: Accelerator, on_batch: OnBatch
) -> Probe:
    settings, training = prepared.config.teacher.finetune, prepared.config.training
    assert isinstance(settings, ProbeFinetuning)
    rows = [row for row in prepared.rows.train if row["label"] >= 0]
    embeddings_NH = embed(
        body,
        prepared.teacher_tokenizer,
        [row["text"] for row in rows],
        batch_size=training.evaluation_batch_size,
        max_length=readable_length(prepared),
        device=accelerator.device,
        on_batch=on_batch,
    )
    labels_N = torch.tensor([row["label"] for row in rows])
    classes = len(prepared.label_names or ())
    return fit_probe(embeddings_NH, labels_N, classes, l2=settings.l2, seed=training.seed, on_fit=on_batch)


def finetuned_model(
    prepared: "Preparation", accelerator: Accelerator, callbacks: Sequence[Callback], stop: StopRequest
) -> tuple["PreTrainedModel", bool]:
    """The teacher with a head, or all of it, trained on the labelled rows; and whether it was kept from before.

    Raises:
        ModelError: the teacher cannot be loaded.
        TrainingError: the loss, the gradient or a weight is not a finite number.
        Interrupted: the user stopped the run; what was done is kept.
        OutputError: it cannot be kept.
    """
    on_main(accelerator, require_writable)
    folder = on_main(accelerator, lambda: kept_folder() / finetuned_key(prepared, accelerator.num_processes))
    with held(folder, accelerator, callbacks, stop):
        kept = kept_model(prepared, folder / "model", accelerator)
        if kept is not None:
            return kept, True
        model = _unfitted_model(prepared)
        _fit(model, prepared, folder / "work", accelerator, callbacks, stop)
        on_main(accelerator, lambda: keep_model(model, folder))
    return model.to(getattr(torch, prepared.config.teacher.dtype)), False


def already_finetuned(prepared: "Preparation", accelerator: Accelerator) -> "PreTrainedModel":
    """The teacher that a run has trained before; trains none.

    Raises:
        UsageError: there is none.
        ModelError: the teacher cannot be loaded.
    """
    folder = kept_folder() / finetuned_key(prepared, accelerator.num_processes)
    kept = kept_model(prepared, folder / "model", accelerator)
    if kept is None:
        method = prepared.config.teacher.finetune.method if prepared.config.teacher.finetune else None
        raise UsageError(
            f"`teacher.finetune: {{method: {method}}}` trains the teacher first, and none is kept that was trained so",
            "give the configuration to `entrenar-distill run` once, which keeps it, or set `teacher.finetune.method: "
            "probe`",
        )
    return kept


def _unfitted_model(prepared: "Preparation") -> "PreTrainedModel":
    settings = prepared.config.teacher.finetune
    assert isinstance(settings, GradientFinetuning)
    model = load_model(
        prepared.teacher,
        prepared.task,
        label_names=prepared.label_names,
        trust_remote_code=prepared.config.teacher.trust_remote_code,
        seed=prepared.config.training.seed,
        pad_token_id=prepared.teacher_tokenizer.pad_token_id,
    )
    if settings.method == "head":
        model.base_model.requires_grad_(False)
    return model


def _fit(
    model: "PreTrainedModel",
    prepared: "Preparation",
    work: Path,
    accelerator: Accelerator,
    callbacks: Sequence[Callback],
    stop: StopRequest,
) -> None:
    """Trains the model, going on from what a run that was stopped left in `work`."""
    from entrenar_core.training.loop import Loop, LoopSettings

    training = _training(prepared)
    batches = _labelled_batches(prepared, training, accelerator)
    for callback in callbacks:
        callback.on_phase("teacher", batches.total_steps, newest_step(work) or 0)
    every = prepared.config.output.checkpoint_every or max(1, batches.total_steps // 10)
    objective = Objective(Counting(shifted=False), (RowTerm("cross_entropy"),))
    settings = LoopSettings(training, work, every, 1, _no_evaluation, _no_score, name="teacher")
    loop = Loop(DistillationStep(model, objective), batches, None, accelerator, settings, callbacks, stop)
    seed_rank(training.seed, accelerator.process_index)
    with keeping(work):
        loop.run(resume=on_main(accelerator, lambda: _made_by(work) == accelerator.num_processes))
    accelerator.free_memory()


def _made_by(work: Path) -> int:
    """How many processes made what a stopped run left; what cannot be read was made by none, and is begun again."""
    try:
        newest = complete_checkpoints(work / "checkpoints")[-1]
        return len(json.loads((newest / "state.json").read_text(encoding="utf-8"))["random"])
    except (IndexError, OSError, ValueError, KeyError, TypeError):
        return 0


def _training(prepared: "Preparation") -> TrainingConfig:
    settings, training = prepared.config.teacher.finetune, prepared.config.training
    assert isinstance(settings, GradientFinetuning)
    return TrainingConfig(
        epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        seed=training.seed,
        mixed_precision=training.mixed_precision,
    )


def _labelled_batches(prepared: "Preparation", training: TrainingConfig, accelerator: Accelerator) -> "StoredBatches":
    from entrenar_core.training.batches import StoredBatches

    train = prepared.rows.train
    tokens = tokenize_rows(
        train.select([index for index, mark in enumerate(standing(train["label"])) if mark >= 0]),
        prepared.teacher_tokenizer,
        task=prepared.task,
        config=prepared.config.dataset,
        max_length=readable_length(prepared),
    )
    pad = prepared.teacher_tokenizer.pad_token_id
    assert isinstance(pad, int), "load_tokenizer gives a pad token"
    return StoredBatches(tokens, Collator(pad), training, accelerator.process_index, accelerator.num_processes)


def _no_evaluation() -> Scores:
    raise AssertionError("a teacher is evaluated when it is ready")


def _no_score(scores: Scores) -> float:
    return scores.accuracy
