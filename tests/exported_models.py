"""Tiny models of every family that is written as GGUF, with freshly trained tokenizers of the kind that it has."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import AutoModel, AutoModelForCausalLM

import tokenizer_makers
from family_models import family_model

VOCABULARY = 1000
Maker = Callable[[Path], Path]
TOKENIZERS: Mapping[str, Maker] = {
    "llama": tokenizer_makers.sentence_piece,
    "mistral": tokenizer_makers.sentence_piece,
    "qwen2": lambda folder: tokenizer_makers.byte_level(folder, pre="qwen2"),
    "qwen3": lambda folder: tokenizer_makers.byte_level(folder, pre="qwen2"),
    "gemma2": lambda folder: tokenizer_makers.sentence_piece(folder, spaces="never"),
    "gemma3_text": lambda folder: tokenizer_makers.sentence_piece(folder, spaces="never"),
    "phi3": tokenizer_makers.sentence_piece,
    "gpt2": tokenizer_makers.byte_level,
    "starcoder2": lambda folder: tokenizer_makers.byte_level(folder, pre="starcoder"),
    "bert": tokenizer_makers.wordpiece,
}
"""By transformers' name of a family, the tokenizer that its models have."""


def exported_model(folder: Path, model_type: str, *, auto: Any = None, **settings: Any) -> Path:
    """A model of random weights with its tokenizer, as transformers saves them."""
    usual = AutoModel if model_type == "bert" else AutoModelForCausalLM
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    model = family_model(model_type, auto or usual, **{"vocab_size": VOCABULARY, **ids, **settings})
    model.save_pretrained(folder)
    return TOKENIZERS[model_type](folder)
