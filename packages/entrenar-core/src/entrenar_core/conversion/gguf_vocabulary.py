"""A tokenizer.json from the vocabulary in a GGUF: the byte-level BPE of GPT-2, the one that SentencePiece writes, and
the WordPiece of BERT.

A token is found by its text where the file says that it is one of control, or a user's; the others are what merging
makes. Of SentencePiece only scores are kept: what is merged first is what has the highest.

Source: ggml's docs/gguf.md for the keys, and src/llama-vocab.cpp of https://github.com/ggml-org/llama.cpp for what they
do; https://github.com/huggingface/tokenizers for what is built.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from entrenar_core.conversion.gguf_splits import BEGINS, SPLITTINGS, Splitting

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4
_MAX_LETTERS = 512  # every cut of a token is looked at
_SPACE = "\u2581"  # how SentencePiece writes one
_OTHERWISE_SCORED = ("gemma", "gemma2", "gemma3")  # their merges do not follow the scores that their files have


class UnknownTokenizerError(Exception):
    """What is not known here of the tokenizer that a GGUF has."""


class UnsoundVocabularyError(Exception):
    """What does not fit together in the vocabulary of a GGUF."""


def build(metadata: Mapping[str, Any]) -> "Tokenizer":
    """The tokenizer that the metadata of a GGUF, with its arrays, describes.

    Raises:
        UnknownTokenizerError: it is of a kind that is not known here.
        UnsoundVocabularyError: llama.cpp would refuse it too, or cut texts at random.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in _BUILDERS:
        raise UnknownTokenizerError(f"its tokenizer is of the kind {kind}")
    try:
        tokenizer = _BUILDERS[str(kind)](metadata)
        _add(tokenizer, metadata)
    except (UnknownTokenizerError, UnsoundVocabularyError):
        raise
    except Exception as error:  # the library has no other for a merge of tokens that are none
        raise UnsoundVocabularyError(f"its vocabulary is not sound: {error}") from error
    return tokenizer


def begins(metadata: Mapping[str, Any], role: str = "bos") -> bool:
    """Whether a text gets the first token before it; with `eos`, the last behind it."""
    told = metadata.get(f"tokenizer.ggml.add_{role}_token")
    if isinstance(told, bool) or role != "bos":
        return told is True
    return metadata.get("tokenizer.ggml.model") == "llama" or metadata.get("tokenizer.ggml.pre") in BEGINS


def token_of(metadata: Mapping[str, Any], role: str) -> str | None:
    """The token of a role, such as `bos`."""
    tokens, id_ = metadata["tokenizer.ggml.tokens"], metadata.get(f"tokenizer.ggml.{role}_token_id")
    return str(tokens[id_]) if type(id_) is int and 0 <= id_ < len(tokens) else None


def _byte_level(metadata: Mapping[str, Any]) -> "Tokenizer":
    """Merges are listed; `pre` names how text is cut before."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    splitting = _splitting(metadata)
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(_ids(metadata), merges, ignore_merges=splitting.whole))
    cuts = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in splitting.patterns]
    spelled = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*cuts, spelled])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _splitting(metadata: Mapping[str, Any]) -> Splitting:
    name = str(metadata.get("tokenizer.ggml.pre", "nothing"))
    if name not in SPLITTINGS:
        raise UnknownTokenizerError(f"how its tokenizer cuts words is called {name}, which is not known here")
    return SPLITTINGS[name]


def _pair(merge: str) -> tuple[str, str]:
    """Two tokens with a space between; the first has one letter at least, which may be a space."""
    middle = merge.index(" ", 1)
    return merge[:middle], merge[middle + 1 :]


def _sentence_piece(metadata: Mapping[str, Any]) -> "Tokenizer":
    """Spaces are part of words, and what has no token is written byte by byte."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    if metadata.get("general.architecture") in _OTHERWISE_SCORED:
        raise UnknownTokenizerError("its merges do not follow from its scores")
    ids = _ids(metadata)
    merges = merges_of(metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"], _types(metadata))
    unknown = token_of(metadata, "unknown")
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    spaced = [normalizers.Replace(" ", _SPACE)]
    prefixed = metadata.get("tokenizer.ggml.add_space_prefix", True) is True
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), *spaced] if prefixed else spaced)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if prefixed else back)
    return tokenizer


def _word_piece(metadata: Mapping[str, Any]) -> "Tokenizer":
    """A word begins with what GGUF spells with the sign of a space, and goes on with the other tokens."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

    types = _types(metadata)
    begins_word = f"{_SPACE}."  # a sign alone goes on with a word: no word is empty
    spelled = [
        token if kind != NORMAL else token[1:] if re.match(begins_word, token, re.DOTALL) else f"##{token}"
        for token, kind in zip(metadata["tokenizer.ggml.tokens"], types, strict=True)
    ]
    unknown = token_of(metadata, "unknown") or "[UNK]"
    tokenizer = Tokenizer(models.WordPiece(_numbered(spelled), unk_token=unknown))
    lower = metadata.get("tokenizer.ggml.normalizer.lowercase", True) is True
    bare = metadata.get("tokenizer.ggml.normalizer.strip_accents", lower) is True
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=lower, strip_accents=bare)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def merges_of(tokens: Sequence[str], scores: Sequence[float], types: Sequence[int]) -> list[tuple[str, str]]:
    """Every cut of a token into two others, the token with the highest score first."""
    parts = {token for token, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    order = sorted(range(len(tokens)), key=lambda id_: -scores[id_])
    return [
        (left, right)
        for token in (tokens[id_] for id_ in order if types[id_] == NORMAL)
        for cut in range(1, len(token))
        if (left := token[:cut]) in parts and (right := token[cut:]) in parts
    ]


def _ids(metadata: Mapping[str, Any]) -> dict[str, int]:
    return _numbered(metadata["tokenizer.ggml.tokens"])


def _numbered(tokens: Sequence[str]) -> dict[str, int]:
    ids = {token: id_ for id_, token in enumerate(tokens)}
    if len(ids) != len(tokens):
        raise UnsoundVocabularyError("a token comes twice in its vocabulary")
    if max(map(len, ids), default=0) > _MAX_LETTERS:
        raise UnsoundVocabularyError(f"its vocabulary has a token of more than {_MAX_LETTERS} letters")
    return ids


def _types(metadata: Mapping[str, Any]) -> Sequence[int]:
    types: Sequence[int] = metadata.get("tokenizer.ggml.token_type", (NORMAL,) * len(metadata["tokenizer.ggml.tokens"]))
    if len(types) != len(metadata["tokenizer.ggml.tokens"]):
        raise UnsoundVocabularyError("it has more tokens than types of tokens, or fewer")
    return types


def _add(tokenizer: "Tokenizer", metadata: Mapping[str, Any]) -> None:
    """What is found whole in a text, and what stands at its ends."""
    from tokenizers import AddedToken, processors

    typed = list(zip(metadata["tokenizer.ggml.tokens"], _types(metadata), strict=True))
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in typed
        if kind in (UNKNOWN, CONTROL, USER_DEFINED)
    ]
    tokenizer.add_tokens(added)
    first, last = _ends(metadata)
    if first or last:
        ends = [(token, tokenizer.token_to_id(token)) for token in dict.fromkeys((first, last)) if token]
        one = [f"{first}:0"] if first else []
        single = [*one, "$A:0", *([f"{last}:0"] if last else [])]
        follows = single[1:] if metadata.get("tokenizer.ggml.model") == "bert" else single  # [CLS] stands once
        second = [piece.replace(":0", ":1").replace("$A", "$B") for piece in follows]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=single, pair=[*single, *second], special_tokens=ends
        )


def _ends(metadata: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """What a text gets before and behind it; llama.cpp puts BERT's tokens there whatever the file says."""
    if metadata.get("tokenizer.ggml.model") == "bert":
        return token_of(metadata, "cls") or token_of(metadata, "bos"), token_of(metadata, "seperator")
    first, last = (token_of(metadata, role) if begins(metadata, role) else None for role in ("bos", "eos"))
    return first, last


_BUILDERS = {"bert": _word_piece, "gpt2": _byte_level, "llama": _sentence_piece}
