"""How the tokenizers of two models differ: their files, vocabularies and chat templates, without loading them.

Of a model on the Hub settings and templates are read, and of larger files the sizes alone are known.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.artifact import TOKENIZER_FILES, TOKENIZERS
from entrenar_core.errors import ModelError
from entrenar_core.formats.places import read_json_of
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.comparison import TokenizerDifference

Settings = Mapping[str, Any]

SETTINGS = "tokenizer_config.json"
_JSON, _TEMPLATE = "tokenizer.json", "chat_template"
OF_TOKENIZER = ("tokenizer.ggml.tokens", f"tokenizer.{_TEMPLATE}")
"""What a GGUF has in place of these."""
_TOLD_APART = frozenset({_TEMPLATE, "added_tokens_decoder"})
_FILES = tuple(name for name in TOKENIZER_FILES if name != SETTINGS and not name.startswith(_TEMPLATE))
_BLOCK_BYTES = _MOST_FETCHED = 1 << 20


def metadata_tokenizer_changed(old: Settings, new: Settings) -> TokenizerDifference | None:
    """How those in the metadata of two GGUF files differ; None where they do not."""
    tokens = [_ids(side.get(OF_TOKENIZER[0])) for side in (old, new)]
    templates = [side.get(OF_TOKENIZER[1]) for side in (old, new)]
    return _difference((), tokens[0], tokens[1], templates[0] != templates[1])


def tokenizer_changed(first: StoredModel, second: StoredModel, whole: tuple[bool, bool]) -> TokenizerDifference | None:
    """How the tokenizers differ; None where they do not, or where a side that is not `whole` has none.

    Where both have tokenizer.json, which is all of a tokenizer, files that one side has besides do not count. Others
    that are JSON are the same in any layout.

    Raises:
        ModelError: a file cannot be opened.
        AccessError, FetchError: the Hub does not give it.
    """
    if not all(has or _has_tokenizer(model) for has, model in zip(whole, (first, second), strict=True)):
        return None
    files = tuple(name for name in _files(first, second) if not _same_file(first, second, name))
    old, new = (_vocabulary(model) if files else {} for model in (first, second))
    return _difference(files, old, new, _template(first) != _template(second))


def _difference(
    files: tuple[str, ...], old: Mapping[str, int] | None, new: Mapping[str, int] | None, template: bool
) -> TokenizerDifference | None:
    if old is None or new is None:
        return TokenizerDifference(files, None, None, None, template) if files or template else None
    moved = sum(new.get(token, id_) != id_ for token, id_ in old.items())
    found = TokenizerDifference(files, len(new.keys() - old.keys()), len(old.keys() - new.keys()), moved, template)
    return found if files or template or found.added or found.removed or moved else None


def _has_tokenizer(model: StoredModel) -> bool:
    return any(name in model.place.sizes for name in TOKENIZERS)


def _files(first: StoredModel, second: StoredModel) -> Iterator[str]:
    """Those to hold against each other."""
    sides = first.place.sizes, second.place.sizes
    enough = all(_JSON in sizes for sizes in sides)
    for name in _FILES:
        has = [name in sizes for sizes in sides]
        if all(has) or (any(has) and not enough):
            yield name


def _same_file(first: StoredModel, second: StoredModel, name: str) -> bool:
    sizes = [model.place.sizes.get(name) for model in (first, second)]
    if None in sizes:
        return False
    if not (first.is_here and second.is_here):
        return sizes[0] == sizes[1]
    if sizes[0] == sizes[1] and _same_bytes(first, second, name):
        return True
    old, new = (_read(model, name) if name.endswith(".json") and name != _JSON else None for model in (first, second))
    return old is not None and equal(old, new)


def equal(a: Any, b: Any) -> bool:
    """Whether two settings are the same, as 1 and 1.0 are, and 1 and true are not."""
    try:
        return isinstance(a, bool) == isinstance(b, bool) and (a == b or (a != a and b != b))
    except RecursionError:  # a file may be as deep as a parser just bears
        return False


def _same_bytes(first: StoredModel, second: StoredModel, name: str) -> bool:
    a, b = first.place.open(name), second.place.open(name)
    try:
        cuts = [(place, min(_BLOCK_BYTES, a.size_bytes - place)) for place in range(0, a.size_bytes, _BLOCK_BYTES)]
        return a.size_bytes == b.size_bytes and all(a.read(*cut) == b.read(*cut) for cut in cuts)
    finally:
        a.close()
        b.close()


def _ids(tokens: Any) -> Mapping[str, int] | None:
    return {str(token): id_ for id_, token in enumerate(tokens)} if isinstance(tokens, tuple) else None


def _vocabulary(model: StoredModel) -> Mapping[str, int] | None:
    """The ids of tokens; None where tokenizer.json is not here, or broken."""
    if not model.is_here or _JSON not in model.place.sizes:
        return None
    try:
        content = read_json_of(model.place, _JSON)
        vocab = content["model"]["vocab"]
        if isinstance(vocab, list):  # of Unigram: tokens with their scores
            vocab = {str(token): id_ for id_, (token, _) in enumerate(vocab)}
        return {**vocab, **{str(token["content"]): token["id"] for token in content.get("added_tokens") or ()}}
    except (ModelError, AttributeError, KeyError, TypeError, ValueError):
        return None


def tokenizer_settings(model: StoredModel) -> Settings | None:
    """What tokenizer_config.json says, but for what is told apart: the chat template and tokens. None where it is
    broken.

    Raises:
        AccessError, FetchError: the Hub does not give it.
    """
    found = _read(model, SETTINGS)
    return None if found is None else {key: value for key, value in found.items() if key not in _TOLD_APART}


def _read(model: StoredModel, name: str) -> Settings | None:
    size = model.place.sizes.get(name)
    if size is None or (size > _MOST_FETCHED and not model.is_here):
        return None
    try:
        return read_json_of(model.place, name)
    except ModelError:
        return None


def _template(model: StoredModel) -> Any:
    """The chat template: of a file of its own, or of the settings of the tokenizer."""
    file = f"{_TEMPLATE}.jinja"
    if file in model.place.sizes:
        source = model.place.open(file)
        try:
            return source.read(0, min(source.size_bytes, _MOST_FETCHED)).decode(errors="replace")
        finally:
            source.close()
    found = _read(model, f"{_TEMPLATE}.json") or _read(model, SETTINGS) or {}
    return found.get(_TEMPLATE)
