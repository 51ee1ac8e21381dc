"""Texts in batches: whatever the order and the company, each text gets its own numbers."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from entrenar_core.models.calling import logits_of
from entrenar_core.teachers.reading import TextBatch, in_order, text_batches
from tiny_models import tiny_llama

TEXTS = ["the quick brown fox", "dog", "", "the lazy dog jumps over the fox", "fox", "quick quick quick"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def tokenizer(llama: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(llama)  # type: ignore[no-any-return]


def sums(batch: TextBatch) -> Tensor:
    """(B, 1): something that depends on the tokens of a row alone."""
    inputs = batch.inputs("cpu")
    return (inputs["input_ids"] * inputs["attention_mask"]).sum(1, keepdim=True).float()


@given(order=st.permutations(range(len(TEXTS))), batch_size=st.integers(1, 7))
def test_numbers_come_back_in_the_order_of_the_texts(
    tokenizer: PreTrainedTokenizerBase, order: list[int], batch_size: int
) -> None:
    texts = [TEXTS[index] for index in order]
    batches = text_batches(tokenizer, texts, batch_size=batch_size, max_length=64)
    assert sorted(row for batch in batches for row in batch.rows) == list(range(len(texts)))
    read = in_order((batch, sums(batch)) for batch in reversed(batches))
    assert read[:, 0].tolist() == [
        float(sum(tokenizer(text)["input_ids"] or [tokenizer.pad_token_id])) for text in texts
    ]


@given(order=st.permutations(range(len(TEXTS))))
def test_which_texts_share_a_batch_depends_on_the_texts_alone(
    tokenizer: PreTrainedTokenizerBase, order: list[int]
) -> None:
    def company(texts: list[str]) -> list[list[str]]:
        return [
            [texts[row] for row in batch.rows] for batch in text_batches(tokenizer, texts, batch_size=2, max_length=64)
        ]

    assert company([TEXTS[index] for index in order]) == company(TEXTS)


def test_long_texts_are_cut_and_short_ones_padded_on_the_right(tokenizer: PreTrainedTokenizerBase) -> None:
    (batch,) = text_batches(tokenizer, TEXTS, batch_size=9, max_length=3)
    inputs = batch.inputs("cpu")
    assert inputs["input_ids"].shape == (len(TEXTS), 3)
    lengths = inputs["attention_mask"].sum(1)
    assert lengths.tolist() == sorted(lengths.tolist())
    for row, length in zip(inputs["input_ids"], lengths, strict=True):
        assert (row[length:] == tokenizer.pad_token_id).all()


def test_an_empty_text_alone_still_gives_a_model_something_to_read(tokenizer: PreTrainedTokenizerBase) -> None:
    (batch,) = text_batches(tokenizer, [""], batch_size=2, max_length=8)
    assert {name: value.tolist() for name, value in batch.inputs("cpu").items()} == {
        "input_ids": [[tokenizer.pad_token_id]],
        "attention_mask": [[1]],
    }


def test_no_keys_and_values_are_kept_and_the_logits_are_the_same(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama).eval()
    ids = torch.tensor([[5, 6, 7]])
    outputs: list[Any] = []
    model.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    with torch.no_grad():
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        assert torch.equal(logits_of(model, ids, torch.ones_like(ids)), expected)
    assert outputs[0].past_key_values is not None
    assert outputs[1].past_key_values is None


def test_a_model_that_keeps_none_is_not_told_so() -> None:
    class Plain(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
            return SimpleNamespace(logits=input_ids + attention_mask)

    assert logits_of(Plain(), torch.ones(1, 2), torch.ones(1, 2)).tolist() == [[2.0, 2.0]]
