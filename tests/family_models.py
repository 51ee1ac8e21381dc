"""A model of every family in families.toml, of a few thousand random weights, from the keys of its row."""

from typing import Any

import torch
from torch import nn
from transformers import CONFIG_MAPPING

from entrenar_core.architectures import family_of

WANTED = {
    "num_layers": 2,
    "hidden_size": 24,
    "num_heads": 4,
    "num_kv_heads": 2,
    "intermediate_size": 56,
    "vocab_size": 131,
    "max_positions": 96,
}
# Outside of the table's sizes: the width of a head, which follows from the others only in some families, and experts.
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 20, "mlp_only_layers": [0]}
FURTHER: dict[str, dict[str, Any]] = {
    "t5": {"d_kv": 6, "num_decoder_layers": 3},
    "qwen3": {"head_dim": 6},
    "gemma2": {"head_dim": 6},
    "gemma3_text": {"head_dim": 6},
    "mistral": {"head_dim": 6},
    "mixtral": {"head_dim": 6, "num_local_experts": 3},
    "qwen2_moe": EXPERTS | {"shared_expert_intermediate_size": 28},
    "qwen3_moe": EXPERTS | {"head_dim": 6},
    "phi3": {"pad_token_id": 0},
    "bart": {"decoder_attention_heads": 4},
    "whisper": {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}


def family_model(model_type: str, auto: Any, **settings: Any) -> Any:
    """In evaluation mode, its weights drawn wide enough that all of them matter; `auto` makes it of its config."""
    family = family_of({"model_type": model_type})
    assert family is not None
    sizes = {family.keys[size][0]: value for size, value in WANTED.items() if size != "num_kv_heads"}
    if family.keys["num_kv_heads"][0] not in sizes:
        sizes[family.keys["num_kv_heads"][0]] = WANTED["num_kv_heads"]
    torch.manual_seed(0)
    model = auto.from_config(CONFIG_MAPPING[model_type](**{**sizes, **FURTHER.get(model_type, {}), **settings}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()
