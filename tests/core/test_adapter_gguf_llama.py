"""Adapters as GGUF beside real llama.cpp: it expects what transformers and peft do, of every family.

What is compared are log probabilities over the whole vocabulary, in 32 bits on both sides. llama.cpp has tables in 16
bits for the activations of some families, which is what their tolerance is for.
"""

from pathlib import Path
from typing import Any

import pytest

from entrenar_core.adapters.converting import convert_adapter
from entrenar_core.conversion import convert
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from exported_models import VOCABULARY, exported_model
from llama_adapters import llama_log_probabilities, llama_vectors
from trained_adapters import last_log_probabilities, saved_adapter

pytestmark = pytest.mark.real_models
pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed; `make setup` brings it")

ROWS = [[1, 50, 60, 70, 81], [1, 5, 300, 21, 7, 9, 200, 33]]
PLAIN = 60
EXACT, TABLES = 1e-4, 1e-2
LIKELY = -15.0
PATTERNS = {"use_rslora": True, "rank_pattern": {"q_proj": 2, "down_proj": 7}, "alpha_pattern": {"v_proj": 3}}
OWN_HEAD = {"model": {"tie_word_embeddings": False}, "target_modules": ["embed_tokens", "lm_head", "q_proj"]}


def assert_llama_expects_the_same(tmp_path: Path, model_type: str, tolerance: float, **settings: Any) -> None:
    base = exported_model(tmp_path / "base", model_type, **settings.pop("model", {}))
    adapter = saved_adapter(tmp_path / "adapter", base, **({"target_modules": "all-linear"} | settings))
    with open_model(parse_reference(str(base))) as model, open_model(parse_reference(str(adapter))) as change:
        convert(model, WeightFormat.GGUF, tmp_path / "model.gguf")
        convert_adapter(change, "gguf", tmp_path / "adapter.gguf", base=model)
    found = llama_log_probabilities(
        tmp_path / "model.gguf", [tmp_path / "adapter.gguf"], ROWS, tokens=VOCABULARY, plain=PLAIN
    )
    expected, plain = (last_log_probabilities(base, one, ROWS) for one in (adapter, None))
    for ours, theirs, without in zip(found, expected, plain, strict=True):
        assert len(ours) == VOCABULARY
        assert max(abs(ours[token] - theirs[token]) for token in ours if theirs[token] > LIKELY) < tolerance
        assert max(abs(without[token] - theirs[token]) for token in ours) > 0.5, "the adapter does something"


def test_llama_with_several_scales_expects_the_same(tmp_path: Path) -> None:
    assert_llama_expects_the_same(tmp_path, "llama", EXACT, **PATTERNS)


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model_type", "tolerance", "settings"),
    [
        ("llama", EXACT, OWN_HEAD),
        ("mistral", EXACT, {}),
        ("qwen2", EXACT, {}),
        ("qwen3", EXACT, {"use_rslora": True}),
        ("phi3", EXACT, {}),
        ("gpt2", TABLES, {"fan_in_fan_out": True}),
        ("starcoder2", TABLES, {}),
        ("gemma2", TABLES, {"target_modules": ["v_proj", "o_proj", "gate_proj", "down_proj"]}),
        ("gemma3_text", TABLES, {"target_modules": ["q_proj", "o_proj", "up_proj"]}),
    ],
)
def test_other_families_expect_the_same(
    model_type: str, tolerance: float, settings: dict[str, Any], tmp_path: Path
) -> None:
    assert_llama_expects_the_same(tmp_path, model_type, tolerance, **settings)


@pytest.mark.nightly
def test_an_encoder_makes_the_same_vectors(tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModel

    base = exported_model(tmp_path / "base", "bert")
    parts = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
    adapter = saved_adapter(tmp_path / "adapter", base, auto="AutoModel", target_modules=parts)
    with open_model(parse_reference(str(base))) as model, open_model(parse_reference(str(adapter))) as change:
        convert(model, WeightFormat.GGUF, tmp_path / "model.gguf")
        convert_adapter(change, "gguf", tmp_path / "adapter.gguf", base=model)
    (found,) = llama_vectors(tmp_path / "model.gguf", [tmp_path / "adapter.gguf"], [ROWS[0]])
    tuned: Any = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(adapter)).eval()
    with torch.no_grad():
        expected = tuned(torch.tensor([ROWS[0]])).last_hidden_state.mean(1)[0]
        without = AutoModel.from_pretrained(base).eval()(torch.tensor([ROWS[0]])).last_hidden_state.mean(1)[0]
    assert (torch.tensor(found) - expected).abs().max() < 1e-2
    assert (without - expected).abs().max() > 0.5
