"""Folders of transformers to GGUF files that real llama.cpp runs: it cuts the same tokens and predicts the same.

The models are tiny, of random weights drawn so wide that every one of them matters, and their tokenizers are trained
here. What is compared is what llama.cpp's server says, with what transformers does, in 32 bits on both sides.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from gguf import GGUFReader
from transformers import AutoModelForSequenceClassification

from entrenar_core.conversion import convert
from entrenar_core.conversion.gguf_families import gguf_families
from entrenar_core.conversion.gguf_writing import known_to_differ
from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from entrenar_core.verification import Verification, verify
from exported_models import TOKENIZERS, exported_model

pytestmark = pytest.mark.real_models
pytest.importorskip("xllamacpp", reason="the package xllamacpp is not installed; `make setup` brings it")

TEXTS = TRIAL_TEXTS
PASSAGE = "The ferry to Holm leaves at twenty past six, or when Ingrid has finished her coffee: whichever comes later. "
THETA = {"rope_theta": 10_000.0}
LONGROPE = {
    **THETA, "rope_type": "longrope", "long_factor": [1.1, 2.0, 3.0], "short_factor": [1.0, 1.5, 2.5],
}  # fmt: skip
LLAMA3 = {
    **THETA, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {**THETA, "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 24}
LOCAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 100_000.0},
}
BY_TURNS = ["sliding_attention", "full_attention"]
VARIANTS: list[tuple[str, Mapping[str, Any]]] = [
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": {**THETA, "rope_type": "linear", "factor": 4.0}}),
    ("llama", {"rope_parameters": {**YARN, "beta_fast": 16.0, "beta_slow": 2.0}}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 10}),
    ("qwen2", {"rope_parameters": YARN}),
    ("gemma2", {"sliding_window": 8, "layer_types": BY_TURNS[::-1]}),
    ("gemma2", {"query_pre_attn_scalar": 24, "attn_logit_softcapping": None, "final_logit_softcapping": None}),
    ("gemma2", {"num_hidden_layers": 46, "head_dim": 8, "query_pre_attn_scalar": 8}),
    ("gemma3_text", {"query_pre_attn_scalar": 24, "rope_parameters": LOCAL, "layer_types": BY_TURNS}),
    ("gemma3_text", {"sliding_window": 8, "final_logit_softcapping": 20.0, "tie_word_embeddings": False}),
    ("phi3", {"rope_parameters": {**THETA, "rope_type": "default", "partial_rotary_factor": 0.67}}),
    ("phi3", {"original_max_position_embeddings": 2048, "rope_parameters": LONGROPE}),
    ("gpt2", {"n_inner": 40, "tie_word_embeddings": False}),
]
"""Settings besides the usual ones, of which llama.cpp has to compute the same."""


def exported(folder: Path, target: Path) -> tuple[tuple[str, ...], Callable[[str], bool]]:
    """Writes the GGUF; returns what was noted, and which texts llama.cpp is known to cut otherwise."""
    with open_model(parse_reference(str(folder))) as model:
        return convert(model, WeightFormat.GGUF, target).notes, known_to_differ(model)


def beside_llama(folder: Path, tmp_path: Path, texts: tuple[str, ...] = TEXTS) -> tuple[Verification, tuple[str, ...]]:
    target = tmp_path / "model.gguf"
    notes, differs = exported(folder, target)
    compared = [text for text in texts if not differs(text)]
    assert len(compared) >= len(texts) - 7
    found = verify(target, folder, mix="f32", texts=compared, passage=PASSAGE, positions=48, threads=1)
    return found, notes


def test_every_family_of_the_table_is_tried_here() -> None:
    types = {family.family.model_types[0] for family in gguf_families().values()}
    assert types == set(TOKENIZERS)


@pytest.mark.parametrize("model_type", [name for name in TOKENIZERS if name != "bert"])
def test_llama_cpp_cuts_and_predicts_what_transformers_does(model_type: str, tmp_path: Path) -> None:
    found, _ = beside_llama(exported_model(tmp_path / "model", model_type), tmp_path)
    assert found.texts.first_difference is None
    assert found.predictions is not None
    assert found.predictions.is_exact
    assert found.predictions.distances.difference_max < 0.02
    assert found.predictions.distances.kl_max < 1e-4
    assert found.predictions.distances.agreement > 0.95
    assert found.passed


def test_the_vectors_of_an_encoder_are_the_same(tmp_path: Path) -> None:
    found, notes = beside_llama(exported_model(tmp_path / "model", "bert"), tmp_path)
    assert found.texts.first_difference is None
    assert found.vectors is not None
    assert found.vectors.cosine_min >= 0.9999
    assert found.vectors.pooling == "mean"
    assert any("pooled" in note for note in notes)


def test_the_logits_of_a_classifier_are_the_same(tmp_path: Path) -> None:
    labels = {0: "asyncio", 1: "json", 2: "pathlib"}
    folder = exported_model(tmp_path / "model", "bert", auto=AutoModelForSequenceClassification, id2label=labels)
    found, _ = beside_llama(folder, tmp_path)
    assert found.classes is not None
    assert found.classes.kl_max < 1e-5
    assert found.classes.agreement == 1
    assert GGUFReader(tmp_path / "model.gguf").fields["bert.classifier.output_labels"].contents() == [*labels.values()]


@pytest.mark.nightly
@pytest.mark.parametrize(("model_type", "settings"), VARIANTS)
def test_what_configurations_change_llama_cpp_computes_too(
    model_type: str, settings: Mapping[str, Any], tmp_path: Path
) -> None:
    found, notes = beside_llama(exported_model(tmp_path / "model", model_type, **settings), tmp_path, ())
    assert found.predictions is not None
    assert found.predictions.distances.kl_max < 1e-4
    assert found.predictions.distances.difference_max < 0.05  # the rounding of 46 layers adds up
    assert not [note for note in notes if "other answers" in note]


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("model_type", "settings", "note"),
    [
        ("mistral", {"sliding_window": 8}, "see all before it, not the last 8 alone"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 4.0}}, "dynamically"),
        ("phi3", {"original_max_position_embeddings": 64, "rope_parameters": LONGROPE}, "context is above 64 tokens"),
    ],
)
def test_where_llama_cpp_computes_something_else_it_is_told(
    model_type: str, settings: Mapping[str, Any], note: str, tmp_path: Path
) -> None:
    folder = exported_model(tmp_path / "model", model_type, **settings)
    notes, _ = exported(folder, tmp_path / "model.gguf")
    assert any(note in found for found in notes)
