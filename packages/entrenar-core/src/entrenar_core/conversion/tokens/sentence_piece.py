"""The BPE of SentencePiece as tokenizer.json has it (Llama 2, Mistral, Gemma, Phi-3), which a GGUF calls `llama`.

Spaces are written U+2581 and belong to tokens, and what has no token is written byte by byte. tokenizer.json lists
merges; llama.cpp keeps a score for each token instead, and merges the two neighbours whose union is the token with the
highest. That is the same if every cut of a token into two others is a merge, as it is where SentencePiece made the
tokens, and a token scores by its first merge. A tokenizer that was trained with the library of Hugging Face has one
merge for each token; for it llama.cpp has, since 2026, a BPE with merges over such tokens, called `sarvam-moe`, which
puts no space before a text.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, llm_tokenizer_spm_session and the cases of
LLAMA_VOCAB_PRE_TYPE_SARVAM_MOE; generate_merges of transformers 5.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.conversion.tokens.byte_level import merge_lines, require_plain_merges
from entrenar_core.conversion.tokens.reading import SavedTokenizer
from entrenar_core.conversion.tokens.scores import disagreement, scores_of
from entrenar_core.conversion.tokens.spaces import SPACE, Spaces, spaces_of
from entrenar_core.conversion.tokens.vocabulary import Entries, Kind, Type, entries_of
from entrenar_core.formats.gguf_values import Value, f32s, flag, text, texts

OCTETS = tuple(f"<0x{number:02X}>" for number in range(256))
_HINT = "use another format, such as safetensors"
_UNREACHED = -1e6  # below any merge: of tokens that are not made by merging
_RECENT = "only a llama.cpp of 2026 or later knows its kind of tokenizer, a BPE of SentencePiece's form with merges"


def sentence_piece(saved: SavedTokenizer, vocab_size: int) -> Kind:
    """What a GGUF holds of a BPE with bytes to fall back on.

    Raises:
        ModelError: llama.cpp would cut texts otherwise, or the tokens do not fit the embedding.
    """
    require_plain_merges(saved)
    _require_bytes(saved)
    if saved.model.get("ignore_merges"):
        raise saved.refused("its tokenizer takes a word that is a token whole, which llama.cpp does not", _HINT)
    spaces = spaces_of(saved)
    _require_words(saved, spaces)
    entries = _as_pieces(entries_of(saved, vocab_size, typed=_type_of), saved)
    merged = (Type.NORMAL, Type.BYTE)  # others are found in a text before anything is merged
    parts = [token for token, kind in zip(entries.tokens, entries.types, strict=True) if kind in merged]
    merges = [(left, right) for left, right in saved.model["merges"]]
    why = disagreement(merges, parts)
    if why is None:
        return Kind(_by_scores(entries, scores_of(merges), spaces), spaces.deviations)
    if not spaces.prefixed and not _joins_lines(merges):
        return Kind(_by_merges(entries, saved), spaces.deviations, (_RECENT,))
    raise saved.refused(f"its tokenizer merges by rules that llama.cpp cannot follow: {why}", _HINT)


def _by_scores(entries: Entries, scores: Mapping[str, float], spaces: Spaces) -> Mapping[str, Value]:
    return {
        "tokenizer.ggml.model": text("llama"),
        "tokenizer.ggml.pre": text("default"),
        **entries.metadata(),
        "tokenizer.ggml.scores": f32s(scores.get(token, _UNREACHED) for token in entries.tokens),
        "tokenizer.ggml.add_space_prefix": flag(spaces.prefixed),
    }


def _by_merges(entries: Entries, saved: SavedTokenizer) -> Mapping[str, Value]:
    return {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text("sarvam-moe"),
        **entries.metadata(),
        "tokenizer.ggml.merges": texts(merge_lines(saved)),
        "tokenizer.ggml.add_space_prefix": flag(False),
    }


def _type_of(token: str) -> Type:
    return Type.BYTE if token in OCTETS else Type.NORMAL


def _as_pieces(entries: Entries, saved: SavedTokenizer) -> Entries:
    """Runs of spaces that were added by their spelling are made by merging too, and are printed only if normal."""
    found = saved.vocabulary

    def piece(token: str, kind: Type) -> Type:
        return Type.NORMAL if kind is Type.USER_DEFINED and SPACE in token and token in found else kind

    return Entries(entries.tokens, [*map(piece, entries.tokens, entries.types)])


def _require_bytes(saved: SavedTokenizer) -> None:
    missing = set(OCTETS) - set(saved.vocabulary)
    if missing or not saved.model.get("byte_fallback"):
        what = f"has no token for {len(missing)} of the 256 bytes" if missing else "does not fall back on bytes"
        raise saved.refused(
            f"its tokenizer {what}, and llama.cpp writes a sign that it has no token for byte by byte",
            "train the tokenizer with byte_fallback and a token for each byte",
        )


def _require_words(saved: SavedTokenizer, spaces: Spaces) -> None:
    """llama.cpp merges over the whole text; the same as word by word, if no token reaches from one into the next."""
    if not spaces.cut:
        return
    across = next(_across(saved.model["merges"]), None)
    if across is not None:
        raise saved.refused(
            f"its tokenizer cuts words at spaces, and its token {across!r} would join two of them in llama.cpp", _HINT
        )


def _across(merges: Any) -> Iterator[str]:
    return (left + right for left, right in merges if SPACE in (left + right)[1:])


def _joins_lines(merges: list[tuple[str, str]]) -> bool:
    """Whether a token is made of a line feed and something else: llama.cpp cuts there before it merges."""
    return any("\n" in left + right and (left + right).strip("\n") for left, right in merges)
