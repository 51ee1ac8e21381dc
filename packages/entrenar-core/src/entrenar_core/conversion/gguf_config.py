"""A config.json for the weights of a GGUF, from its metadata: what transformers needs to build the same model.

Sources: ggml's docs/gguf.md for the keys, and the configuration classes of transformers for what they are called there.
"""

from collections.abc import Callable, Mapping
from typing import Any

from entrenar_core.architectures import SIZES, Architecture, architecture_of_gguf, is_size
from entrenar_core.conversion.gguf_families import GgufFamily
from entrenar_core.errors import ModelError

Kind = tuple[str, Callable[[Any], bool]]
"""What a value should be, in words, and whether one is."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_LARGEST = 3.4028234663852886e38  # of a float32


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


WHOLE: Kind = ("whole number", _is_whole)
NUMBER: Kind = ("finite number", _is_number)
ABOVE_ZERO: Kind = ("finite number above zero", lambda value: _is_number(value) and value > 0)
SIZE: Kind = ("whole number above zero", is_size)

# After `general.architecture` and a dot: what config.json calls it, and what it should be.
_SETTINGS = {
    "rope.freq_base": ("rope_theta", ABOVE_ZERO),
    "rope.freq_base_swa": ("rope_local_base_freq", ABOVE_ZERO),
    "attention.key_length": ("head_dim", SIZE),
    "attention.sliding_window": ("sliding_window", WHOLE),
    "attn_logit_softcapping": ("attn_logit_softcapping", NUMBER),
    "final_logit_softcapping": ("final_logit_softcapping", NUMBER),
}
_EPSILON, _RMS_EPSILON = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
_PATTERN = "attention.sliding_window_pattern"
_IDS = ("bos", "eos", "padding")


def config_of(
    metadata: Mapping[str, Any], family: GgufFamily, *, tied: bool, rope: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The configuration of a model of `family`. What a GGUF does not say is left to what transformers takes for it.

    Args:
        tied: its head is its embeddings.
        rope: how its positions are stretched (`rope_of`).

    Raises:
        ModelError: a value is of a kind that the configuration cannot have.
    """
    found = architecture_of_gguf(metadata)
    name = found.model_type
    sizes = {family.family.keys[size][0]: getattr(found, size) for size in SIZES}
    settings = {key: told(metadata, f"{name}.{setting}", kind) for setting, (key, kind) in _SETTINGS.items()}
    settings[family.epsilon] = told(metadata, f"{name}.{_RMS_EPSILON if family.rms else _EPSILON}", NUMBER)
    settings["query_pre_attn_scalar"] = _divisor(found, family)
    settings["layer_types"] = _layer_types(metadata.get(f"{name}.{_PATTERN}"), found.num_layers)
    settings["type_vocab_size"] = told(metadata, "tokenizer.ggml.token_type_count", SIZE)
    ids = {
        f"{'pad' if role == 'padding' else role}_token_id": told(metadata, f"tokenizer.ggml.{role}_token_id", WHOLE)
        for role in _IDS
    }
    labels = metadata.get(f"{name}.classifier.output_labels")
    known = {key: value for key, value in {**sizes, **settings, **ids}.items() if value is not None}
    share = _turned_share(metadata, found, family)
    if share is not None:
        rope = {"rope_theta": known.get("rope_theta", 10_000.0), "rope_type": "default", **(rope or {}), **share}
    if rope is not None:
        known = {key: value for key, value in known.items() if key != "rope_theta"} | {"rope_parameters": dict(rope)}
    classes = [family.transformers_class]
    if isinstance(labels, tuple) and family.classifier:
        classes = [family.transformers_class.replace("Model", "ForSequenceClassification")]
        known["id2label"] = {str(place): str(label) for place, label in enumerate(labels)}
        known["label2id"] = {str(label): place for place, label in enumerate(labels)}
    return {"architectures": classes, "model_type": family.family.model_types[0], **known, "tie_word_embeddings": tied}


def _turned_share(metadata: Mapping[str, Any], found: Architecture, family: GgufFamily) -> dict[str, float] | None:
    """How much of a head is turned, where that is not all of it."""
    turned = told(metadata, f"{found.model_type}.rope.dimension_count", SIZE) if family.family.rotates else None
    whole = found.head_dim or (found.hidden_size or 0) // (found.num_heads or 1)
    return {"partial_rotary_factor": turned / whole} if turned and whole and turned < whole else None


def _divisor(found: Architecture, family: GgufFamily) -> int | None:
    """By the root of what scores are divided in llama.cpp, where transformers has a setting for it."""
    if not family.scale or not found.hidden_size or not found.num_heads:
        return None
    width = found.hidden_size // found.num_heads
    return width if found.num_layers == family.scaled_by_width else found.head_dim or width


def _layer_types(pattern: Any, layers: int | None) -> list[str] | None:
    """Which layers slide, where a file lists them."""
    if not isinstance(pattern, tuple) or len(pattern) != layers:
        return None
    return ["sliding_attention" if slides else "full_attention" for slides in pattern]


def told(metadata: Mapping[str, Any], key: str, kind: Kind) -> Any:
    """A value of the metadata, or None where it has none.

    Raises:
        ModelError: it is of another kind.
    """
    value = metadata.get(key)
    what, fits = kind
    if value is None or fits(value):
        return value
    raise ModelError(f"{key} of the metadata is no {what}", "convert the original model instead")
