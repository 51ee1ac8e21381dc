"""The tokenizer of a GGUF, written as the files that transformers reads.

It is built of what the file says wherever that is known here. What is not, transformers reads itself, in a process of
its own, so that the memory which that needs is given back.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar_core.conversion.gguf_vocabulary import (
    UnknownTokenizerError,
    UnsoundVocabularyError,
    begins,
    build,
    token_of,
)
from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf import read_header

# What transformers calls a role, and what a GGUF does; its spelling is the one of the files.
_ROLES = {
    "bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding", "sep": "seperator", "cls": "cls", "mask": "mask",
}  # fmt: skip
_COPY = "copy one from the original model"
_INPUTS = ["input_ids", "token_type_ids", "attention_mask"]  # BERT's, which tell the second of two texts
_TEMPLATE = "tokenizer.chat_template"


@dataclass(frozen=True, slots=True)
class WrittenTokenizer:
    """The names of the files, and what is to be said of them."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def write_tokenizer(gguf: Path, folder: Path) -> WrittenTokenizer:
    """Writes the files of a tokenizer into a folder; none where neither this library nor transformers can make them.

    Raises:
        ModelError: the file cannot be read any more.
        OSError: the folder cannot be written to.
    """
    metadata = read_header(gguf, arrays=True).metadata
    if not metadata.get("tokenizer.ggml.tokens"):
        return WrittenTokenizer((), (f"the file has no tokenizer: {_COPY}",))
    try:
        tokenizer = build(metadata)
    except UnknownTokenizerError as error:
        return _by_transformers(gguf, folder, str(error))
    except UnsoundVocabularyError as error:
        return WrittenTokenizer((), (f"no tokenizer is written, since {error}: {_COPY}",))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = json.dumps(settings_of(metadata), indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(settings + "\n", encoding="utf-8")
    return WrittenTokenizer(("tokenizer.json", "tokenizer_config.json"))


def settings_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """What tokenizer_config.json says: the tokens of each role, how long a text may be, and the chat template."""
    length = metadata.get(f"{metadata.get('general.architecture')}.context_length")
    tokens = {f"{role}_token": token_of(metadata, name) for role, name in _ROLES.items()}
    known = {
        **tokens,
        "add_bos_token": begins(metadata),
        "add_eos_token": begins(metadata, "eos"),
        "clean_up_tokenization_spaces": False,
        "model_max_length": length if type(length) is int else None,
        "chat_template": _template(metadata),
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": _INPUTS if metadata.get("tokenizer.ggml.model") == "bert" else None,
    }
    return {key: value for key, value in known.items() if value is not None}


def _template(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The chat template; where there are several, each with its name."""
    start = f"{_TEMPLATE}."
    named = {key.removeprefix(start): text for key, text in metadata.items() if key.startswith(start)}
    plain = metadata.get(_TEMPLATE)
    every = ({"default": plain} if isinstance(plain, str) else {}) | named
    if not named:
        return plain if isinstance(plain, str) else None
    return [{"name": name, "template": text} for name, text in every.items() if isinstance(text, str)]


def _by_transformers(gguf: Path, folder: Path, why: str) -> WrittenTokenizer:
    from entrenar_core.conversion.transformers_tokenizer import write_by_transformers

    try:
        files = write_by_transformers(gguf, folder)
    except ModelError as error:
        note = f"no tokenizer is written, since {why}; {error.message}: {_COPY}"
        return WrittenTokenizer((), (note,))
    return WrittenTokenizer(files, (f"transformers made the tokenizer, since {why}",))
