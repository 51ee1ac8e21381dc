"""What generation keeps, by formulas: against the caches of real models that transformers wrote with, against what is
traced, and against figures that are known.
"""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from entrenar_core.errors import ModelError, UsageError
from entrenar_core.memory.generating import trace_inference
from entrenar_core.memory.jobs import SEQ2SEQ, InferenceJob
from entrenar_core.memory.kv_cache import CACHE_DTYPES, kv_bytes, value_bytes
from entrenar_core.models.quiet import quietly
from inference_models import GROUPED, KINDS, config, held

CONTEXT, ROWS = 20, 2
USUAL = ("gemma3_text", "deepseek_v2", "bamba", "t5")
EVERY = [pytest.param(kind, marks=[] if kind in USUAL else pytest.mark.nightly) for kind in KINDS]
LLAMA_2_7B = {"model_type": "llama", "hidden_size": 4096, "num_attention_heads": 32, "num_hidden_layers": 32}
LLAMA_3_70B = {
    "model_type": "llama", "hidden_size": 8192, "num_attention_heads": 64, "num_key_value_heads": 8,
    "num_hidden_layers": 80,
}  # fmt: skip
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128, "num_hidden_layers": 61,
    "kv_lora_rank": 512, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
}  # fmt: skip


def written(kind: str, dtype: str = "float32", rows: int = ROWS, context: int = CONTEXT) -> int:
    """By formulas, after one token more was read than the context."""
    task = held(kind).task
    found = kv_bytes(config(kind).to_dict(), rows, context + (task != SEQ2SEQ), dtype, written=2 * (task == SEQ2SEQ))
    return found.size_bytes


def tensors(kept: Any) -> list[torch.Tensor]:
    """Those of a cache, however it keeps them, but for the one that says how long a window is."""
    if isinstance(kept, torch.Tensor):
        return [kept]
    if isinstance(kept, list | tuple):
        return [one for part in kept for one in tensors(part)]
    if isinstance(kept, dict):
        return [one for name, part in kept.items() if name != "_sliding_window_tensor" for one in tensors(part)]
    return tensors(vars(kept)) if hasattr(kept, "__dict__") else []


@pytest.mark.parametrize("kind", EVERY)
def test_a_formula_is_what_a_real_model_keeps_after_generating(kind: str) -> None:
    torch.manual_seed(0)
    maker = AutoModelForSeq2SeqLM if held(kind).task == SEQ2SEQ else AutoModelForCausalLM
    with quietly():
        model = maker.from_config(config(kind)).eval()
        ids_BT = torch.randint(3, 60, (ROWS, CONTEXT))
        made = model.generate(ids_BT, max_new_tokens=2, min_new_tokens=2, do_sample=False, return_dict_in_generate=True)
    kept = next(made[name] for name in ("past_key_values", "cache_params", "state") if made.get(name) is not None)
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors(kept)}
    assert written(kind) == sum(storages.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", EVERY)
def test_a_formula_is_what_is_traced_behind_the_last_layer(kind: str, dtype: str) -> None:
    if dtype == "bfloat16" and kind in ("llama", "t5", "gemma3_text"):
        pytest.skip("another dtype is looked at where layers keep a state, a window or something latent")
    trace = trace_inference(InferenceJob(held(kind, dtype=dtype), ROWS, CONTEXT), None)
    last = [moment for moment in trace.moments if moment.phase == "decode"][-1]
    assert last.components["KV cache"] == written(kind, dtype)


@pytest.mark.parametrize(
    ("model", "dtype", "context", "expected"),
    [
        (LLAMA_2_7B, "float16", 4096, 2 * 2**30),  # half a megabyte per token
        (LLAMA_3_70B, "bfloat16", 8192, 2.5 * 2**30),
        (LLAMA_3_70B, "q8_0", 8192, 2.5 * 2**30 * 34 / 64),
        (LLAMA_3_70B, "q4_0", 8192, 2.5 * 2**30 * 18 / 64),
        (DEEPSEEK_V3, "bfloat16", 1000, 70_272_000),  # DeepSeek-AI 2024: 576 numbers per token and layer
    ],
)
def test_known_figures(model: dict[str, Any], dtype: str, context: int, expected: float) -> None:
    found = kv_bytes(model, 1, context, dtype)
    assert found.size_bytes == expected
    assert found.token_bytes * context == expected


def test_latent_attention_is_told_both_ways() -> None:
    latent, expanded = (kv_bytes(DEEPSEEK_V3, 1, 1000, "bfloat16", expanded=expanded) for expanded in (False, True))
    assert [layers.kind for layers in latent.layers] == ["latent"]
    assert expanded.size_bytes == latent.size_bytes * 128 * (128 + 64 + 128) // 576


def test_layers_with_a_window_stop_growing_at_its_end() -> None:
    settings = config("gemma3_text").to_dict()
    short, long = (kv_bytes(settings, 1, context, "float16") for context in (7, 100))
    sliding = {layers.kind: layers for layers in long.layers}["sliding"]
    assert (sliding.count, sliding.token_bytes, sliding.size_bytes) == (6, 0, 6 * 8 * 2 * 2 * 8 * 2)
    assert short.token_bytes == 7 * 2 * 2 * 8 * 2
    assert kv_bytes(settings, 1, 200, "float16").size_bytes - long.size_bytes == 100 * long.token_bytes


def test_settings_that_list_no_layers_are_read_by_the_rule_of_their_family() -> None:
    for kind in ("gemma2", "gemma3_text", "cohere2", "mistral"):
        listed = config(kind).to_dict()
        bare = {name: value for name, value in listed.items() if name not in ("layer_types", "_sliding_window_pattern")}
        assert kv_bytes(bare, 1, 100, "float16") == kv_bytes(listed, 1, 100, "float16"), kind


@given(
    kind=st.sampled_from([kind for kind in KINDS if held(kind).task != SEQ2SEQ]),
    rows=st.integers(1, 64),
    context=st.integers(1, 100_000),
    more=st.integers(0, 100_000),
)
def test_it_is_as_much_for_every_row_and_no_less_for_a_longer_context(
    kind: str, rows: int, context: int, more: int
) -> None:
    settings = config(kind).to_dict()
    one = kv_bytes(settings, 1, context, "bfloat16").size_bytes
    assert kv_bytes(settings, rows, context, "bfloat16").size_bytes == rows * one
    assert kv_bytes(settings, 1, context + more, "bfloat16").size_bytes >= one


@pytest.mark.parametrize(
    ("dtype", "bits"), [("q8_0", 8.5), ("q4_0", 4.5), ("iq4_nl", 4.5), ("f16", 16), ("float32", 32)]
)
def test_a_number_takes_its_share_of_a_block(dtype: str, bits: float) -> None:
    assert value_bytes(dtype) * 8 == bits
    assert dtype in CACHE_DTYPES


def test_what_no_cache_can_be_is_refused() -> None:
    with pytest.raises(UsageError, match="no cache of keys and values is kept in q3_k"):
        kv_bytes(GROUPED, 1, 10, "q3_k")
    with pytest.raises(UsageError, match="do not fill blocks of q8_0"):
        kv_bytes({**LLAMA_2_7B, "num_attention_heads": 1, "hidden_size": 5, "num_hidden_layers": 1}, 1, 1, "q8_0")
    with pytest.raises(ModelError, match="does not say `num_hidden_layers`"):
        kv_bytes({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}, 1, 10, "float16")
    with pytest.raises(ModelError, match="what layers of the kind telepathy keep has no formula"):
        kv_bytes({**LLAMA_2_7B, "layer_types": ["telepathy"] * 32}, 1, 10, "float16")
    with pytest.raises(ModelError, match="what a layer with a state keeps in a minimax has no formula"):
        kv_bytes({"model_type": "minimax", "layer_types": ["linear_attention"]}, 1, 10, "float16")
