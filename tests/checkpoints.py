"""Tiny models of many families as transformers saves them: the names and shapes in their files, and what they are."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import CONFIG_MAPPING, PreTrainedModel

# Sizes that say what they are: no two of a model are the same by chance, and layers enough for a majority.
_WIDTHS = {"hidden_size": 24, "num_attention_heads": 4, "intermediate_size": 56}
_TEXT = _WIDTHS | {"num_hidden_layers": 3, "vocab_size": 131, "max_position_embeddings": 97}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_DECODER = _TEXT | _IDS | {"num_key_value_heads": 2}
_WIDE = _DECODER | {"head_dim": 10}
_EXPERTS = {"num_hidden_layers": 5, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20}
_FALCON = _IDS | {"hidden_size": 24, "num_attention_heads": 4, "ffn_hidden_size": 56, "num_hidden_layers": 3}
_FALCON |= {"vocab_size": 131}
_TWO_STACKS = {"d_model": 24, "encoder_layers": 3, "decoder_layers": 4, "encoder_ffn_dim": 56, "decoder_ffn_dim": 60}
_TWO_STACKS |= {"encoder_attention_heads": 4, "decoder_attention_heads": 6, "vocab_size": 131}
_T5 = {"d_model": 24, "d_ff": 56, "d_kv": 5, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 4}
_T5 |= {"vocab_size": 131, "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 2}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16}
_V3 = {"norm_rel_ebd": "layer_norm", "share_att_key": True, "type_vocab_size": 0, "position_biased_input": False}
_CLIP_TEXT = _WIDTHS | _IDS | {"num_hidden_layers": 3, "vocab_size": 131, "max_position_embeddings": 21}
_PATCHES = {"image_size": 16, "patch_size": 4}
_CLIP_VISION = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 60} | _PATCHES

SETTINGS: Mapping[str, dict[str, Any]] = {
    "llama": _DECODER,
    "gemma": _WIDE,
    "gemma with biases": _WIDE | {"attention_bias": True},
    "llama with biases": _WIDE | {"attention_bias": True, "mlp_bias": True},
    "mistral": _DECODER,
    "mixtral": _WIDE | {"num_local_experts": 3},
    "qwen2": _DECODER,
    "qwen2_moe": _DECODER | _EXPERTS | {"shared_expert_intermediate_size": 28, "mlp_only_layers": [0]},
    "qwen3": _WIDE,
    "qwen3 with biases": _WIDE | {"attention_bias": True},
    "qwen3_moe": _WIDE | _EXPERTS | {"mlp_only_layers": [1], "attention_bias": True},
    "gemma2": _WIDE,
    "gemma2 with biases": _WIDE | {"attention_bias": True},
    "gemma3_text": _WIDE,
    "gemma3_text with biases": _WIDE | {"attention_bias": True},
    "phi3": _DECODER,
    "gpt2": {"n_embd": 24, "n_layer": 3, "n_head": 4, "vocab_size": 131, "n_positions": 97} | _IDS,
    "gpt_neox": _TEXT | _IDS,
    "falcon": _FALCON | {"multi_query": True},
    "falcon with groups": _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
    "falcon with biases": _FALCON | {"multi_query": False, "parallel_attn": False, "bias": True, "alibi": True},
    "starcoder2": _DECODER,
    "bert": _TEXT,
    "roberta": _TEXT | {"type_vocab_size": 1},
    "xlm-roberta": _TEXT | {"type_vocab_size": 1},
    "distilbert": {"dim": 24, "n_layers": 3, "n_heads": 4, "hidden_dim": 56, "vocab_size": 131}
    | {"max_position_embeddings": 97},
    "albert": _TEXT | {"embedding_size": 16, "num_hidden_groups": 3},
    "deberta": _TEXT | {"type_vocab_size": 0},
    "deberta with types": _TEXT | {"type_vocab_size": 3, "embedding_size": 16, "legacy": False},
    "deberta with distances": _TEXT | _RELATIVE | {"position_biased_input": False, "max_relative_positions": 50},
    "deberta with talking heads": _TEXT | _RELATIVE | {"talking_head": True},
    "deberta-v2": _TEXT | _RELATIVE | _V3,
    "deberta-v2 with types": _TEXT | _RELATIVE | {"type_vocab_size": 3, "embedding_size": 16, "legacy": False},
    "deberta-v2 with convolution": _TEXT | _RELATIVE | _V3 | {"conv_kernel_size": 3, "conv_act": "gelu"},
    "electra": _TEXT | {"embedding_size": 16},
    "electra without projection": _TEXT | {"embedding_size": 24},
    "t5": _T5,
    "t5 with gates": _T5 | {"feed_forward_proj": "gated-gelu"},
    "bart": _TWO_STACKS | _IDS | {"max_position_embeddings": 97},
    "whisper": _TWO_STACKS
    | _IDS
    | {"num_mel_bins": 10, "max_source_positions": 30, "max_target_positions": 40, "decoder_start_token_id": 1}
    | {"suppress_tokens": [], "begin_suppress_tokens": [], "use_weighted_layer_sum": True},
    "vit": _WIDTHS | {"num_hidden_layers": 3} | _PATCHES,
    "clip": {"text_config": _CLIP_TEXT, "vision_config": _CLIP_VISION, "projection_dim": 14},
    "clip_text_model": _CLIP_TEXT | {"projection_dim": 14},
    "clip_vision_model": _CLIP_VISION | {"projection_dim": 14},
}


@dataclass(frozen=True)
class Checkpoint:
    """What `save_pretrained` wrote: `shapes` by name. `model` is what it wrote it of."""

    model: PreTrainedModel
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def config(self) -> Any:
        return self.model.config


@cache
def checkpoint(name: str, kind: str, tied: bool | None = None) -> Checkpoint:
    """A model of `SETTINGS`, made by a class of transformers: by an automatic one, or a family's own."""
    settings = SETTINGS[name] | ({} if tied is None else {"tie_word_embeddings": tied})
    config = CONFIG_MAPPING[name.split()[0]](**settings, num_labels=5 if "Classification" in kind else 2)
    made = getattr(transformers, kind)
    with torch.random.fork_rng():
        model = made.from_config(config) if kind.startswith("Auto") else made(config)
    return Checkpoint(model, saved_shapes(model))


def saved_shapes(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """The names and shapes in the file that a model is saved as."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        with safe_open(Path(folder, "model.safetensors"), "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
