"""How long a sequence models read: against real models that are given one token too many."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoConfig, AutoModel

from entrenar_core.errors import UsageError
from entrenar_core.memory.jobs import HeldModel, InferenceJob
from entrenar_core.memory.positions import positions_of, require_positions
from entrenar_core.memory.predicting import predict
from entrenar_core.models.quiet import quietly

SMALL = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 16}
LEARNED: dict[str, dict[str, Any]] = {
    "bert": {**SMALL, "max_position_embeddings": 12},
    "roberta": {**SMALL, "max_position_embeddings": 12, "pad_token_id": 1},
    "mpnet": {**SMALL, "max_position_embeddings": 12, "pad_token_id": 1},
    "electra": {**SMALL, "max_position_embeddings": 12},
    "distilbert": {
        "dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16, "vocab_size": 16, "max_position_embeddings": 12,
    },
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 16, "n_positions": 12},
    "opt": {**SMALL, "ffn_dim": 16, "word_embed_proj_dim": 16, "max_position_embeddings": 12, "pad_token_id": 1},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEARNED)
def test_a_table_of_learned_positions_has_so_many_and_no_more(kind: str) -> None:
    config = AutoConfig.for_model(kind, **LEARNED[kind])
    positions = positions_of(config.to_dict())
    assert positions == (10 if kind in ("roberta", "mpnet") else 12)
    with quietly():
        model = AutoModel.from_config(config).eval()
        model(input_ids=torch.full((1, positions), 5))
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, positions + 1), 5))


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        ({"model_type": "llama", "max_position_embeddings": 4096}, 4096),
        ({"model_type": "qwen2", "max_position_embeddings": 32768, "rope_scaling": {"factor": 4}}, 32768),
        ({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text", "max_position_embeddings": 1024}}, 1024),
        ({"model_type": "esm", "max_position_embeddings": 1026, "pad_token_id": 1}, 1024),
        ({"model_type": "esm", "max_position_embeddings": 1026, "position_embedding_type": "rotary"}, 1026),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "bloom", "seq_length": 2048}, None),
        ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": True}}, None),
        ({"model_type": "mpt", "max_seq_len": 2048, "attn_config": {"alibi": False}}, 2048),
        ({"model_type": "falcon", "alibi": True, "max_position_embeddings": 2048}, None),
        ({"model_type": "falcon", "alibi": False, "max_position_embeddings": 2048}, 2048),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": False}, None),
        ({"model_type": "deberta-v2", "max_position_embeddings": 512, "position_biased_input": True}, 512),
        ({"model_type": "mamba2"}, None),
    ],
)  # fmt: skip
def test_what_configurations_state_is_the_limit_where_there_is_one(
    config: dict[str, Any], positions: int | None
) -> None:
    assert positions_of(config) == positions


@given(length=st.integers(1, 5000))
def test_only_a_longer_sequence_is_refused(length: int) -> None:
    config = AutoConfig.for_model("llama", max_position_embeddings=2048)
    if length <= 2048:
        require_positions(config, length, "a model")
        return
    with pytest.raises(
        UsageError, match=f"a sequence of {length:,} tokens is longer than the 2,048 positions of a model"
    ):
        require_positions(config, length, "a model")


def test_a_generation_with_a_longer_context_is_not_predicted() -> None:
    config = AutoConfig.for_model("gpt2", **LEARNED["gpt2"])
    with pytest.raises(UsageError, match="longer than the 12 positions of tiny") as refused:
        predict(InferenceJob(HeldModel("tiny", config, "causal-lm"), 1, 13))
    assert refused.value.hint == "take at most 12 tokens"
