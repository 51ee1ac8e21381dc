"""The byte-level BPE of GPT-2, Llama 3, Qwen and many others, which a GGUF calls `gpt2`.

Its tokens are spelled in 256 letters, one for each byte, and its merges are listed.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, for what it does with them.
"""

from collections.abc import Iterable

from entrenar_core.conversion.tokens.deviations import COMPOSES, MARKS, Deviation
from entrenar_core.conversion.tokens.pre_tokenizers import cutting_of, name_of
from entrenar_core.conversion.tokens.reading import SavedTokenizer
from entrenar_core.conversion.tokens.vocabulary import Kind, entries_of
from entrenar_core.formats.gguf_values import text, texts

_HINT = "use another format, such as safetensors"
_WITHOUT_MARKS = ("tekken", "gpt-4o")


def byte_level(saved: SavedTokenizer, vocab_size: int) -> Kind:
    """What a GGUF holds of a byte-level BPE.

    Raises:
        ModelError: llama.cpp would cut texts otherwise, or the tokens do not fit the embedding.
    """
    deviations = _normalized(saved)
    require_plain_merges(saved)
    _require_letters(saved)
    whole = saved.model.get("ignore_merges") is True
    pre = name_of(saved, cutting_of(saved), whole=whole, either=_merges_make_tokens(saved))
    metadata = {
        "tokenizer.ggml.model": text("gpt2"),
        "tokenizer.ggml.pre": text(pre),
        **entries_of(saved, vocab_size).metadata(),
        "tokenizer.ggml.merges": texts(merge_lines(saved)),
    }
    return Kind(metadata, (*deviations, MARKS) if pre in _WITHOUT_MARKS else deviations)


def merge_lines(saved: SavedTokenizer) -> Iterable[str]:
    """Each merge as two tokens with a space between."""
    return (" ".join(merge) for merge in saved.model["merges"])


def require_plain_merges(saved: SavedTokenizer) -> None:
    """llama.cpp knows no marks of a word's parts, and nothing that is left to chance.

    Raises:
        ModelError: the merges of this tokenizer do.
    """
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if saved.model.get(name):
            raise saved.refused(f"its tokenizer merges with {name} {saved.model[name]!r}, unknown to llama.cpp", _HINT)
    if any(" " in token for merge in saved.model["merges"] for token in merge):
        raise saved.refused("its tokenizer merges tokens with a space in them, which a GGUF cannot hold", _HINT)


def _normalized(saved: SavedTokenizer) -> tuple[Deviation, ...]:
    kinds = [step["type"] for step in saved.steps("normalizer")]
    other = [kind for kind in kinds if kind != "NFC"]
    if other:
        raise saved.refused(f"its tokenizer changes a text first ({other[0]}), which llama.cpp does not", _HINT)
    return (COMPOSES,) if kinds else ()


def _require_letters(saved: SavedTokenizer) -> None:
    """Without a token for a byte, llama.cpp leaves it out; so does the library, if there is no unknown token."""
    from tokenizers.pre_tokenizers import ByteLevel

    missing = set(ByteLevel.alphabet()) - set(saved.vocabulary)
    unknown = saved.model.get("unk_token")
    if missing and unknown is not None:
        raise saved.refused(
            f"its tokenizer has no token for {len(missing)} of the 256 bytes and writes {unknown} for them, "
            "where llama.cpp writes nothing",
            "train the tokenizer with the alphabet of all bytes",
        )


def _merges_make_tokens(saved: SavedTokenizer) -> bool:
    """Whether each token is what its own letters are merged to, so that it does not matter what is tried first."""
    from tokenizers import models

    merges = [tuple(merge) for merge in saved.model["merges"]]
    model = models.BPE(dict(saved.vocabulary), merges, ignore_merges=False)
    added = {entry["content"] for entry in saved.added.values()}
    return all(len(model.tokenize(token)) == 1 for token in saved.vocabulary if token and token not in added)
