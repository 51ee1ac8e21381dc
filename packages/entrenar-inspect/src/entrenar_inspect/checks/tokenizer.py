"""The tokenizer: every id that it gives, or that settings name, has a row in the embeddings."""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.formats import WeightFormat
from entrenar_core.formats.places import read_json_of
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import failed, found, ok, skipped, warned
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.tokenizers import tokenizer_of

NAME, SPECIAL = "tokenizer", "special tokens"
_GENERATION = "generation_config.json"
_KEYS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_GGUF_KEYS = tuple(f"tokenizer.ggml.{role}_token_id" for role in ("bos", "eos", "padding", "unknown"))
_NONE_OF_GGUF = 2**32 - 1  # −1, in a key that knows no sign


def fits(model: StoredModel, rows: int | None) -> Check:
    """Holds the largest id against the rows of the embeddings; None where these are not known.

    Raises:
        ModelError: the tokenizer's file is broken.
    """
    found = tokenizer_of(model)
    if found is None:
        return skipped(NAME, "there is none")
    if found.largest_id is None or found.tokens is None:
        return skipped(NAME, f"{found.file} was not read")
    if rows is None:
        return skipped(NAME, "how many embeddings there are is not known")
    if found.largest_id >= rows:
        return failed(NAME, f"ids go up to {found.largest_id:,}, and there are {rows:,} embeddings")
    if found.tokens < found.largest_id + 1:
        return warned(NAME, f"{found.largest_id + 1 - found.tokens:,} ids below {found.largest_id:,} have no token")
    spare = rows - found.largest_id - 1
    return ok(NAME, f"{found.tokens:,} tokens, {rows:,} embeddings" + (f", {spare:,} of them spare" if spare else ""))


def special(model: StoredModel, rows: int | None) -> Check | None:
    """Holds the ids that a text begins, ends and is padded with against the rows of the embeddings. None where none is
    named, or the rows are not known.

    Raises:
        ModelError: a file of settings is broken.
    """
    named = list(_named(model))
    if rows is None or not named:
        return None
    beyond = [
        f"{file} has the {key} {id_:,}, and there are {rows:,} embeddings" for file, key, id_ in named if id_ >= rows
    ]
    roles = dict.fromkeys(key.rpartition(".")[2].removesuffix("_token_id") for _, key, _ in named)
    return found(SPECIAL, beyond, fine=f"{', '.join(roles)}: all among {rows:,} embeddings", wrong="warning")


def _named(model: StoredModel) -> Iterator[tuple[str, str, int]]:
    """File, key and id of each that is named. Negative ones stand for none."""
    if model.format is WeightFormat.GGUF:
        yield from _ids("the metadata", model.metadata, _GGUF_KEYS)
        return
    yield from _ids("config.json", model.config or {}, _KEYS)
    if model.is_here and _GENERATION in model.place.sizes:
        yield from _ids(_GENERATION, read_json_of(model.place, _GENERATION), _KEYS)


def _ids(file: str, settings: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    for key in keys:
        value = settings.get(key)
        for id_ in value if isinstance(value, list) else [value]:
            if type(id_) is int and id_ >= 0 and id_ != _NONE_OF_GGUF:
                yield file, key, id_
