"""Generation on tensors without data: against the same pass on real tensors, operation by operation, and against the
resident memory of processes that really generate.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig

from entrenar_core.memory import generating, steps
from entrenar_core.memory.depth import Depths, extrapolated
from entrenar_core.memory.estimate import Trace
from entrenar_core.memory.generating import AS_STORED, trace_inference
from entrenar_core.memory.jobs import HeldModel, InferenceJob
from entrenar_core.memory.kv_cache import kv_bytes
from entrenar_core.memory.predicting import predict
from entrenar_core.memory.stored import stored_weight_bytes
from entrenar_core.memory.tracking import Tracking
from entrenar_core.models.quiet import quietly
from entrenar_core.references import parse_reference
from inference_models import GROUPED, TOKENS, config, held
from llama_server import SMOLLM

CONTEXT, ROWS = 20, 2
PROCESS = Path(__file__).parents[1] / "inference_process.py"
FIXED = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "65536",
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "MALLOC_TOP_PAD_": "0",
}
TINY = {**GROUPED, "num_hidden_layers": 2}


class RealTracking(Tracking):
    """Notes what operations on real tensors make, and answers nothing in their place."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        self._note_all(made)
        return made


def really_traced(job: InferenceJob, monkeypatch: pytest.MonkeyPatch) -> Trace:
    """The same pass with weights that are there."""
    with monkeypatch.context() as patched, quietly():
        patched.setattr(steps, "FakeTensorMode", lambda **_: nullcontext())
        patched.setattr(steps, "Tracking", RealTracking)
        patched.setattr(steps, "experts_without_data", nullcontext)
        patched.setattr(steps, "taken_for_real", lambda _: nullcontext())
        generation = generating.Generation(job, None, 1)
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in generation.model.parameters():
                weight.normal_(0, 0.02)
            for buffer in generation.model.buffers():
                buffer.fill_(1)
        return generation.trace()


def moments(trace: Trace) -> dict[tuple[str, int | None], dict[tuple[str, str], int]]:
    """What is held in each place."""
    return {(one.phase, one.layer): {key: size for key, size in one.held.items() if size} for one in trace.moments}


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        ("llama", "sdpa"),
        ("gemma3_text", "eager"),
        ("qwen3_next", "sdpa"),
        ("t5", "sdpa"),
        *(
            pytest.param(kind, attention, marks=pytest.mark.nightly)
            for kind in ("llama", "mistral", "gemma2", "gpt2", "gpt_oss", "deepseek_v3", "jamba", "falcon_h1", "bart")
            for attention in ("sdpa", "eager")
        ),
    ],
)  # fmt: skip
def test_every_moment_is_that_of_real_tensors(kind: str, attention: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    job = InferenceJob(replace(held(kind), attention=attention), ROWS, CONTEXT)
    assert moments(trace_inference(job, None)) == moments(really_traced(job, monkeypatch))


def test_an_encoder_reads_and_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bert = AutoConfig.for_model("bert", **{**TINY, "num_key_value_heads": 4})
    for task in ("masked-lm", "sequence-classification", "embedding"):
        job = InferenceJob(HeldModel("bert", bert, task), ROWS, CONTEXT)
        trace = trace_inference(job, None)
        assert set(trace.phases) == {"loaded", "forward"}
        assert "KV cache" not in trace.peak.components
        assert moments(trace) == moments(really_traced(job, monkeypatch)), task


@pytest.mark.parametrize(
    ("kind", "depths", "layers"),
    [
        ("llama", Depths(2, 1, 6), 6),
        ("gemma2", Depths(4, 2, 8), 8),
        ("deepseek_v3", Depths(3, 1, 6), 6),
        pytest.param("gemma2", Depths(3, 2, 9), 9, marks=pytest.mark.nightly),
        pytest.param("mistral", Depths(2, 1, 6), 6, marks=pytest.mark.nightly),
        pytest.param("gemma3_text", Depths(8, 6, 20), 20, marks=pytest.mark.nightly),
        pytest.param("qwen3_next", Depths(8, 4, 16), 16, marks=pytest.mark.nightly),
    ],
)
def test_a_few_layers_tell_of_all_of_them(kind: str, depths: Depths, layers: int) -> None:
    job = InferenceJob(held(kind, num_hidden_layers=layers), ROWS, CONTEXT)
    whole = trace_inference(job, None)
    base, longer = (trace_inference(job, count) for count in (depths.short, depths.short + depths.period))
    told = extrapolated(base, {0: longer}, {0: depths})
    assert {place: size for place, size in moments(whole).items() if place in moments(told)} == moments(told)
    assert (told.parameters, told.flops, told.peak.total_bytes) == (
        whole.parameters,
        whole.flops,
        whole.peak.total_bytes,
    )


def test_a_deep_model_is_told_from_a_few_layers_with_its_whole_cache() -> None:
    job = InferenceJob(held("llama", num_hidden_layers=40, vocab_size=64), ROWS, CONTEXT)
    found = predict(job)
    assert found.method == "extrapolated"
    expected = kv_bytes(job.model.config.to_dict(), ROWS, CONTEXT + 1, "float32").size_bytes
    last = [moment for moment in found.trace.moments if moment.phase == "decode"][-1]
    assert (last.layer, last.components["KV cache"]) == (40, expected)
    turning = 2 * 4 * 4  # the frequencies of its rotation, twice
    assert found.trace.peak.components["student weights"] == 4 * found.trace.parameters + turning


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("mamba", 40),
        pytest.param("qwen3_next", 1024, marks=pytest.mark.nightly),
        pytest.param("jamba", 200, marks=pytest.mark.nightly),
        pytest.param("rwkv", 200, marks=pytest.mark.nightly),
    ],
)
def test_four_short_contexts_tell_of_a_long_one_where_it_is_computed_piece_by_piece(kind: str, context: int) -> None:
    job = InferenceJob(held(kind, **({} if kind == "rwkv" else {"max_position_embeddings": 4096})), ROWS, context)
    told, followed = predict(job), trace_inference(job, None)
    assert (told.method, told.trace.flops) == ("extrapolated", followed.flops)
    assert told.peak_bytes == pytest.approx(followed.peak.total_bytes, rel=0.001)
    assert told.trace.phases["decode"].held == followed.phases["decode"].held
    assert any("four short ones" in sentence for sentence in told.assumptions)


def test_where_nothing_can_be_followed_formulas_count_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from entrenar_core.memory import tracking

    monkeypatch.setattr(tracking, "MOST_OPERATIONS", 50)
    job = InferenceJob(replace(held("llama"), stored_bytes=999), ROWS, CONTEXT, cache_dtype="float16")
    found = predict(job)
    assert found.method == "closed form"
    assert "more than 50 operations" in found.assumptions[0]
    assert found.trace.peak.components["student weights"] == 999
    kept = kv_bytes(job.model.config.to_dict(), ROWS, CONTEXT, "float16").size_bytes
    assert found.trace.peak.components["KV cache"] == kept


def test_of_a_context_only_the_last_logits_are_made() -> None:
    wide = {"vocab_size": 50_000, "tie_word_embeddings": True}
    trace = trace_inference(InferenceJob(held("llama", **wide), 1, 100), None)
    behind = next(one for one in trace.moments if one.phase == "prefill" and one.layer == 4)
    assert behind.components["logits and loss"] < 3 * 4 * 50_000 + 3 * 4 * 100 * 32


def test_weights_are_those_of_the_file_and_the_cache_those_of_its_dtype() -> None:
    job = InferenceJob(held("llama"), ROWS, CONTEXT)
    stored = replace(job, model=replace(job.model, stored_bytes=12_345), cache_dtype="q8_0")
    plain, packed = trace_inference(job, None), trace_inference(stored, None)
    for before, after in zip(plain.moments, packed.moments, strict=True):
        assert after.held["student weights", AS_STORED] == after.components["student weights"] == 12_345
        kept = before.components.get("KV cache", 0)
        assert after.components.get("KV cache", 0) == round(kept * 34 / 128)
        assert after.components.get("activations") == before.components.get("activations")


def test_what_has_a_state_keeps_it_in_its_own_dtype() -> None:
    job = InferenceJob(held("falcon_h1", dtype="bfloat16"), ROWS, CONTEXT, cache_dtype="q8_0")
    last = trace_inference(job, None).moments[-1]
    halves, whole = kv_bytes(config("falcon_h1").to_dict(), ROWS, CONTEXT + 1, "bfloat16").layers
    assert last.held["KV cache", "q8_0"] == halves.size_bytes * 34 // 64
    assert last.held["KV cache", "bfloat16"] + last.held["KV cache", "float32"] == whole.size_bytes


@settings(max_examples=4)
@given(rows=st.integers(1, 4), context=st.integers(2, 60))
def test_more_rows_and_a_longer_context_take_more(rows: int, context: int) -> None:
    def peak(rows: int, context: int) -> int:
        return trace_inference(InferenceJob(held("llama", num_hidden_layers=2), rows, context), None).peak.total_bytes

    assert peak(rows + 1, context) > peak(rows, context) < peak(rows, context + 1)


@pytest.mark.real_models
def test_stored_bytes_are_those_that_the_tensors_of_a_real_gguf_take() -> None:
    gguf = pytest.importorskip("gguf")
    if find_spec(SMOLLM[0]) is None:
        pytest.skip(f"{SMOLLM[0]} is not installed")
    path = parse_reference(f"pkg://{'/'.join(SMOLLM)}").locate()
    expected: dict[str, int] = {}
    for tensor in gguf.GGUFReader(path).tensors:
        expected[tensor.tensor_type.name] = expected.get(tensor.tensor_type.name, 0) + int(tensor.n_bytes)
    assert stored_weight_bytes(f"pkg://{'/'.join(SMOLLM)}") == (sum(expected.values()), expected)
    assert sum(expected.values()) < path.stat().st_size < 1.05 * sum(expected.values())


def test_stored_bytes_of_a_folder_are_those_of_its_tensors(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with quietly():
        model = AutoModelForCausalLM.from_config(config("llama"), dtype=torch.bfloat16)
        model.save_pretrained(tmp_path, max_shard_size="20KB")
    expected = sum(tensor.nbytes for tensor in model.parameters())
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert stored_weight_bytes(str(tmp_path)) == (expected, {"BF16": expected})


LLAMA = {
    **TOKENS, "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 4,
    "num_hidden_layers": 4, "vocab_size": 8000,
}  # fmt: skip
LARGE = {**LLAMA, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 8, "vocab_size": 16_000}
GEMMA = {
    **TOKENS, "hidden_size": 640, "intermediate_size": 2048, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 256, "num_hidden_layers": 12, "vocab_size": 32_000, "sliding_window": 256,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the kernel says what was most resident")
@pytest.mark.parametrize(
    ("kind", "sizes", "rows", "context", "dtype", "attention"),
    [
        ("llama", LLAMA, 4, 512, "float32", "sdpa"),
        pytest.param("llama", LARGE, 4, 512, "float32", "sdpa", marks=pytest.mark.nightly),
        pytest.param("llama", LARGE, 2, 1024, "float32", "eager", marks=pytest.mark.nightly),
        pytest.param("llama", LARGE, 4, 1024, "bfloat16", "sdpa", marks=pytest.mark.nightly),
        pytest.param("gemma3_text", GEMMA, 1, 1024, "float32", "sdpa", marks=pytest.mark.nightly),
    ],
)
def test_a_process_that_generates_takes_what_was_predicted(
    kind: str, sizes: dict[str, Any], rows: int, context: int, dtype: str, attention: Any
) -> None:
    asked = {"kind": kind, "settings": sizes, "tiny": TINY, "rows": rows, "context": context}
    command = [sys.executable, str(PROCESS), json.dumps({**asked, "dtype": dtype, "attention": attention})]
    done = subprocess.run(command, env={**os.environ, **FIXED}, capture_output=True, text=True, timeout=300, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])["peak"]
    model = HeldModel(kind, AutoConfig.for_model(kind, **sizes), "causal-lm", dtype=dtype, attention=attention)
    assert predict(InferenceJob(model, rows, context)).peak_bytes == pytest.approx(measured, rel=0.05)
