"""The configurations of students: the teacher's with fewer layers and narrower, or one of given sizes."""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from entrenar_core.architectures import SIZES, Family, architecture_of, families
from entrenar_core.architectures.reference_sizes import ReferenceSizes
from entrenar_core.config.schema import InitFrom, StudentConfig
from entrenar_core.errors import ConfigError
from entrenar_core.models.quiet import explaining, quietly
from entrenar_core.models.student_rules import (
    check_student,
    chosen_layers,
    family_of_student,
    known_sizes,
    with_known_sizes,
)
from entrenar_core.models.widths import WIDTHS, Widths, student_widths, widths_of

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


def copied_settings(
    init: InitFrom, teacher: PreTrainedConfig, family: Family
) -> tuple[dict[str, Any], tuple[Widths, Widths] | None]:
    """The config of a student that is copied from a teacher of this config, and the widths of both, None where they
    are the same. What the settings ask for must have passed `check_student`.
    """
    settings = _with_layers(teacher, family, chosen_layers(init.teacher_layers, depth_of(teacher), init.layers_from))
    before = widths_of(architecture_of(teacher.to_dict()))
    after = student_widths(init, family, before) if before else None
    if before is None or after is None or before == after:
        return settings, None
    settings |= _with_widths(teacher, family, before, after)
    if init.embeddings == "svd" and after.hidden_size < before.hidden_size:
        settings["tie_word_embeddings"] = False  # the head takes in the gain of the norm before it
    return settings, (before, after)


def sized_settings(config: StudentConfig, teacher: PreTrainedConfig, family: Family, vocab_size: int) -> dict[str, Any]:
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
        return {name: value for name, value in kept.items() if name not in _per_layer(kept, depth_of(teacher))} | given
    ids = {name: _inside(getattr(teacher, name, None), vocab_size) for name in _SPECIAL_IDS}
    positions = _positions(teacher, family, ids["pad_token_id"])
    return {"model_type": family.model_types[0]} | positions | ids | given


def planned_config(
    config: StudentConfig, teacher: PreTrainedConfig, *, task: str, vocab_size: int | None = None
) -> PreTrainedConfig:
    """The configuration of a student that is built, before any weight is there; without a `vocab_size`, of the
    teacher's.

    Raises:
        ConfigError: the settings do not fit the teacher (see `check_student`).
        ModelError: transformers makes no model of them.
    """
    architecture = architecture_of(teacher.to_dict())
    if problems := check_student(config, architecture, task=task):
        raise ConfigError(problems)
    sized = with_known_sizes(config)
    family = family_of_student(sized, architecture)
    assert family, "checked above"
    if config.init_from is not None:
        settings, _ = copied_settings(config.init_from, teacher, family)
    else:
        settings = sized_settings(sized, teacher, family, vocab_size or teacher.get_text_config().vocab_size)
        if known := known_sizes(config):
            settings["tie_word_embeddings"] = known.tied
    with explaining("student", settings["model_type"], "other sizes may do"):
        return AutoConfig.for_model(**settings)


def known_config(known: ReferenceSizes) -> PreTrainedConfig:
    """The config of a model of known sizes; what they leave out is the family's own."""
    family = families()[known.family]
    given = {_key(family, size): getattr(known, size) for size in SIZES}
    with quietly():
        return AutoConfig.for_model(family.model_types[0], **given, tie_word_embeddings=known.tied)


def depth_of(config: PreTrainedConfig) -> int:
    """How many layers a model of a known family has."""
    depth = architecture_of(config.to_dict()).num_layers
    assert depth, "a family of the table without its layers"
    return depth


def _with_layers(teacher: PreTrainedConfig, family: Family, layers: Sequence[int]) -> dict[str, Any]:
    """The teacher's settings with fewer layers; what it lists for each layer is cut with them."""
    total = depth_of(teacher)
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
