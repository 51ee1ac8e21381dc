"""A config.json for the weights of a GGUF, from its metadata: what transformers needs to build the same model.

Sources: ggml's docs/gguf.md for the keys, and the configuration classes of transformers for what they are called there.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from entrenar_core.architectures import SIZES, Family, architecture_of_gguf, is_size
from entrenar_core.errors import ModelError

Kind = tuple[str, Callable[[Any], bool]]
"""What a value should be, in words, and whether one is."""


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


WHOLE: Kind = ("whole number", _is_whole)
NUMBER: Kind = ("finite number", _is_number)
ABOVE_ZERO: Kind = ("finite number above zero", lambda value: _is_number(value) and value > 0)
SIZE: Kind = ("whole number above zero", is_size)

# After `general.architecture` and a dot: what config.json calls it, and what it should be.
_SETTINGS = {
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps", NUMBER),
    "rope.freq_base": ("rope_theta", ABOVE_ZERO),
    "attention.key_length": ("head_dim", SIZE),
    "attention.sliding_window": ("sliding_window", WHOLE),
    "attn_logit_softcapping": ("attn_logit_softcapping", NUMBER),
    "final_logit_softcapping": ("final_logit_softcapping", NUMBER),
}
_EPSILON = "attention.layer_norm_epsilon"
_EPSILONS = {"gpt2": "layer_norm_epsilon", "starcoder2": "norm_epsilon"}
_CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "starcoder2": "Starcoder2ForCausalLM",
}
_IDS = ("bos", "eos", "padding")


def config_of(
    metadata: Mapping[str, Any], family: Family, *, tied: bool, rope: Mapping[str, Any] | None = None
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
    sizes = {family.keys[size][0]: getattr(found, size) for size in SIZES}
    settings = {key: told(metadata, f"{name}.{setting}", kind) for setting, (key, kind) in _SETTINGS.items()}
    settings[_EPSILONS.get(family.name, "layer_norm_eps")] = told(metadata, f"{name}.{_EPSILON}", NUMBER)
    ids = {
        f"{'pad' if role == 'padding' else role}_token_id": told(metadata, f"tokenizer.ggml.{role}_token_id", WHOLE)
        for role in _IDS
    }
    known = {key: value for key, value in {**sizes, **settings, **ids}.items() if value is not None}
    if rope is not None:
        known = {key: value for key, value in known.items() if key != "rope_theta"} | {"rope_parameters": dict(rope)}
    classes = [_CLASSES[family.name]]
    return {"architectures": classes, "model_type": family.model_types[0], **known, "tie_word_embeddings": tied}


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
