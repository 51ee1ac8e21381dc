"""What two models say of themselves beside their tensors: configuration, and the metadata of a GGUF."""

from collections.abc import Iterator, Mapping
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.gguf import SkippedArray, read_header
from entrenar_core.formats.places import OneFile
from entrenar_core.formats.sources import FileSource
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.comparing_tokenizers import (
    OF_TOKENIZER,
    SETTINGS,
    Settings,
    equal,
    metadata_tokenizer_changed,
    tokenizer_changed,
    tokenizer_settings,
)
from entrenar_inspect.reports.comparison import SettingChange, TokenizerDifference

METADATA = "GGUF metadata"
_IGNORED = frozenset({"transformers_version", "_name_or_path", "name_or_path"})  # who saved it, and where it lay
_MOST_DEPTH, _MOST_ITEMS = 32, 8
_ABSENT = object()


def beside_tensors(
    first: StoredModel, second: StoredModel
) -> tuple[tuple[SettingChange, ...], TokenizerDifference | None]:
    """The settings that are others, or that one side alone has, and how tokenizers differ; None where they do not.

    Keys inside others are joined by dots. What a GGUF says is not held against what a folder does. That a file has no
    settings or tokenizer around it says nothing; that a folder has none does.

    Raises:
        ModelError: a file cannot be opened.
        AccessError, FetchError: the Hub does not give it.
    """
    ggufs = sum(model.format is WeightFormat.GGUF for model in (first, second))
    if ggufs == 2:
        old, new = _metadata(first), _metadata(second)
        return tuple(_differing(METADATA, old, new)), metadata_tokenizer_changed(old, new)
    if ggufs:
        return (), None
    files = {
        "config.json": (first.config, second.config),
        "adapter_config.json": (first.adapter_config, second.adapter_config),
        SETTINGS: (tokenizer_settings(first), tokenizer_settings(second)),
    }
    settings = tuple(change for file, sides in files.items() for change in _of_file(file, first, second, *sides))
    return settings, tokenizer_changed(first, second, (_is_whole(first), _is_whole(second)))


def _of_file(
    file: str, first: StoredModel, second: StoredModel, old: Settings | None, new: Settings | None
) -> Iterator[SettingChange]:
    if old is not None and new is not None:
        yield from _differing(file, old, new)
    elif _is_broken(first, file, old) or _is_broken(second, file, new):
        yield SettingChange(file, None, "changed")
    elif old is not None and _is_whole(second):
        yield SettingChange(file, None, "removed")
    elif new is not None and _is_whole(first):
        yield SettingChange(file, None, "added")


def _is_broken(model: StoredModel, file: str, settings: Settings | None) -> bool:
    return settings is None and file in model.place.sizes


def _is_whole(model: StoredModel) -> bool:
    return not isinstance(model.place, OneFile)


def _differing(file: str, old: Settings, new: Settings) -> Iterator[SettingChange]:
    before, after = dict(_flat(old)), dict(_flat(new))
    for key in dict.fromkeys((*before, *after)):
        a, b = before.get(key, _ABSENT), after.get(key, _ABSENT)
        if a is _ABSENT:
            yield SettingChange(file, key, "added", new=_shown(b))
        elif b is _ABSENT:
            yield SettingChange(file, key, "removed", old=_shown(a))
        elif not equal(a, b):
            yield SettingChange(file, key, "changed", *_apart(a, b))


def _flat(settings: Settings, above: str = "", depth: int = 1) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if key in _IGNORED or key in OF_TOKENIZER:
            continue
        if isinstance(value, Mapping) and value and depth < _MOST_DEPTH:
            yield from _flat(value, f"{above}{key}.", depth + 1)
        else:
            yield f"{above}{key}", value


def _shown(value: Any) -> Any:
    """A plain value, or what it is that has many."""
    if isinstance(value, SkippedArray):
        return f"array of {value.length:,}"
    if isinstance(value, list | tuple):
        plain = all(isinstance(item, str | int | float | None) for item in value)
        return list(value) if plain and len(value) <= _MOST_ITEMS else f"array of {len(value):,}"
    return f"object of {len(value):,}" if isinstance(value, Mapping) else value


def _apart(a: Any, b: Any) -> tuple[Any, Any]:
    """What both read, where that is not the same."""
    old, new = _shown(a), _shown(b)
    if old == new and isinstance(a, list | tuple):
        other = sum(not equal(one, two) for one, two in zip(a, b, strict=True))
        return old, f"{new}, {other:,} of them others"
    return old, new


def _metadata(model: StoredModel) -> Settings:
    """With its long arrays, where it is here."""
    arrays = any(isinstance(value, SkippedArray) for value in model.metadata.values())
    paths = [file.source.path for file in model.files if isinstance(file.source, FileSource)]
    if not arrays or len(paths) < len(model.files):
        return model.metadata
    try:
        whole = [read_header(path, arrays=True).metadata for path in reversed(paths)]
        return {key: value for metadata in whole for key, value in metadata.items()}
    except ModelError:  # arrays beyond what is read at once: their lengths are known
        return model.metadata
