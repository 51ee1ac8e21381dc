"""Students: a model that is there already, one of given sizes, or the teacher with fewer layers or narrower ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from entrenar_core.architectures import Family
from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import ConfigError
from entrenar_core.models.dropout import set_dropout
from entrenar_core.models.heads import CLASSIFYING, EMBEDDING
from entrenar_core.models.importance import Sample
from entrenar_core.models.loading import drop_pooler, load_config, load_model, model_class, seeded, set_labels
from entrenar_core.models.narrowing import Narrowed, narrow
from entrenar_core.models.placing import Placing
from entrenar_core.models.quiet import explaining
from entrenar_core.models.student_rules import (
    check_student,
    chosen_layers,
    evenly_spaced,
    family_of_student,
    known_sizes,
    with_known_sizes,
)
from entrenar_core.models.student_settings import copied_settings, depth_of, sized_settings

__all__ = ["build_student", "evenly_spaced", "set_dropout"]


def build_student(
    config: StudentConfig,
    *,
    teacher_artifact: ModelArtifact,
    teacher_model: PreTrainedModel | None,
    student_artifact: ModelArtifact | None,
    task: str,
    label_names: Sequence[str] | None,
    seed: int,
    vocab_size: int,
    pad_token_id: int | None = None,
    sample: Sample | None = None,
    device: torch.device | None = None,
) -> PreTrainedModel:
    """The model to train, on the CPU, in 32 bits and in evaluation mode.

    `student_artifact` is what `config.model_id` means. Layers are copied from `teacher_model`, or from the teacher's
    artifact where it is None, with the teacher's own embeddings, whatever `vocab_size` says, which a student of given
    sizes gets. What is drawn depends on `seed` alone. `label_names` and `pad_token_id` are those of `load_model`.
    `sample` are the texts on which `init_from.importance: activation` measures: batches of ids and attention masks.
    Adapters are not yet in it; weights that will be frozen beside them are of `dtype`, and on `device` where they are
    quantised.

    Raises:
        ConfigError: the settings do not fit the teacher (see `check_student`).
        ModelError: a model cannot be loaded, or there is none of this family for the task.
    """
    if config.model_id is not None:
        assert student_artifact, "a student by reference without its files"
        student = load_model(
            student_artifact,
            task,
            label_names=label_names,
            trust_remote_code=config.trust_remote_code,
            seed=seed,
            pad_token_id=pad_token_id,
            dtype=config.dtype,
            placing=_placing(config, device or torch.device("cpu")),
        )
    else:
        student = _built(
            config, teacher_artifact, teacher_model, task, label_names, seed, vocab_size, pad_token_id, sample
        )
    if task == EMBEDDING:
        drop_pooler(student)
    if config.dropout is not None:
        set_dropout(student, config.dropout)
    return student.eval()


def _placing(config: StudentConfig, device: torch.device) -> Placing | None:
    quantization = config.quantization
    if quantization is None:
        return None
    compute = None if quantization.compute_dtype is None else getattr(torch, quantization.compute_dtype)
    return Placing(
        quantization.load_in,
        None,
        device,
        double_quantized=quantization.double_quantization,
        compute_dtype=compute,
        setting="quantization",
    )


def _built(
    config: StudentConfig,
    teacher_artifact: ModelArtifact,
    teacher_model: PreTrainedModel | None,
    task: str,
    label_names: Sequence[str] | None,
    seed: int,
    vocab_size: int,
    pad_token_id: int | None,
    sample: Sample | None,
) -> PreTrainedModel:
    architecture = teacher_artifact.architecture
    if problems := check_student(config, architecture, task=task):
        raise ConfigError(problems)
    family = family_of_student(with_known_sizes(config), architecture)
    assert family, "checked above"
    if config.init_from and teacher_model is None:
        teacher_model = load_model(teacher_artifact, task, label_names=label_names, seed=seed)
    if config.init_from is None:
        teacher_config = teacher_model.config if teacher_model is not None else load_config(teacher_artifact)
        settings = sized_settings(with_known_sizes(config), teacher_config, family, vocab_size)
        if known := known_sizes(config):
            settings["tie_word_embeddings"] = known.tied
        return _fresh(_padded(settings, pad_token_id), task, label_names, seed)
    assert teacher_model is not None, "loaded above"
    return _copied(config.init_from, teacher_model, family, task, label_names, seed, pad_token_id, sample)


def _copied(
    init: InitFrom,
    teacher: PreTrainedModel,
    family: Family,
    task: str,
    label_names: Sequence[str] | None,
    seed: int,
    pad_token_id: int | None,
    sample: Sample | None,
) -> PreTrainedModel:
    """Layers of the teacher, cut to the given widths."""
    layers = chosen_layers(init.teacher_layers, depth_of(teacher.config), init.layers_from)
    settings, widths = copied_settings(init, teacher.config, family)
    weights = _whole(teacher) if widths is None else narrow(teacher, family, init, widths, layers, sample)
    student = _fresh(_padded(settings, pad_token_id), task, label_names, seed)
    _copy(weights, teacher, student, family, layers)
    return student


def _padded(settings: dict[str, Any], pad_token_id: int | None) -> dict[str, Any]:
    return settings | {"pad_token_id": pad_token_id} if settings.get("pad_token_id") is None else settings


def _fresh(settings: Mapping[str, Any], task: str, label_names: Sequence[str] | None, seed: int) -> PreTrainedModel:
    with explaining("student", settings["model_type"], "other sizes may do"), seeded(seed):
        config = AutoConfig.for_model(**settings)
        if task in CLASSIFYING and label_names is not None:
            set_labels(config, label_names)
        return model_class(config, task)._from_config(config, dtype=torch.float32)


def _whole(teacher: PreTrainedModel) -> Narrowed:
    whole = teacher.state_dict()
    return Narrowed(
        teacher.base_model.state_dict(), {name: whole[name] for name in whole if not _in_body(teacher, name)}
    )


def _copy(
    weights: Narrowed, teacher: PreTrainedModel, student: PreTrainedModel, family: Family, layers: Sequence[int]
) -> None:
    """Copies embeddings, norms, the chosen layers and, where the student has the same one, the head."""
    body, prefix = student.base_model, f"{family.layers}."
    chosen: dict[str, Tensor] = {}
    for name, own in body.state_dict().items():
        theirs = name
        if name.startswith(prefix):
            index, _, rest = name.removeprefix(prefix).partition(".")
            theirs = f"{prefix}{layers[int(index)]}.{rest}"
        if (
            theirs in weights.body or "pooler" not in name
        ):  # a teacher may come without a pooler, never without the rest
            chosen[name] = weights.body[theirs]
        else:
            chosen[name] = own
    body.load_state_dict(chosen)
    if _same_head(teacher, student) and _fits(weights.head, student):
        student.load_state_dict(weights.head, strict=False)


def _fits(head: Mapping[str, Tensor], student: PreTrainedModel) -> bool:
    """A tagger's head reads hidden states where the table of flows has pooled ones: a narrower one begins anew."""
    own = student.state_dict()
    return all(own[name].shape == tensor.shape for name, tensor in head.items() if name in own)


def _same_head(teacher: PreTrainedModel, student: PreTrainedModel) -> bool:
    return type(teacher) is type(student) and bool(teacher.config.id2label == student.config.id2label)


def _in_body(model: PreTrainedModel, name: str) -> bool:
    return model.base_model is model or name.startswith(f"{model.base_model_prefix}.")
