"""From a folder to the keys `tokenizer.*` of a GGUF: which kind of tokenizer it is, and everything that it needs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar_core.conversion.tokens.byte_level import byte_level
from entrenar_core.conversion.tokens.deviations import Deviation
from entrenar_core.conversion.tokens.reading import SavedTokenizer, panics_told, read_tokenizer
from entrenar_core.conversion.tokens.sentence_piece import sentence_piece
from entrenar_core.conversion.tokens.special import matching_deviations, special_metadata
from entrenar_core.conversion.tokens.templates import template_metadata
from entrenar_core.conversion.tokens.unigram import unigram
from entrenar_core.conversion.tokens.vocabulary import Kind
from entrenar_core.conversion.tokens.wordpiece import wordpiece
from entrenar_core.formats.gguf_values import Value, u32

_BERTS = ("bert",)


@dataclass(frozen=True, slots=True)
class TokenizerMetadata:
    """The keys of a GGUF, and in which texts llama.cpp cuts otherwise than the tokenizer does, if in any.

    `notes` are for a reader: every deviation, and whatever else is to be known.
    """

    metadata: Mapping[str, Value]
    deviations: tuple[Deviation, ...] = ()
    notes: tuple[str, ...] = ()

    def may_differ(self, text: str) -> bool:
        """Whether llama.cpp is known to cut such a text otherwise; all others it cuts as the tokenizer does."""
        return any(deviation.shows_in(text) for deviation in self.deviations)


def tokenizer_metadata(
    folder: Path, *, config: Mapping[str, Any], vocab_size: int, architecture: str
) -> TokenizerMetadata:
    """What llama.cpp needs to cut texts as the tokenizer in a folder does.

    Args:
        config: config.json, for tokens that the tokenizer does not name.
        vocab_size: the rows of the embedding; what has no token becomes an unused one.
        architecture: what the GGUF calls the family of the model.

    Raises:
        ModelError: there is no tokenizer, it is broken, it has more tokens than there are rows, or llama.cpp has no
            such tokenizer.
    """
    saved = read_tokenizer(folder)
    with panics_told(folder):
        kind = _kind_of(saved)(saved, vocab_size)
        special, notes = special_metadata(saved, config, ends_fixed=kind.ends_fixed)
        deviations = (*kind.deviations, *matching_deviations(saved))
    metadata = {**kind.metadata, **special, **template_metadata(saved.templates)}
    if architecture in _BERTS and isinstance(config.get("type_vocab_size"), int):
        metadata["tokenizer.ggml.token_type_count"] = u32(config["type_vocab_size"])
    told = (*(deviation.note for deviation in deviations), *kind.notes, *notes)
    return TokenizerMetadata(metadata, deviations, told)


def _kind_of(saved: SavedTokenizer) -> Callable[[SavedTokenizer, int], Kind]:
    kind = saved.model["type"]
    if kind == "BPE":
        spelled = any(step["type"] == "ByteLevel" for step in saved.steps("pre_tokenizer"))
        return byte_level if spelled else sentence_piece
    if kind in _OTHERS:
        return _OTHERS[kind]
    raise saved.refused(
        f"its tokenizer is a {kind}, which llama.cpp does not know",
        "llama.cpp has byte-level BPE, BPE and Unigram of SentencePiece, and WordPiece",
    )


_OTHERS: Mapping[str, Callable[[SavedTokenizer, int], Kind]] = {"Unigram": unigram, "WordPiece": wordpiece}
