"""What two tokenizers are compared by: their tokens, the special ones among them, and what decides how texts are split.

It is taken from a loaded tokenizer, or from the files of one without loading it: tokenizer.json and
tokenizer_config.json, or the metadata of a GGUF. Nothing here needs torch or transformers.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import read_json
from entrenar_core.formats.gguf import read_header

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROLES = ("bos", "eos", "pad", "unk")
"""The special tokens that are compared: begin and end of a text, padding, and what no token stands for."""
NO_TOKENIZER = "put tokenizer.json and tokenizer_config.json beside the weights of the model"
"""What to do about a model without a tokenizer."""

_JSON, _GGUF = "tokenizer.json", "GGUF"
_PARTS = ("normalizer", "pre_tokenizer", "post_processor", "added_tokens")
_GGUF_IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
# In the GGUF of a BERT the pieces are spelled otherwise than in its tokenizer.json.
_GGUF_MODELS = ("gpt2", "llama")


@dataclass(frozen=True, slots=True)
class TokenizerFacts:
    """A tokenizer as far as it is compared.

    `tokens` are all of them, with their ids; `roles` maps each of `ROLES` to its token, if there is one. `parts` is
    what decides how a text is split, without ids, as `form` spells it: parts of different forms say nothing about each
    other. `split` gives the tokens of a text, special ones with them; None where the files do not tell.
    """

    tokens: Mapping[str, int]
    roles: Mapping[str, str | None]
    parts: Mapping[str, Any]
    form: str = _JSON
    split: Callable[[str], Sequence[str]] | None = None


@dataclass(frozen=True, slots=True)
class Unread:
    """Why a tokenizer is known only once it is loaded."""

    reason: str


def facts_of(tokenizer: "PreTrainedTokenizerBase") -> TokenizerFacts:
    """Of a loaded fast tokenizer, which is what texts are really split by."""
    backend: Any = tokenizer.backend_tokenizer
    roles = {role: getattr(tokenizer, f"{role}_token") for role in ROLES}

    def split(text: str) -> list[str]:
        found = tokenizer.convert_ids_to_tokens(tokenizer(text, verbose=False)["input_ids"])
        return [found] if isinstance(found, str) else found

    return TokenizerFacts(tokenizer.get_vocab(), roles, parts_of(json.loads(backend.to_str())), split=split)


def read_facts(artifact: ModelArtifact) -> TokenizerFacts | Unread:
    """From the files of a model on this machine.

    Raises:
        ModelError: it has no tokenizer, or one that is broken.
    """
    path = artifact.tokenizer_path
    if not artifact.is_here:
        return Unread(f"the tokenizer of {artifact.reference} shows when it is fetched")
    if path is None:
        raise ModelError(f"{artifact.reference} has no tokenizer", NO_TOKENIZER)
    if path.is_file():
        return _of_gguf(path)
    if not (path / "tokenizer.json").is_file():
        return Unread(f"{artifact.reference} has no tokenizer.json, and its other files are read when it is loaded")
    return _of_folder(path)


def parts_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """What decides how a text is split, of a tokenizer.json: two that split alike and differ in their ids are equal.

    The scores of a Unigram are part of it, and the vocabulary of any other model is not, which its merges or its
    algorithm take as a set.
    """
    parts = {name: _without_ids(content.get(name)) for name in _PARTS}
    parts["model"] = _rules(content["model"])
    if isinstance(parts["added_tokens"], list):
        parts["added_tokens"] = {str(token.get("content")): token for token in parts["added_tokens"]}
    return parts


def _rules(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model without its vocabulary; a merge is written as two tokens, or in older files with a space between."""
    rules: dict[str, Any] = _without_ids({name: model[name] for name in model if name not in ("vocab", "merges")})
    if isinstance(model.get("vocab"), list):
        rules["scores"] = {str(piece): score for piece, score in model["vocab"]}
    if model.get("merges") is not None:
        rules["merges"] = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return rules


def _without_ids(value: Any) -> Any:
    """Ids are compared token by token; here, the same token at another place is the same."""
    if isinstance(value, list):
        return [_without_ids(item) for item in value]
    if not isinstance(value, dict):
        return value
    ids = ("id", "ids", "unk_id")
    kept = {name: _without_ids(item) for name, item in value.items() if name not in ids or isinstance(item, str)}
    for name in ("cls", "sep"):  # a post-processor of BERT or RoBERTa has [token, id]
        if isinstance(kept.get(name), list):
            kept[name] = kept[name][0]
    return kept


def _of_folder(folder: Path) -> TokenizerFacts | Unread:
    file = folder / "tokenizer.json"
    content = read_json(file)
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    try:
        tokens, parts = _tokens(content, config), parts_of(content)
        roles = _with_padding({role: _named(config.get(f"{role}_token")) for role in ROLES})
    except (AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError):
        return Unread(f"{file} has no vocabulary of a known form")
    missing = [token for token in roles.values() if token is not None and token not in tokens]
    if missing:  # transformers then adds it, at an id that it decides
        return Unread(f"tokenizer_config.json in {folder} names {missing[0]!r}, which is not in its tokenizer.json")
    return TokenizerFacts(tokens, roles, parts, split=_splitter(file))


def _tokens(content: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, int]:
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):  # of a Unigram, whose entries are a piece and its score
        vocabulary = {piece: id_ for id_, (piece, _score) in enumerate(vocabulary)}
    tokens = {str(token): int(id_) for token, id_ in vocabulary.items()}
    tokens |= {str(token["content"]): int(token["id"]) for token in content.get("added_tokens") or ()}
    added = config.get("added_tokens_decoder") or {}
    return tokens | {str(token["content"]): int(id_) for id_, token in added.items()}


def _named(token: Any) -> str | None:
    """A special token is written as itself, or with how it is matched."""
    value = token["content"] if isinstance(token, dict) else token
    return None if value is None else str(value)


def _with_padding(roles: dict[str, str | None]) -> dict[str, str | None]:
    """A tokenizer without a pad token pads with another one: see `load_tokenizer`."""
    return roles | {"pad": roles["pad"] or roles["eos"] or roles["unk"]}


def _of_gguf(file: Path) -> TokenizerFacts | Unread:
    metadata = read_header(file, arrays=True).metadata
    tokens, model = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, tuple) or model not in _GGUF_MODELS:
        return Unread(f"the tokens in {file.name} are of the kind {model!r}, which is read when it is loaded")
    ids = {str(token): id_ for id_, token in enumerate(tokens)}
    roles: dict[str, str | None] = {}
    for role, key in _GGUF_IDS.items():
        id_ = metadata.get(f"tokenizer.ggml.{key}_token_id")
        roles[role] = str(tokens[id_]) if isinstance(id_, int) and 0 <= id_ < len(tokens) else None
    other = ("tokens", "token_type", *(f"{key}_token_id" for key in _GGUF_IDS.values()))
    parts = {
        name: value
        for key, value in metadata.items()
        if key.startswith("tokenizer.ggml.") and (name := key.removeprefix("tokenizer.ggml.")) not in other
    }
    return TokenizerFacts(ids, _with_padding(roles), parts, form=_GGUF)


def _splitter(file: Path) -> Callable[[str], Sequence[str]]:
    @cache
    def load() -> Any:
        from tokenizers import Tokenizer

        try:
            tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises nothing narrower
            raise ModelError(f"{file} cannot be loaded: {error}", "fetch or export the model again") from error
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return tokenizer

    def split(text: str) -> Sequence[str]:
        tokenizer = load()  # an unknown piece is its token here, and not its text: hence by ids
        return [tokenizer.id_to_token(id_) for id_ in tokenizer.encode(text).ids]

    return split
