"""A tokenizer as the metadata of an APR file holds it: the tokens by id, with the merges of BPE or scores of Unigram.

Programs of the stack run an APR file only with its tokenizer inside, and look for nothing beside the file.

Source: `tokenizer.*` in the metadata of APR version 2, https://github.com/paiml/aprender; tokenizer.json of
https://github.com/huggingface/tokenizers.
"""

import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.choosing import TOKENIZER, parse_json
from entrenar_core.formats.json_texts import MAX_BUILT_BYTES, VALUE, built_bytes, parse
from entrenar_core.formats.places import LocalPlace, read_json_of
from entrenar_core.formats.sources import text_bytes

_MAX_HOLES = 100_000
_MAX_TEMPLATE_BYTES = 10_000_000
_MAX_BYTES = 48_000_000  # of tokenizer.json; one of 256,000 tokens has 33 MB
_MAX_SIGNS = 5_000_000  # brackets and quotes; 256,000 tokens with half a million merges have three million
_MAX_MERGES_BYTES = 60_000_000  # of memory; half a million take 35 MB
_UNUSED_SCORE = -10_000.0  # no text is split into what no token stands for
_HINT = "fetch or export the tokenizer again"
_SETTINGS = "tokenizer_config.json"

_BLANK = rb"[ \t\n\r]*+"
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_PAIR = rb"\[" + _BLANK + _TEXT + _BLANK + b"," + _BLANK + _TEXT + _BLANK + rb"\]"
_MERGES = re.compile(rb'"merges"' + _BLANK + b":" + _BLANK + rb"(?=\[)" + VALUE.pattern, re.DOTALL)
_PIECE = re.compile(b"(?:" + _BLANK + b"(?:" + _TEXT + b"|" + _PAIR + b")" + _BLANK + b",){1,20000}+", re.DOTALL)


class TokenizerTooLargeError(ModelError):
    """A tokenizer takes more memory than any that is in use."""


def tokenizer_metadata(folder: Path, config: Mapping[str, Any], vocab_size: int | None = None) -> dict[str, Any]:
    """The keys of APR for the tokenizer in a folder: `tokenizer.*` of a BPE or Unigram, and its chat template.

    Ids that no token has, up to `vocab_size`, are filled with `[PAD…]`, since a token's id is its place. `config` is
    config.json, which names the first and the last token of a text where the tokenizer does not.

    Raises:
        TokenizerTooLargeError: the tokenizer takes more memory than any that is in use.
        ModelError: a file of the tokenizer is broken, or a merge of two tokens with a space in them.
    """
    place = LocalPlace(folder)
    content, merges = _read(place) if TOKENIZER in place.sizes else ({}, b"[]")
    settings = read_json_of(place, _SETTINGS) if _SETTINGS in place.sizes else {}
    try:
        found = _vocabulary(content, merges, folder, vocab_size)
        ids = {token: id_ for id_, token in enumerate(found.get("tokenizer.vocabulary", ()))}
        if ids:
            for role in ("bos", "eos"):
                found[f"tokenizer.{role}_token_id"] = _special(role, settings, config, ids)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{folder / 'tokenizer.json'} has no vocabulary of a known form", _HINT) from error
    found["chat_template"] = _template(folder, settings)
    return {key: value for key, value in found.items() if value is not None}


def _read(place: LocalPlace) -> tuple[Mapping[str, Any], bytes]:
    """What tokenizer.json holds besides merges, and the text of these, which would take most of the memory."""
    with place.open(TOKENIZER) as source:
        name, size = source.name, source.size_bytes
        if size > _MAX_BYTES:
            raise _too_large(name)
        data = text_bytes(source, 0, size, lambda what: ModelError(f"{name} is not JSON: {what}", _HINT))
    if sum(data.count(sign) for sign in (b"{", b"[", b'"')) > _MAX_SIGNS:
        raise _too_large(name)
    merges = b"[]"
    if (found := _MERGES.search(data)) is not None:
        start, end = found.span(1)
        merges, data[start:end] = bytes(data[start:end]), b"[]"
    if len(data) + built_bytes(data) > MAX_BUILT_BYTES:
        raise _too_large(name)
    return parse_json(data, name), merges


def _too_large(name: str) -> TokenizerTooLargeError:
    return TokenizerTooLargeError(f"{name} is too large for a tokenizer", _HINT)


def _merges(text: bytes, folder: Path) -> list[str]:
    """The merges in the text of their list, of which only a piece at a time is made into pairs."""
    found: list[str] = []
    spent = 0
    for merge in chain.from_iterable(map(parse, _pieces(text))):
        found.append(_merge(merge, folder))
        spent += sys.getsizeof(found[-1]) + 8
        if spent > _MAX_MERGES_BYTES:
            raise _too_large(str(folder / TOKENIZER))
    return found


def _pieces(text: bytes) -> Iterator[bytes]:
    at = 1
    while (piece := _PIECE.match(text, at)) is not None:
        yield b"[" + piece[0][:-1] + b"]"
        at = piece.end()
    if at > 1 and not text[at:-1].strip():
        raise ValueError("a list ends with a comma")
    yield b"[" + text[at:]


def _vocabulary(content: Mapping[str, Any], merges: bytes, folder: Path, vocab_size: int | None) -> dict[str, Any]:
    model = content.get("model") or {}
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in ("BPE", "Unigram"):
        return {}
    if kind == "Unigram":
        own = {id_: piece for id_, (piece, _) in enumerate(model["vocab"])}
    else:
        own = {id_: token for token, id_ in model["vocab"].items()}
    tokens = own | {token["id"]: token["content"] for token in content.get("added_tokens") or ()}
    length = _length(tokens, vocab_size, folder)
    found: dict[str, Any] = {"tokenizer.vocabulary": [str(tokens.get(id_, f"[PAD{id_}]")) for id_ in range(length)]}
    if kind == "Unigram":
        found["tokenizer.scores"] = _scores(model["vocab"], tokens, length)
    else:
        later = [_merge(merge, folder) for merge in model["merges"]]  # of a key that is there twice, as Python reads it
        found["tokenizer.merges"] = later or _merges(merges, folder)
    return found | {"tokenizer.model_type": kind}


def _scores(pieces: Sequence[tuple[str, float]], tokens: Mapping[int, str], length: int) -> list[float]:
    """Of every id. An added token is found before the text is split, as if it were certain."""
    own = [float(score) for _, score in pieces]
    return own + [0.0 if id_ in tokens else _UNUSED_SCORE for id_ in range(len(own), length)]


def _length(tokens: Mapping[int, str], vocab_size: int | None, folder: Path) -> int:
    if not all(type(id_) is int and id_ >= 0 for id_ in tokens):
        raise ValueError("an id that is none")
    length = max(max(tokens, default=-1) + 1, vocab_size or 0)
    if length > len(tokens) + _MAX_HOLES:
        raise ModelError(f"{folder} has {len(tokens):,} tokens, and ids up to {length - 1:,}", _HINT)
    return length


def _merge(merge: Any, folder: Path) -> str:
    """Two tokens with a space between: written so already in older files, a pair in newer ones."""
    if isinstance(merge, str):
        return merge
    left, right = merge
    if " " in left or " " in right:
        raise ModelError(
            f"{folder} merges {left!r} and {right!r}, which APR cannot hold: a space stands between two tokens there",
            "leave the tokenizer out",
        )
    return f"{left} {right}"


def _special(role: str, settings: Mapping[str, Any], config: Mapping[str, Any], ids: Mapping[str, int]) -> int | None:
    """The id of the first or last token of a text; config.json may list several of the last."""
    token = settings.get(f"{role}_token")
    named = token.get("content") if isinstance(token, dict) else token
    if isinstance(named, str) and named in ids:
        return ids[named]
    listed = config.get(f"{role}_token_id")
    first = listed[0] if isinstance(listed, list) and listed else listed
    return first if type(first) is int and 0 <= first < len(ids) else None


def _template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """From its own file, or from the settings; of several, the one that is called default."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        try:
            if file.stat().st_size > _MAX_TEMPLATE_BYTES:
                raise ModelError(f"{file} is too large for a template", _HINT)
            return file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ModelError(f"{file} cannot be read: {error}", _HINT) from error
    found = settings.get("chat_template")
    if isinstance(found, list):
        entries = [entry for entry in found if isinstance(entry, dict) and isinstance(entry.get("template"), str)]
        found = next((entry["template"] for entry in reversed(entries) if entry.get("name") == "default"), None)
    return found if isinstance(found, str) else None
