"""A config.json for the weights of a GGUF, from its metadata: what transformers needs to build the same model.

Sources: ggml's docs/gguf.md for the keys, and the configuration classes of transformers for what they are called there.
"""

from collections.abc import Mapping
from typing import Any

from entrenar_core.architectures import SIZES, Family, architecture_of_gguf

# After `general.architecture` and a dot: what config.json calls it.
_SETTINGS = {
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
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
    """
    found = architecture_of_gguf(metadata)
    name = found.model_type
    sizes = {family.keys[size][0]: getattr(found, size) for size in SIZES}
    settings = {key: metadata.get(f"{name}.{told}") for told, key in _SETTINGS.items()}
    settings[_EPSILONS.get(family.name, "layer_norm_eps")] = metadata.get(f"{name}.{_EPSILON}")
    ids = {
        f"{'pad' if role == 'padding' else role}_token_id": metadata.get(f"tokenizer.ggml.{role}_token_id")
        for role in _IDS
    }
    known = {key: value for key, value in {**sizes, **settings, **ids}.items() if value is not None}
    if rope is not None:
        known = {key: value for key, value in known.items() if key != "rope_theta"} | {"rope_parameters": dict(rope)}
    classes = [_CLASSES[family.name]]
    return {"architectures": classes, "model_type": family.model_types[0], **known, "tie_word_embeddings": tied}
