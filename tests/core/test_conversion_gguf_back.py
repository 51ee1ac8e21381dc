"""There and back: a folder as GGUF, and the GGUF as a folder again, is the same model with the same tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, processors
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from entrenar_core.conversion import convert
from entrenar_core.conversion.tokens.trial_texts import TRIAL_TEXTS
from entrenar_core.formats import WeightFormat
from entrenar_core.references import parse_reference
from entrenar_core.stored_model import open_model
from exported_models import TOKENIZERS, exported_model

TOKENS = torch.tensor([[5, 17, 99, 300, 42, 42, 8, 512, 999]])
LLAMA3 = {
    "rope_theta": 10_000.0, "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
GEMMA3_ROPE = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 5_000.0},
    "full_attention": {"rope_type": "default", "rope_theta": 100_000.0},
}
CASES: list[tuple[str, Mapping[str, Any]]] = [
    *((name, {}) for name in TOKENIZERS),
    ("llama", {"rope_parameters": LLAMA3, "attention_bias": True, "tie_word_embeddings": True, "head_dim": 10}),
    ("gemma2", {"sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]}),
    ("gemma3_text", {"sliding_window": 4, "query_pre_attn_scalar": 24, "rope_parameters": GEMMA3_ROPE}),
    ("phi3", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.67}}),
]


def there_and_back(folder: Path, tmp_path: Path) -> tuple[Path, tuple[str, ...]]:
    with open_model(parse_reference(str(folder))) as model:
        convert(model, WeightFormat.GGUF, tmp_path / "model.gguf")
    with open_model(parse_reference(str(tmp_path / "model.gguf"))) as model:
        done = convert(model, WeightFormat.SAFETENSORS, tmp_path / "back")
    return tmp_path / "back", done.notes


@pytest.mark.parametrize(("model_type", "settings"), CASES)
def test_a_model_that_comes_back_computes_the_same(
    model_type: str, settings: Mapping[str, Any], tmp_path: Path
) -> None:
    folder = exported_model(tmp_path / "model", model_type, **settings)
    back, _ = there_and_back(folder, tmp_path)
    auto = AutoModel if model_type == "bert" else AutoModelForCausalLM
    before, after = (auto.from_pretrained(path, dtype=torch.float32).eval() for path in (folder, back))
    with torch.no_grad():
        found, expected = (model(TOKENS)[0] for model in (after, before))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "bert"])
def test_a_tokenizer_that_comes_back_cuts_the_same(model_type: str, tmp_path: Path) -> None:
    folder = exported_model(tmp_path / "model", model_type)
    back, notes = there_and_back(folder, tmp_path)
    assert [note for note in notes if "normalised" not in note] == []
    before, after = (AutoTokenizer.from_pretrained(path) for path in (folder, back))
    for text in (text for text in TRIAL_TEXTS if "\u2581" not in text):  # which a GGUF spells a space with
        assert after(text)["input_ids"] == before(text)["input_ids"], text


def test_two_texts_are_put_together_as_berts_are(tmp_path: Path) -> None:
    back, _ = there_and_back(exported_model(tmp_path / "model", "bert"), tmp_path)
    after, library = (
        AutoTokenizer.from_pretrained(back),
        Tokenizer.from_file(str(tmp_path / "model" / "tokenizer.json")),
    )
    ends = [(token, library.token_to_id(token)) for token in ("[SEP]", "[CLS]")]
    library.post_processor = processors.BertProcessing(*ends)
    expected, found = library.encode("a lighthouse", "counts ships"), after("a lighthouse", "counts ships")
    assert found["input_ids"] == expected.ids
    assert found["token_type_ids"] == expected.type_ids


def test_a_classifier_comes_back_with_its_classes(tmp_path: Path) -> None:
    labels = {0: "asyncio", 1: "json", 2: "pathlib"}
    folder = exported_model(tmp_path / "model", "bert", auto=AutoModelForSequenceClassification, id2label=labels)
    back, _ = there_and_back(folder, tmp_path)
    before, after = (AutoModelForSequenceClassification.from_pretrained(path).eval() for path in (folder, back))
    assert after.config.id2label == labels
    with torch.no_grad():
        torch.testing.assert_close(after(TOKENS).logits, before(TOKENS).logits)


def test_a_sentence_encoder_comes_back_with_its_pooling(tmp_path: Path) -> None:
    back, _ = there_and_back(exported_model(tmp_path / "model", "bert"), tmp_path)
    assert '"pooling_mode_mean_tokens": true' in (back / "1_Pooling" / "config.json").read_text()
    assert (back / "modules.json").is_file()
