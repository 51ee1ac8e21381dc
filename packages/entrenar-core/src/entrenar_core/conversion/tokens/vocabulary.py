"""The list of tokens that a GGUF holds: one for each row of the embedding, each with its type.

Source: src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp, for what the types do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from entrenar_core.conversion.tokens.deviations import Deviation
from entrenar_core.conversion.tokens.reading import SavedTokenizer
from entrenar_core.formats.gguf_values import Value, i32s, texts


class Type(IntEnum):
    """What a token is. A text is searched for unknown, control and user-defined ones before anything else is done."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Entries:
    """Every token of a vocabulary by its id, as a GGUF spells it."""

    tokens: Sequence[str]
    types: Sequence[Type]

    def metadata(self) -> Mapping[str, Value]:
        """The keys of a GGUF that hold them."""
        return {"tokenizer.ggml.tokens": texts(self.tokens), "tokenizer.ggml.token_type": i32s(map(int, self.types))}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a kind of tokenizer puts into a GGUF, and what is to be said of it.

    `ends_fixed`: llama.cpp puts a token at both ends of a text of this kind, whatever the file says.
    """

    metadata: Mapping[str, Value]
    deviations: tuple[Deviation, ...] = ()
    notes: tuple[str, ...] = ()
    ends_fixed: bool = False


def entries_of(
    saved: SavedTokenizer,
    vocab_size: int,
    *,
    spelled: Callable[[str], str] = str,
    typed: Callable[[str], Type] = lambda _: Type.NORMAL,
) -> Entries:
    """The tokens by id, and for rows without one an unused token.

    Args:
        vocab_size: the rows of the embedding.
        spelled: how a GGUF spells a token of the model; what was added is spelled as itself.
        typed: the type of a token of the model.

    Raises:
        ModelError: there are more tokens than rows, or two that a GGUF would spell alike.
    """
    texts_of = {id_: spelled(token) for token, id_ in saved.vocabulary.items()}
    types = {id_: typed(token) for token, id_ in saved.vocabulary.items()}
    for id_, entry in saved.added.items():
        texts_of[id_] = entry["content"]
        types[id_] = _type_of_added(saved, entry["content"], special=entry["special"])
    _require_rows(saved, texts_of, vocab_size)
    taken = set(texts_of.values())
    if len(taken) != len(texts_of):
        twice = next(text for text in taken if list(texts_of.values()).count(text) > 1)
        raise saved.refused(f"its tokenizer has {twice!r} twice, which llama.cpp refuses", "remove one of the two")
    tokens = [texts_of[id_] if id_ in texts_of else _unused(id_, taken) for id_ in range(vocab_size)]
    return Entries(tokens, [types.get(id_, Type.UNUSED) for id_ in range(vocab_size)])


def unknown_token(saved: SavedTokenizer) -> str | None:
    """The token that stands for what no other does."""
    if saved.model["type"] != "Unigram":
        token: str | None = saved.model.get("unk_token")
        return token
    id_ = saved.model.get("unk_id")
    return None if id_ is None else saved.library.id_to_token(id_)


def _type_of_added(saved: SavedTokenizer, text: str, *, special: bool) -> Type:
    if text == unknown_token(saved):
        return Type.UNKNOWN
    return Type.CONTROL if special else Type.USER_DEFINED


def _require_rows(saved: SavedTokenizer, texts_of: Mapping[int, str], vocab_size: int) -> None:
    beyond = sorted(id_ for id_ in texts_of if id_ >= vocab_size)
    if beyond:
        raise saved.refused(
            f"its tokenizer has {len(texts_of):,} tokens, of which {texts_of[beyond[0]]!r} has the id {beyond[0]}, "
            f"and the embedding has {vocab_size:,} rows",
            "resize the embedding to the tokenizer, or take the tokenizer that belongs to the weights",
        )


def _unused(id_: int, taken: set[str]) -> str:
    text = f"[PAD{id_}]"
    while text in taken:
        text = f"[{text}]"
    taken.add(text)
    return text
