"""Students: a model that is there already, one of given sizes, or the teacher with fewer layers or narrower ones."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from entrenar_core.architectures import Family, architecture_of
from entrenar_core.artifact import ModelArtifact
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import ConfigError
from entrenar_core.models.dropout import set_dropout
from entrenar_core.models.heads import CLASSIFICATION
from entrenar_core.models.importance import Sample
from entrenar_core.models.loading import load_config, load_model, model_class, seeded, set_labels
from entrenar_core.models.narrowing import Narrowed, narrow
from entrenar_core.models.quiet import explaining, quietly
from entrenar_core.models.student_rules import (
    check_student,
    chosen_layers,
    evenly_spaced,
    family_of_student,
    known_sizes,
    with_known_sizes,
)
from entrenar_core.models.widths import WIDTHS, Widths, student_widths, widths_of

__all__ = ["build_student", "evenly_spaced", "set_dropout"]

_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
# What a config says of its files and code; and what follows from the sizes or the data.
_NOT_KEPT = (
    "_name_or_path",
    "architectures",
    "auto_map",
    "dtype",
    "quantization_config",
    "transformers_version",
)
_HEAD_SIZES = ("head_dim", "query_pre_attn_scalar")
_LABELS = ("id2label", "label2id")
# A roberta counts positions from its pad token's id on, so as many as lie below are never used.
_POSITIONS_AFTER_PAD = ("roberta",)


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
) -> PreTrainedModel:
    """The model to train, on the CPU, in 32 bits and in evaluation mode.

    `student_artifact` is what `config.model_id` means. Layers are copied from `teacher_model`, or from the teacher's
    artifact where it is None, with the teacher's own embeddings, whatever `vocab_size` says, which a student of given
    sizes gets. What is drawn depends on `seed` alone. `label_names` and `pad_token_id` are those of `load_model`.
    `sample` are the texts on which `init_from.importance: activation` measures: batches of ids and attention masks.

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
        )
    else:
        student = _built(
            config, teacher_artifact, teacher_model, task, label_names, seed, vocab_size, pad_token_id, sample
        )
    if config.dropout is not None:
        set_dropout(student, config.dropout)
    return student.eval()


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
        settings = _with_sizes(with_known_sizes(config), teacher_config, family, vocab_size)
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
    layers = chosen_layers(init.teacher_layers, _depth(teacher.config), init.layers_from)
    settings, widths = copied_settings(init, teacher.config, family)
    weights = _whole(teacher) if widths is None else narrow(teacher, family, init, widths, layers, sample)
    student = _fresh(_padded(settings, pad_token_id), task, label_names, seed)
    _copy(weights, teacher, student, family, layers)
    return student


def copied_settings(
    init: InitFrom, teacher: PreTrainedConfig, family: Family
) -> tuple[dict[str, Any], tuple[Widths, Widths] | None]:
    """The config of a student that is copied from a teacher of this config, and the widths of both, None where they
    are the same. What the settings ask for must have passed `check_student`.
    """
    settings = _with_layers(teacher, family, chosen_layers(init.teacher_layers, _depth(teacher), init.layers_from))
    before = widths_of(architecture_of(teacher.to_dict()))
    after = student_widths(init, family, before) if before else None
    if before is None or after is None or before == after:
        return settings, None
    settings |= _with_widths(teacher, family, before, after)
    if init.embeddings == "svd" and after.hidden_size < before.hidden_size:
        settings["tie_word_embeddings"] = False  # the head takes in the gain of the norm before it
    return settings, (before, after)


def _padded(settings: dict[str, Any], pad_token_id: int | None) -> dict[str, Any]:
    return settings | {"pad_token_id": pad_token_id} if settings.get("pad_token_id") is None else settings


def _fresh(settings: Mapping[str, Any], task: str, label_names: Sequence[str] | None, seed: int) -> PreTrainedModel:
    with explaining("student", settings["model_type"], "other sizes may do"), seeded(seed):
        config = AutoConfig.for_model(**settings)
        if task == CLASSIFICATION and label_names is not None:
            set_labels(config, label_names)
        return model_class(config, task)._from_config(config, dtype=torch.float32)


def _depth(config: PreTrainedConfig) -> int:
    depth = architecture_of(config.to_dict()).num_layers
    assert depth, "a family of the table without its layers"
    return depth


def _with_layers(teacher: PreTrainedConfig, family: Family, layers: Sequence[int]) -> dict[str, Any]:
    """The teacher's settings with fewer layers; what it lists for each layer is cut with them."""
    total = _depth(teacher)
    kept = _settings(teacher, drop=_NOT_KEPT)
    cut = {name: [kept[name][index] for index in layers] for name in _per_layer(kept, total)}
    return kept | cut | {_key(family, "num_layers"): len(layers)}


def _with_widths(teacher: PreTrainedConfig, family: Family, before: Widths, after: Widths) -> dict[str, int]:
    """The narrower widths under the family's keys. A head keeps its width, which is no longer told by the others."""
    sizes = {_key(family, name): getattr(after, name) for name in ("num_kv_heads", *WIDTHS) if name in family.keys}
    sizes[_key(family, "num_heads")] = after.num_heads  # some families have one key for both
    if family.head_dim:
        sizes["head_dim"] = getattr(teacher, "head_dim", None) or before.hidden_size // before.num_heads
    return sizes


def _with_sizes(config: StudentConfig, teacher: PreTrainedConfig, family: Family, vocab_size: int) -> dict[str, Any]:
    """The given sizes under the family's keys; all else is the teacher's in the same family, else the family's own."""
    hidden, heads = config.hidden_size, config.num_heads
    assert hidden, "checked by `check_student`"
    assert heads
    sizes = {
        "num_layers": config.num_layers,
        "hidden_size": hidden,
        "num_kv_heads": config.num_kv_heads or heads,
        "num_heads": heads,  # after the former: some families have one key for both
        "intermediate_size": config.intermediate_size or 4 * hidden,
        "vocab_size": vocab_size,
    }
    given: dict[str, Any] = {_key(family, name): size for name, size in sizes.items()}
    with quietly():
        own = AutoConfig.for_model(family.model_types[0])
    for name in _HEAD_SIZES:
        if hasattr(own, name):
            given[name] = hidden // heads
    if teacher.model_type in family.model_types:
        kept = _settings(teacher, drop=(*_NOT_KEPT, *_HEAD_SIZES, *_LABELS))
        return {name: value for name, value in kept.items() if name not in _per_layer(kept, _depth(teacher))} | given
    ids = {name: _inside(getattr(teacher, name, None), vocab_size) for name in _SPECIAL_IDS}
    positions = _positions(teacher, family, ids["pad_token_id"])
    return {"model_type": family.model_types[0]} | positions | ids | given


def _settings(teacher: PreTrainedConfig, drop: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in teacher.to_dict().items() if name not in drop}


def _per_layer(settings: Mapping[str, Any], total: int) -> list[str]:
    return [
        name
        for name, value in settings.items()
        if "layer" in name and isinstance(value, list | tuple) and len(value) == total
    ]


def _key(family: Family, size: str) -> str:
    return family.keys[size][0]


def _inside(id_: Any, vocab_size: int) -> Any:
    ids = id_ if isinstance(id_, list) else [id_]
    return id_ if all(one is None or 0 <= one < vocab_size for one in ids) else None


def _positions(teacher: PreTrainedConfig, family: Family, pad_token_id: int | None) -> dict[str, int]:
    positions = getattr(teacher, "max_position_embeddings", None)
    if not isinstance(positions, int):
        return {}
    unused = (pad_token_id or 0) + 1 if family.name in _POSITIONS_AFTER_PAD else 0
    return {"max_position_embeddings": positions + unused}


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
    if _same_head(teacher, student):
        student.load_state_dict(weights.head, strict=False)


def _same_head(teacher: PreTrainedModel, student: PreTrainedModel) -> bool:
    return type(teacher) is type(student) and bool(teacher.config.id2label == student.config.id2label)


def _in_body(model: PreTrainedModel, name: str) -> bool:
    return name.startswith(f"{model.base_model_prefix}.")
