"""Reads the rows of a data set, wherever it is, and says which are for training and which for evaluation.

Whatever the source calls its columns, the rows have the same ones: `row`, then `text` and `label` for a classifier,
for one of words `tokens` and `label`, a list,
and for a language model `text`, or `prompt` and `completion`, or `messages`. `row` is the position in the source;
evaluation rows of another split are numbered on from there. `streams` does the same for rows that are not all read.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.columns import (
    builtin_of,
    check_columns,
    check_features,
    missing_text,
    source_of,
    wanted_columns,
)
from entrenar_core.data.files import find_files
from entrenar_core.data.labels import (
    UNLABELLED,
    LabelMap,
    Value,
    class_index,
    classes,
    clean,
    declared_classes,
    hold_out,
    keep_labels,
)
from entrenar_core.data.library import load_files, reader_options, reading
from entrenar_core.data.tags import Label, read_tags, standing, unlabelled
from entrenar_core.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

DEFAULT_FRACTION = 0.1
_AT_ONCE = 1000  # rows


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to train on and to be judged on; `train` is a stream if `dataset.streaming` is set.

    `label` is an index of `label_names`, −1 where a row has no label, or a list of them, one for each word; evaluation
    rows all have one. `fingerprint` is
    the SHA-256 of what is in all rows, or of a stream's source and the settings that choose from it.
    """

    train: "Dataset | IterableDataset"
    evaluation: "Dataset"
    label_names: tuple[str, ...] | None
    name: str
    fingerprint: str
    num_train_rows: int
    num_labelled_rows: int | None


def load_rows(
    config: DatasetConfig,
    *,
    task: str,
    seed: int,
    label_names: Sequence[str] | None = None,
    token: str | None = None,
    offline: bool | None = None,
) -> Rows:
    """The rows that the settings describe. `label_names` are those of a model's trained head: labels must be of them.

    Raises:
        NotFoundError, AccessError, FetchError: the data is not there, or cannot be fetched.
        DataError: it cannot be read, is empty, or lacks a column, a label or a split.
    """
    if problems := check_columns(config, task, None):
        raise DataError(problems[0].message, problems[0].hint)
    if config.streaming:
        from entrenar_core.data.streams import stream_rows

        return stream_rows(config, task=task, label_names=label_names, token=token, offline=offline)
    split = _opened(config, token, offline)
    source = split(config.split)
    if config.max_rows is not None:
        source = source.select(range(min(config.max_rows, len(source))))
    train = _checked(source, config, task, config.split, 0)
    if config.eval_split is None:
        return _held_out(train, config, seed, label_names)
    other = _checked(split(config.eval_split), config, task, config.eval_split, len(train.data))
    return _beside(train, other, config, seed, label_names)


def name_of(config: DatasetConfig) -> str:
    """What reports call the data."""
    return config.name or Path(config.path or "").name or "data"


@dataclass(frozen=True, slots=True)
class _Split:
    """Rows in our columns, without labels; beside them the classes as the source spells them."""

    data: Any
    values: list[Value | None] | list[list[Value | None]] | None
    declared: tuple[str, ...] | None


def _opened(config: DatasetConfig, token: str | None, offline: bool | None) -> Callable[[str], Any]:
    """What gives a split of the source by its name, as a `datasets.Dataset`."""
    match source_of(config):
        case "builtin":
            return lambda _: _generated(config)
        case "local":
            found = find_files(config.path or "")
            options = reader_options(found.builder, found.suffix, config.label_column)
            return lambda split: load_files(name_of(config), found.builder, {split: found.of(split)}, split, options)
        case _:
            from entrenar_core.hub import download_dataset

            assert config.name is not None, "the rules of the configuration ask for a name"
            splits = [config.split] + ([config.eval_split] if config.eval_split else [])
            fetched = download_dataset(
                config.name,
                revision=config.revision,
                config=config.subset,
                splits=list(dict.fromkeys(splits)),
                token=token,
                offline=offline,
            )
            options = reader_options(fetched.builder, "", config.label_column) | dict(fetched.options)
            return lambda split: load_files(name_of(config), fetched.builder, fetched.splits, split, options)


def _generated(config: DatasetConfig) -> Any:
    import datasets

    with reading(name_of(config)):
        return datasets.Dataset.from_list(list(builtin_of(config).rows()))


def _checked(data: Any, config: DatasetConfig, task: str, split: str, first_row: int) -> _Split:
    """The wanted columns under our names, checked for what they hold."""
    if not len(data):
        raise DataError(f"{name_of(config)}: the split {split} is empty", "a data set needs at least one row")
    check_features(data.features, config, task)
    wanted = wanted_columns(config, task)
    column = wanted.pop("label_column", None)
    declared, values = declared_classes(data.features, column), None
    with reading(name_of(config)):
        for name in wanted.values():
            if (missing := _first_missing(data, name)) is not None:
                raise missing_text(name, missing)
        if column is not None:
            values = _values(data, wanted.get("tokens_column"), column, declared)
        data = data.select_columns(list(dict.fromkeys(wanted.values())))
        data = data.rename_columns({name: setting.removesuffix("_column") for setting, name in wanted.items()})
        return _Split(data.add_column("row", list(range(first_row, first_row + len(data)))), values, declared)


def _values(data: Any, words: str | None, column: str, declared: Sequence[str] | None) -> Any:
    """What the label column holds, as the source spells it; with a column of `words`, a tag for each of them."""
    if words is None:
        return [clean(value, column, declared) for value in data[column]]
    rows = enumerate(zip(data[words], data[column], strict=True))
    return [read_tags(row, texts, tags, (words, column), declared) for row, (texts, tags) in rows]


def _first_missing(data: Any, column: str) -> int | None:
    """The first row in which a column is null; row by row only where there is one at all."""
    if not data.data.column(column).null_count:
        return None
    return next((row for row, value in enumerate(data[column]) if value is None), None)


def _held_out(split: _Split, config: DatasetConfig, seed: int, head: Sequence[str] | None) -> Rows:
    names = _names(split, config, head)
    labels = _indices(split, names, config, head)
    marks = None if labels is None else standing(labels)
    total = len(split.data) if marks is None else sum(mark != UNLABELLED for mark in marks)
    count = max(1, round(total * (config.eval_fraction or DEFAULT_FRACTION)))
    held = hold_out(marks, len(split.data), min(count, config.eval_rows or count), seed)
    if not held or len(held) == len(split.data):
        raise DataError(
            f"{name_of(config)} has too few rows to hold some out: {len(split.data)}"
            + ("" if labels is None else f", {total} of them labelled"),
            "name an `eval_split`, or give more rows",
        )
    chosen = set(held)
    left = [row for row in range(len(split.data)) if row not in chosen]
    evaluation = _with_labels(split.data, labels, held)
    return _rows(split.data, labels, left, evaluation, names, config, seed)


def _beside(split: _Split, other: _Split, config: DatasetConfig, seed: int, head: Sequence[str] | None) -> Rows:
    names = _names(split, config, head)
    labels, judged = _indices(split, names, config, head), _indices(other, names, config, head)
    marks = None if judged is None else standing(judged)
    held = list(range(len(other.data))) if marks is None else [i for i, mark in enumerate(marks) if mark >= 0]
    if not held:
        raise DataError(
            f"no row of {config.eval_split} has a label in column `{config.label_column}`",
            "take another `eval_split`, or leave it out to hold rows out of `split`",
        )
    if config.eval_rows is not None and config.eval_rows < len(held):
        drawn = hold_out(None if marks is None else [marks[i] for i in held], len(held), config.eval_rows, seed)
        held = [held[position] for position in drawn]
    evaluation = _with_labels(other.data, judged, held)
    return _rows(split.data, labels, list(range(len(split.data))), evaluation, names, config, seed)


def _names(split: _Split, config: DatasetConfig, head: Sequence[str] | None) -> tuple[str, ...] | None:
    if split.values is None:
        return None
    if head is not None:
        return tuple(head)
    found = [value for row in split.values for value in (row if isinstance(row, list) else [row])]
    return classes(found, split.declared, config.label_column)


def _indices(
    split: _Split, names: Sequence[str] | None, config: DatasetConfig, head: Sequence[str] | None
) -> list[Label] | None:
    if split.values is None or names is None:
        return None
    mapping = LabelMap(names, config.label_column, of_head=head is not None)

    def index(value: Value | None) -> int:
        return class_index(mapping, value, split.declared)

    return [[index(tag) for tag in value] if isinstance(value, list) else index(value) for value in split.values]


def _rows(
    data: Any,
    labels: list[Label] | None,
    chosen: list[int],
    evaluation: Any,
    names: tuple[str, ...] | None,
    config: DatasetConfig,
    seed: int,
) -> Rows:
    if labels is not None and config.labelled_rows is not None:
        marks = standing(labels[row] for row in chosen)
        kept = keep_labels(marks, config.labelled_rows, seed, config.label_column)
        for row, mark in zip(chosen, kept, strict=True):
            labels[row] = labels[row] if mark != UNLABELLED else unlabelled(labels[row])
    train = _with_labels(data, labels, chosen)
    labelled = None if labels is None else sum(mark >= 0 for mark in standing(labels[row] for row in chosen))
    with reading(name_of(config)):  # bytes that are no text are found here
        fingerprint = fingerprinted((train, evaluation), names)
    return Rows(train, evaluation, names, name_of(config), fingerprint, len(train), labelled)


def _with_labels(data: Any, labels: Sequence[Label] | None, chosen: Sequence[int]) -> Any:
    with reading("the data set"):
        if labels is not None:
            data = data.add_column("label", list(labels))
        return data.select(chosen, keep_in_memory=True)


def fingerprinted(parts: Iterable[Any], names: Sequence[str] | None) -> str:
    """SHA-256 of what rows hold, in their order, and of the names of their classes."""
    digest = hashlib.sha256(json.dumps(names).encode())
    for part in parts:
        digest.update(f"\n{len(part)}\n".encode())
        for columns in part.iter(_AT_ONCE):
            for values in zip(*columns.values(), strict=True):
                row = dict(zip(columns, values, strict=True))
                digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode() + b"\n")
    return digest.hexdigest()
