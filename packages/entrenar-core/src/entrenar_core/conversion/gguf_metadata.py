"""What a GGUF says of a model besides tensors and tokenizer: its sizes and settings, as llama.cpp looks for them.

Sources: ggml's docs/gguf.md for the keys; what each family's loader in https://github.com/ggml-org/llama.cpp reads.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from entrenar_core.architectures import Architecture
from entrenar_core.conversion.gguf_families import GgufFamily
from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf_values import Value, bools, f32, flag, text, u32

_POOLINGS = {"mean": 1, "first": 2, "last": 3, "rank": 4}  # llama.cpp's numbers; the second is its cls
_UNCAPPED = 1e6  # x and c * tanh(x / c) are the same number then


@dataclass(frozen=True, slots=True)
class Described:
    """The keys of a model, and what is to be said of how llama.cpp will differ from transformers."""

    metadata: Mapping[str, Value]
    notes: tuple[str, ...] = ()


def head_width(family: GgufFamily, config: Mapping[str, Any], sizes: Architecture) -> int:
    """Of one head of attention.

    Raises:
        ModelError: it is not known.
    """
    own = family.setting(config, "head_dim")
    if type(own) is int and own > 0:
        return own
    if not sizes.hidden_size or not sizes.num_heads:
        raise ModelError(
            f"config.json does not say how wide the heads of the {family.name} are", "fetch or export the model again"
        )
    return sizes.hidden_size // sizes.num_heads


def query_scale(family: GgufFamily, config: Mapping[str, Any], sizes: Architecture) -> float:
    """By what queries are multiplied for llama.cpp, which divides scores by the root of another number, to get what
    transformers does.
    """
    divisor = family.setting(config, "query_pre_attn_scalar") if family.scale else None
    if not divisor or not sizes.hidden_size or not sizes.num_heads:
        return 1.0
    by_width = sizes.num_layers == family.scaled_by_width
    theirs = sizes.hidden_size // sizes.num_heads if by_width else head_width(family, config, sizes)
    return math.sqrt(theirs / float(divisor))


def described(family: GgufFamily, config: Mapping[str, Any], sizes: Architecture, pool: str | None = None) -> Described:
    """The keys below the architecture's name, with that name.

    Args:
        sizes: of the model; all are known.
        pool: how an encoder makes one vector of its tokens: `mean`, `first` or `last`; `rank` where it classifies.

    Raises:
        ModelError: a setting has a value that llama.cpp cannot have.
    """
    counts = {
        "block_count": sizes.num_layers,
        "context_length": sizes.max_positions,
        "embedding_length": sizes.hidden_size,
        "feed_forward_length": sizes.intermediate_size,
        "attention.head_count": sizes.num_heads,
        "attention.head_count_kv": sizes.num_kv_heads or sizes.num_heads,
    }
    for key, value in counts.items():
        if value is None:
            raise ModelError(f"the configuration does not say its {key.replace('_', ' ')}", "correct config.json")
    found = {key: u32(int(value or 0)) for key, value in counts.items()}
    found[f"attention.layer_norm_{'rms_' if family.rms else ''}epsilon"] = f32(_epsilon(family, config))
    found |= _of_kind(family, config, sizes, pool)
    sliding, notes = _sliding(family, config, sizes)
    found |= sliding
    start = {"general.architecture": text(family.architecture)}
    return Described(start | {f"{family.architecture}.{key}": value for key, value in found.items()}, notes)


def _epsilon(family: GgufFamily, config: Mapping[str, Any]) -> float:
    value = config.get(family.epsilon)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1:
        return float(value)
    raise ModelError(f"config.json has no number between 0 and 1 for `{family.epsilon}`", "correct it")


def _of_kind(family: GgufFamily, config: Mapping[str, Any], sizes: Architecture, pool: str | None) -> dict[str, Value]:
    """What decoders say and encoders do not, and the other way round."""
    if family.family.kind == "encoder":
        pooling = {} if pool is None else {"pooling_type": u32(_POOLINGS[pool])}
        return {"attention.causal": flag(False), **pooling}
    found = {"vocab_size": u32(sizes.vocab_size or 0)}
    if family.setting(config, "head_dim"):
        width = u32(head_width(family, config, sizes))
        found |= {"attention.key_length": width, "attention.value_length": width}
    caps = (key for key in ("attn_logit_softcapping", "final_logit_softcapping") if family.sliding == "pattern")
    return found | {key: f32(cap) for key in caps if (cap := _cap(family, config, key)) is not None}


def _cap(family: GgufFamily, config: Mapping[str, Any], key: str) -> float | None:
    """What logits are kept below. Where a family is capped unless its file says otherwise, far above all logits."""
    if key in config and config[key] is None and key in family.missing:
        return _UNCAPPED
    value = family.setting(config, key)
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and value > 0):
        return value
    raise ModelError(f"config.json has no number above zero for `{key}`", "correct it")


def _sliding(
    family: GgufFamily, config: Mapping[str, Any], sizes: Architecture
) -> tuple[dict[str, Value], tuple[str, ...]]:
    """How far layers see, where not all positions."""
    window = family.setting(config, "sliding_window")
    if not family.sliding or window is None:
        return {}, ()
    if type(window) is not int or window < 1:
        raise ModelError("config.json has no number above zero for `sliding_window`", "correct it")
    if family.sliding == "ignored":
        if window >= (sizes.max_positions or 0):
            return {}, ()
        note = f"llama.cpp lets every position of a {family.name} see all before it, not the last {window:,} alone:"
        return {}, (f"{note} texts of more tokens get other answers",)
    slides = _which_slide(family, config, sizes.num_layers or 0)
    usual = [(layer + 1) % family.period != 0 for layer in range(len(slides))]
    pattern = {} if slides == usual else {"attention.sliding_window_pattern": bools(slides)}
    return {"attention.sliding_window": u32(window), **pattern}, ()


def _which_slide(family: GgufFamily, config: Mapping[str, Any], layers: int) -> list[bool]:
    types = config.get("layer_types")
    if isinstance(types, list) and len(types) == layers:
        return [kind == "sliding_attention" for kind in types]
    period = config.get("sliding_window_pattern") or family.period
    if type(period) is not int or period < 1:
        raise ModelError(f"config.json has the sliding_window_pattern {period}, which is no number", "correct it")
    return [(layer + 1) % period != 0 for layer in range(layers)]
