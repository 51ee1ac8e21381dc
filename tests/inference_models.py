"""Small decoders of many families, by their configurations, for tests of what generation keeps."""

from typing import Any

from transformers import AutoConfig

from entrenar_core.memory.jobs import SEQ2SEQ, HeldModel

TOKENS = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 4, **TOKENS}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
GPT = {"n_embd": 32, "n_head": 4, "n_layer": 4, **TOKENS}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = {
    **SIZES, **EXPERTS, "num_key_value_heads": 4, "first_k_dense_replace": 1, "n_routed_experts": 4, "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 8, "q_lora_rank": 12, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
}  # fmt: skip
MAMBA2 = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8}
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": {**GROUPED, "sliding_window": 8},
    "gemma2": {**GROUPED, "sliding_window": 8, "num_hidden_layers": 5},
    "gemma3_text": {**GROUPED, "sliding_window": 8, "num_hidden_layers": 7},
    "gemma4_text": {**GROUPED, "sliding_window": 8, "num_hidden_layers": 7, "hidden_size_per_layer_input": 0},
    "cohere2": {**GROUPED, "sliding_window": 8},
    "gpt_oss": {**GROUPED, "sliding_window": 8, "num_local_experts": 4},
    "gpt2": GPT,
    "gpt_neox": SIZES,
    "gpt_bigcode": GPT,
    "bloom": {**GPT, "hidden_size": 32},
    "falcon": SIZES,
    "qwen2": {**SIZES, "num_key_value_heads": 2},
    "qwen3_moe": {**GROUPED, **EXPERTS, "num_experts": 4},
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "deepseek_v32": {**LATENT, "index_head_dim": 8, "index_n_heads": 2},
    "qwen3_next": {**GROUPED, **EXPERTS, **DELTA, "num_experts": 4, "shared_expert_intermediate_size": 16},
    "jamba": {**SIZES, "num_key_value_heads": 2, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    "mamba": {**SIZES, "intermediate_size": 64, "state_size": 8},
    "mamba2": {**SIZES, "num_heads": 4, "head_dim": 16, "expand": 2, "state_size": 8, "chunk_size": 8, "n_groups": 1},
    "bamba": {**SIZES, **MAMBA2, "num_key_value_heads": 2, "attn_layer_indices": [1, 3]},
    "falcon_h1": {**SIZES, **MAMBA2, "num_key_value_heads": 2, "mamba_d_ssm": 64},
    "lfm2": {**SIZES, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "rwkv": {**SIZES, "context_length": 64},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2, **TOKENS},
    "bart": {
        "d_model": 32, "encoder_layers": 3, "decoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48,
        "decoder_attention_heads": 2, "decoder_ffn_dim": 48, **TOKENS,
    },
}  # fmt: skip


def config(kind: str, **settings: Any) -> Any:
    """The configuration of a small model."""
    given = {**KINDS[kind], **settings}
    return AutoConfig.for_model(kind, decoder_start_token_id=0, **given)


def held(kind: str, *, dtype: str = "float32", **settings: Any) -> HeldModel:
    """It as a job has it."""
    task = SEQ2SEQ if kind in ("t5", "bart") else "causal-lm"
    return HeldModel(kind, config(kind, **settings), task, dtype=dtype)
