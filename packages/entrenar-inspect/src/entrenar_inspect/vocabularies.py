"""The vocabularies of tokenizers without a tokenizer.json: vocab.json, vocab.txt, and the models of SentencePiece.

No more of a file is taken in than any vocabulary has.

Source: the tokenizers of transformers 5 (gpt2, roberta, whisper, bert, t5, xlm_roberta), and sentencepiece_model.proto
of https://github.com/google/sentencepiece: its field 1 has the pieces, field 2 how they were trained.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.places import Place, read_json_of
from entrenar_core.formats.protobuf import BYTES, VARINT, Field, Messages
from entrenar_core.formats.sources import Source, text_bytes

_HINT = "fetch or save it again"
_MAX_BYTES, _MAX_FIELDS = 100_000_000, 1_000_000
_SETTINGS, _ADDED = "tokenizer_config.json", "added_tokens.json"
_PIECES, _TRAINER, _MODEL_TYPE = 1, 2, 3
_ALGORITHMS = {1: "Unigram", 2: "BPE", 3: "words", 4: "characters"}
_FAIRSEQ = "sentencepiece.bpe.model"  # its pieces have ids that are one higher than their places
# Beside a vocab.json, what tells which algorithm gives its tokens.
_BESIDE = {"merges.txt": "BPE", "source.spm": "SentencePiece", _FAIRSEQ: "SentencePiece"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The algorithm, None where nothing tells it; how many ids have a token; and the largest, None without any."""

    kind: str | None
    tokens: int
    largest_id: int | None


def vocabulary_in(place: Place, name: str) -> Vocabulary | None:
    """The vocabulary of a file in `READERS`, with what was added to it; None of a file of another kind with its name.

    Raises:
        ModelError: it, or a file of settings beside it, is broken.
    """
    return READERS[name](place, name)


def added_ids(place: Place) -> set[int]:
    """The ids of tokens that were added, as tokenizer_config.json and added_tokens.json have them.

    Raises:
        ModelError: one of the two is broken.
    """
    settings = _json(place, _SETTINGS)
    return _ids(place, _SETTINGS, settings.get("added_tokens_decoder") or {}) | _ids(
        place, _ADDED, _json(place, _ADDED).values()
    )


def _json(place: Place, name: str) -> Mapping[str, Any]:
    return read_json_of(place, name) if name in place.sizes else {}


def _ids(place: Place, name: str, values: Iterable[Any]) -> set[int]:
    try:
        return {int(value) for value in values}
    except (OverflowError, TypeError, ValueError) as error:
        raise ModelError(f"{place.name}/{name} has ids that are no numbers", _HINT) from error


def _of_json(place: Place, name: str) -> Vocabulary | None:
    """Ids by token. One for each language, as MMS has it, is not a vocabulary."""
    tokens = _json(place, name)
    if any(isinstance(id_, Mapping) for id_ in tokens.values()):
        return None
    kind = next((algorithm for beside, algorithm in _BESIDE.items() if beside in place.sizes), None)
    ids = _ids(place, name, tokens.values()) | added_ids(place)
    return Vocabulary(kind, len(ids), max(ids, default=None))


def _of_lines(place: Place, name: str) -> Vocabulary:
    """A token in each line; its id is the number of the line."""
    with _bounded(place, name) as source:
        text = text_bytes(source, 0, source.size_bytes, lambda what: _broken(source, what))
    ends = text.count(b"\n") + text.count(b"\r") - text.count(b"\r\n")
    lines = ends + (bool(text) and not text.endswith((b"\n", b"\r")))
    beyond = {id_ for id_ in added_ids(place) if id_ >= lines}
    return Vocabulary("WordPiece", lines + len(beyond), max(beyond, default=lines - 1) if lines or beyond else None)


def _of_sentencepiece(place: Place, name: str) -> Vocabulary | None:
    """Pieces, whose ids are their places. Tokenizers put tokens of their own before and after them, so that there is
    one for each id up to the largest. A tokenizer.model may be a list of tiktoken, too, which is no protobuf.
    """
    with _bounded(place, name) as source:
        if source.read(0, min(1, source.size_bytes)) != bytes([_PIECES << 3 | BYTES]):
            return None
        pieces, algorithm = _counted(Messages(source, lambda what: _broken(source, what)))
    largest = max(added_ids(place), default=-1)
    tokens = max(pieces + (name == _FAIRSEQ), largest + 1)
    return Vocabulary(" ".join(("SentencePiece", *algorithm)), tokens, tokens - 1)


def _counted(messages: Messages) -> tuple[int, tuple[str, ...]]:
    """How many pieces there are, and the algorithm: Unigram, where none is named."""
    pieces, trainer = 0, None
    for count, field in enumerate(messages.fields()):
        if count > _MAX_FIELDS:
            raise messages.fail("it has more fields than any of its kind")
        pieces += field.number == _PIECES
        trainer = field if field.number == _TRAINER else trainer
    return pieces, () if trainer is None else _algorithm(messages, trainer)


def _algorithm(messages: Messages, trainer: Field) -> tuple[str, ...]:
    told = 1
    for count, field in enumerate(messages.fields(trainer)):
        if count > _MAX_FIELDS:
            raise messages.fail("it has more fields than any of its kind")
        if field.number == _MODEL_TYPE and field.kind == VARINT:
            told = field.value
    return (_ALGORITHMS[told],) if told in _ALGORITHMS else ()


@contextmanager
def _bounded(place: Place, name: str) -> Iterator[Source]:
    """A file, opened, of at most as many bytes as any vocabulary has."""
    source = place.open(name)
    try:
        if source.size_bytes > _MAX_BYTES:
            raise ModelError(f"{source.name} is too large for a vocabulary", _HINT)
        yield source
    finally:
        source.close()


def _broken(source: Source, what: str) -> ModelError:
    return ModelError(f"{source.name} has no vocabulary: {what}", _HINT)


READERS: Mapping[str, Callable[[Place, str], Vocabulary | None]] = {
    "vocab.json": _of_json,
    "vocab.txt": _of_lines,
    **dict.fromkeys(("tokenizer.model", "spiece.model", _FAIRSEQ, "spm.model"), _of_sentencepiece),
}
"""What reads a vocabulary, by the name of its file; where a model has several, the first tells the ids."""
