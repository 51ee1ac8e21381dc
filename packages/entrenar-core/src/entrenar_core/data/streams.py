"""Rows that are read as they are needed.

Evaluation rows are read at the start: those of `eval_split`, or the first ones, which training then skips. A stream
has one order, that of its source; `shuffled` mixes it within a buffer.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.chance import mixed
from entrenar_core.data.columns import check_features, missing_text, wanted_columns
from entrenar_core.data.labels import UNLABELLED, LabelMap, Value, class_index, classes, clean, declared_classes
from entrenar_core.data.library import reading, telling
from entrenar_core.data.opening import StreamSource, open_stream
from entrenar_core.data.sources import Rows, fingerprinted, name_of
from entrenar_core.errors import DataError

DEFAULT_EVAL_ROWS = 512
BUFFER_ROWS = 10_000
_PEEKED_ROWS = 100  # to find the columns where nothing declares them


def shuffled(stream: Any, *, seed: int, epoch: int, buffer_rows: int = BUFFER_ROWS) -> Any:
    """The stream in the order of an epoch: each row is drawn from a buffer of the next `buffer_rows`."""
    return stream.shuffle(seed=mixed(seed, f"order of epoch {epoch}") >> 31, buffer_size=buffer_rows)


def stream_rows(
    config: DatasetConfig,
    *,
    task: str,
    label_names: Sequence[str] | None,
    token: str | None,
    offline: bool | None,
) -> Rows:
    """Rows as `load_rows` gives them, with a stream to train on. Classes that nothing declares take one pass to find.

    Raises:
        As for `load_rows`.
    """
    source = open_stream(config, name_of(config), token, offline)
    train = _Reader(source, config.split, config, task)
    names, total = _classes_and_size(train, source.count(config.split), config, label_names)
    mapping = None if names is None else LabelMap(names, config.label_column, of_head=label_names is not None)
    if config.eval_split is not None:
        skipped, held, offset = 0, _Reader(source, config.eval_split, config, task), total
    else:
        skipped, held, offset = config.eval_rows or DEFAULT_EVAL_ROWS, train, 0
    if skipped >= total:
        raise DataError(
            f"{name_of(config)} has too few rows to hold some out: {total}, and the first {skipped} are for evaluation",
            "lower `dataset.eval_rows`, or name an `eval_split`",
        )
    evaluation = held.table(mapping, offset, skipped or config.eval_rows)
    stream = train.stream(mapping, skipped, config.max_rows)
    fingerprint = hashlib.sha256(
        json.dumps([source.identity, names, *_choosing(config)], default=str).encode()
        + fingerprinted([evaluation], names).encode()
    ).hexdigest()
    return Rows(stream, evaluation, names, name_of(config), fingerprint, total - skipped, None)


def _classes_and_size(
    train: "_Reader", counted: int | None, config: DatasetConfig, head: Sequence[str] | None
) -> tuple[tuple[str, ...] | None, int]:
    """The names of the classes, if the task has any, and how many rows there are."""
    classifies = "label_column" in train.wanted
    names = (head or train.declared) if classifies else None
    if counted is None or (classifies and names is None):
        counted, values = train.scan()
        if classifies and names is None:
            names = classes(values, None, config.label_column)
    if not counted:
        raise DataError(f"{name_of(config)}: the split {config.split} is empty", "a data set needs at least one row")
    return None if names is None else tuple(names), min(counted, config.max_rows or counted)


def _choosing(config: DatasetConfig) -> list[object]:
    """The settings that choose from the source."""
    names = ("subset", "split", "eval_split", "eval_rows", "max_rows", "text_column", "label_column")
    return [
        getattr(config, name)
        for name in (*names, "prompt_column", "reasoning_column", "completion_column", "messages_column")
    ]


class _Reader:
    """One split of a stream, read into our columns."""

    def __init__(self, source: StreamSource, split: str, config: DatasetConfig, task: str) -> None:
        import datasets

        self.wanted = wanted_columns(config, task)
        self.name, self.files = name_of(config), source.files
        with reading(self.name, self.files):
            stream = source.split(split)
            features = stream.features or datasets.Dataset.from_list(list(stream.take(_PEEKED_ROWS))).features
        if not features:
            raise DataError(f"{name_of(config)} is empty", "a data set needs at least one row")
        check_features(features, config, task)
        columns = {
            setting.removesuffix("_column"): features[column]
            for setting, column in self.wanted.items()
            if setting != "label_column"
        }
        numbers = {"row": datasets.Value("int64")}
        if "label_column" in self.wanted:
            numbers["label"] = datasets.Value("int64")
        self._source, self._config = stream, config
        self.features = datasets.Features(columns | numbers)
        self.declared = declared_classes(features, self.wanted.get("label_column"))

    def scan(self) -> tuple[int, set[Value | None]]:
        """One pass over all rows: how many, and which classes they have."""
        column, rows = self.wanted.get("label_column"), 0
        values: set[Value | None] = set()
        source = self._source.select_columns([column or next(iter(self.wanted.values()))])
        limit = self._config.max_rows
        with reading(self.name, self.files):
            for row in source if limit is None else source.take(limit):
                rows += 1
                if column is not None:
                    values.add(clean(row[column], column, self.declared))
        return rows, values

    def table(self, mapping: LabelMap | None, offset: int, limit: int | None) -> Any:
        """The first rows that can be judged on, in memory."""
        import datasets

        made = _Renamed(self._source, self, mapping, 0, limit)
        with reading(self.name):
            rows = [row | {"row": row["row"] + offset} for row in made() if row.get("label") != UNLABELLED]
            if not rows:
                raise DataError(f"no evaluation row of {self.name} has a label", "name an `eval_split` that has labels")
            return datasets.Dataset.from_list(rows)

    def stream(self, mapping: LabelMap | None, skipped: int, limit: int | None) -> Any:
        """The rows from `skipped` to `limit`, as a stream.

        Not `IterableDataset.from_generator`: that leaves a lock file in the user's cache.
        """
        import datasets
        from datasets.iterable_dataset import ExamplesIterable

        rows = _Renamed(self._source, self, mapping, skipped, limit)
        return datasets.IterableDataset(ExamplesIterable(rows.keyed, {}), datasets.DatasetInfo(features=self.features))

    def renamed(self, row: dict[str, Any], position: int, mapping: LabelMap | None) -> dict[str, Any]:
        """A row of the source in our columns."""
        made: dict[str, Any] = {"row": position}
        for setting, column in self.wanted.items():
            value = row.get(column)
            if setting == "label_column":
                assert mapping is not None, "classes are known before rows are read"
                value = class_index(mapping, clean(value, column, self.declared), self.declared)
            elif value is None:
                raise missing_text(column, position)
            made[setting.removesuffix("_column")] = value
        return made


@dataclass(frozen=True, slots=True)
class _Renamed:
    """Reads rows with their positions. One generator, not one per file: a position must not depend on a shuffle."""

    source: Any
    reader: _Reader
    mapping: LabelMap | None
    first: int
    limit: int | None

    def __call__(self) -> Iterator[dict[str, Any]]:
        rows = self.source if self.limit is None else self.source.take(self.limit)
        with telling(self.reader.name, self.reader.files):
            for position, row in enumerate(rows.skip(self.first), start=self.first):
                yield self.reader.renamed(row, position, self.mapping)

    def keyed(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """The rows as `datasets` takes them, each with a key."""
        return ((row["row"], row) for row in self())
