"""What a model's tokenizer is, from its files or the metadata of a GGUF, without loading it."""

from collections.abc import Mapping
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.gguf import SkippedArray
from entrenar_core.formats.places import read_json_of
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.summary import TokenizerSummary
from entrenar_inspect.vocabularies import READERS, vocabulary_in

_JSON, _SETTINGS = "tokenizer.json", "tokenizer_config.json"
_TEMPLATES = ("chat_template.jinja", "chat_template.json")
# How a GGUF calls what tokenizer.json calls by its algorithm.
_GGUF_KINDS = {"gpt2": "BPE", "llama": "SentencePiece", "bert": "WordPiece", "t5": "Unigram", "rwkv": "RWKV"}


def tokenizer_of(model: StoredModel) -> TokenizerSummary | None:
    """The tokenizer beside the weights, or in them; None where there is none. Of a model on the Hub its files are not
    fetched, so its size is not known.

    Raises:
        ModelError: its file is broken.
    """
    if model.format is WeightFormat.GGUF:
        return _of_gguf(model.metadata)
    sizes = model.place.sizes
    templated = any(name in sizes for name in _TEMPLATES)
    file = next((name for name in (_JSON, *READERS) if name in sizes), None)
    if file is None:
        return None
    if not model.is_here:
        return TokenizerSummary(file, None, None, None, templated or None)
    return _of_json(model, templated) if file == _JSON else _of_vocabulary(model, file, templated)


def _of_vocabulary(model: StoredModel, file: str, templated: bool) -> TokenizerSummary:
    found = vocabulary_in(model.place, file)
    templated = templated or bool(_settings(model).get("chat_template"))
    if found is None:
        return TokenizerSummary(file, None, None, None, templated)
    return TokenizerSummary(file, found.kind, found.tokens, found.largest_id, templated)


def _settings(model: StoredModel) -> Mapping[str, Any]:
    return read_json_of(model.place, _SETTINGS) if _SETTINGS in model.place.sizes else {}


def _of_json(model: StoredModel, templated: bool) -> TokenizerSummary:
    content = read_json_of(model.place, _JSON)
    settings = _settings(model)
    try:
        kind, ids = _kind_and_ids(content, settings)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ModelError(f"{model.place.name}/{_JSON} has no vocabulary", "fetch or save it again") from error
    return TokenizerSummary(
        _JSON, kind, len(ids), max(ids, default=None), templated or bool(settings.get("chat_template"))
    )


def _kind_and_ids(content: Mapping[str, Any], settings: Mapping[str, Any]) -> tuple[str, set[int]]:
    model = content["model"]
    vocabulary = model["vocab"]
    ids = set(range(len(vocabulary))) if isinstance(vocabulary, list) else {int(id_) for id_ in vocabulary.values()}
    ids |= {int(token["id"]) for token in content.get("added_tokens") or ()}
    ids |= {int(id_) for id_ in settings.get("added_tokens_decoder") or {}}
    return str(model.get("type") or _by_shape(model)), ids


def _by_shape(model: Mapping[str, Any]) -> str:
    """Older files leave the algorithm out."""
    return "BPE" if "merges" in model else "Unigram" if isinstance(model["vocab"], list) else "WordPiece"


def _of_gguf(metadata: Mapping[str, Any]) -> TokenizerSummary | None:
    tokens, kind = metadata.get("tokenizer.ggml.tokens"), metadata.get("tokenizer.ggml.model")
    if not isinstance(tokens, SkippedArray | tuple):
        return None
    count = tokens.length if isinstance(tokens, SkippedArray) else len(tokens)
    template = "tokenizer.chat_template" in metadata
    return TokenizerSummary(
        "GGUF", _GGUF_KINDS.get(str(kind), str(kind)), count, count - 1 if count else None, template
    )
