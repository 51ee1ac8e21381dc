"""The Unigram of SentencePiece (T5, XLM-RoBERTa), which a GGUF calls `t5`: of all cuttings of a text, the likeliest.

What a text is normalised by is a table that SentencePiece has compiled, and which goes into the GGUF as it is.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, llm_tokenizer_ugm_session.
"""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from entrenar_core.conversion.tokens.deviations import (
    CLUSTERS,
    WHITE,
    Deviation,
    block,
    other_white_space,
    trailing_space,
)
from entrenar_core.conversion.tokens.reading import SavedTokenizer
from entrenar_core.conversion.tokens.spaces import SPACE, added_texts, prefix_deviations
from entrenar_core.conversion.tokens.vocabulary import Kind, Type, entries_of, unknown_token
from entrenar_core.formats.gguf_values import Kind as Stored
from entrenar_core.formats.gguf_values import Value, f32s, flag, text

_HINT = "use another format, such as safetensors"
_UNLIKELY = -1e6  # of rows without a token, which llama.cpp looks for in texts too
_MANY_SPACES = {"Regex": " {2,}"}
_LARGEST = 3e38  # that 32 bits hold, or nearly
_NOISE = 1e-12  # of reading a number from text
_ROUNDED = (
    "its scores have more digits than a GGUF holds: of two cuttings that are equally likely, llama.cpp may take another"
)


@dataclass(frozen=True, slots=True)
class Normalized:
    """`table`: SentencePiece's own. `joined`: many spaces are one. `stripped`: none is left at the end."""

    table: bytes = b""
    joined: bool = False
    stripped: bool = False


def unigram(saved: SavedTokenizer, vocab_size: int) -> Kind:
    """What a GGUF holds of a Unigram.

    Raises:
        ModelError: llama.cpp would cut texts otherwise, or the tokens do not fit the embedding.
    """
    unknown = unknown_token(saved)
    if saved.model.get("byte_fallback"):
        raise saved.refused("its tokenizer is a Unigram that falls back on bytes, which llama.cpp does not", _HINT)
    if unknown is None:
        raise saved.refused("its tokenizer is a Unigram without an unknown token, which llama.cpp needs", _HINT)
    normalized = _normalized(saved)
    normalized, deviations = _spaced(saved, normalized)
    entries = entries_of(saved, vocab_size)
    scores: dict[str, float] = dict(saved.model["vocab"])
    if any(abs(score) > _LARGEST for score in scores.values()):
        raise saved.refused("its tokenizer has scores that no 32 bits hold", "train the tokenizer again")
    numbers = [
        _UNLIKELY if kind is Type.UNUSED else scores.get(token, 0.0)
        for token, kind in zip(entries.tokens, entries.types, strict=True)
    ]
    metadata = {
        "tokenizer.ggml.model": text("t5"),
        "tokenizer.ggml.pre": text("default"),
        **entries.metadata(),
        "tokenizer.ggml.scores": f32s(numbers),
        "tokenizer.ggml.add_space_prefix": flag(True),
        "tokenizer.ggml.remove_extra_whitespaces": flag(normalized.joined),
    }
    if normalized.table:
        table = Value(Stored.ARRAY, tuple(normalized.table), Stored.U8)
        metadata["tokenizer.ggml.precompiled_charsmap"] = table
    if normalized.table:
        deviations = (*deviations, CLUSTERS)
    exact = all(abs(single(score) - score) <= _NOISE * abs(score) for score in scores.values())
    return Kind(metadata, deviations, () if exact else (_ROUNDED,))


def single(number: float) -> float:
    """The number as 32 bits hold it."""
    held: float = struct.unpack("<f", struct.pack("<f", number))[0]
    return held


def _normalized(saved: SavedTokenizer) -> Normalized:
    done = Normalized()
    for step in saved.steps("normalizer"):
        done = _and_then(saved, done, step)
    return done


def _and_then(saved: SavedTokenizer, done: Normalized, step: Mapping[str, Any]) -> Normalized:
    if step["type"] == "Precompiled" and done == Normalized():
        return replace(done, table=base64.b64decode(step["precompiled_charsmap"]))
    if step["type"] == "Strip" and step["strip_right"]:
        return replace(done, stripped=True)
    if step["type"] == "Replace" and step["pattern"] == _MANY_SPACES and step["content"] in (" ", SPACE):
        return replace(done, joined=True)
    raise saved.refused(
        f"its tokenizer changes a text by the rule {step['type']}, and llama.cpp only by a table of SentencePiece",
        _HINT,
    )


def _spaced(saved: SavedTokenizer, done: Normalized) -> tuple[Normalized, tuple[Deviation, ...]]:
    """What the pre-tokenizer does about spaces: with the normalizer, it joins them or does not."""
    steps, added = saved.steps("pre_tokenizer"), added_texts(saved)
    kinds = [step["type"] for step in steps]
    scheme = steps[-1]["prepend_scheme"] if kinds in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) else "never"
    if scheme == "never":
        rules = " and ".join(kinds) or "nothing"
        raise saved.refused(f"its tokenizer cuts words by {rules}, and llama.cpp puts a space before each", _HINT)
    if steps[-1]["split"]:
        _require_words(saved)
    if len(kinds) == 2:
        if scheme != "always":
            raise saved.refused("its tokenizer leaves out the spaces between words, and llama.cpp does not", _HINT)
        spaces = () if _makes_spaces(done.table) else (other_white_space(added, inside=True),)
        return replace(done, joined=True), (block(added, inside=True), *spaces)
    deviations = prefix_deviations(saved, scheme)
    if not done.joined:
        if done.stripped:
            raise saved.refused("its tokenizer drops spaces at the end of a text alone, unlike llama.cpp", _HINT)
        return done, deviations
    # Of several spaces before a text one is left, as in llama.cpp.
    deviations = (block(added, inside=False), *deviations[1:])
    if not done.stripped:
        return done, (*deviations, trailing_space(added))
    return done, deviations if _makes_spaces(done.table) else (*deviations, other_white_space(added, inside=False))


def _makes_spaces(table: bytes) -> bool:
    """Whether white space of every kind becomes a space before anything is left out."""
    from tokenizers.normalizers import Precompiled

    return bool(table) and all(Precompiled(table).normalize_str(f"a{sign}b") == "a b" for sign in WHITE)


def _require_words(saved: SavedTokenizer) -> None:
    across = next((token for token in saved.vocabulary if SPACE in token[1:]), None)
    if across is not None:
        raise saved.refused(
            f"its tokenizer cuts words at spaces, and its token {across!r} would join two of them in llama.cpp", _HINT
        )
