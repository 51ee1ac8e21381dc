"""Which columns the data has, found without `datasets`, and whether they are the ones that the settings name."""

import csv
import difflib
import io
import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.builtin import BUILTIN_DATASETS, BuiltinDataset
from entrenar_core.data.files import find_files, not_utf8, open_binary
from entrenar_core.errors import DataError, NotFoundError, Problem

_PEEKED_ROWS = 1000  # a JSON row may lack what others have


def source_of(config: DatasetConfig) -> str:
    """`local`, `builtin` or `huggingface`: as set, else a path is local, and a name is a built-in's or the Hub's."""
    if config.source is not None:
        return config.source
    if config.path is not None:
        return "local"
    return "builtin" if config.name in BUILTIN_DATASETS else "huggingface"


def peek_columns(config: DatasetConfig) -> tuple[str, ...] | None:
    """The columns of built-in or local data, from the first rows of `split`; None where only the Hub knows.

    Raises:
        NotFoundError, DataError: there is no such data.
    """
    match source_of(config):
        case "builtin":
            return builtin_of(config).columns
        case "local":
            found = find_files(config.path or "")
            file = next((file for file in found.of(config.split) if file.stat().st_size), None)
            if file is None:
                raise DataError(f"{config.path} is empty", "a data set needs at least one row")
            return _columns(file, found.builder, found.suffix)
        case _:
            return None


def check_splits(config: DatasetConfig) -> list[Problem]:
    """Splits that the settings name and the data does not have, of local files and of built-in data.

    Raises:
        NotFoundError, DataError: there is no such data.
    """
    match source_of(config):
        case "local":
            splits, told = tuple(find_files(config.path or "").splits), "found by the names of the files"
        case "builtin" if config.name in BUILTIN_DATASETS:
            splits, told = ("train",), "a built-in data set has one split, of which rows are held out"
        case _:
            return []
    return [
        Problem(f"`{setting}`: there is no split {split}", f"{told}: {', '.join(splits)}", setting)
        for setting, split in (("dataset.split", config.split), ("dataset.eval_split", config.eval_split))
        if split is not None and split not in splits
    ]


def builtin_of(config: DatasetConfig) -> BuiltinDataset:
    """The built-in data set that the settings name.

    Raises:
        NotFoundError: there is none of that name.
        DataError: a split other than `train` is asked for.
    """
    name = config.name or ""
    if name not in BUILTIN_DATASETS:
        near = difflib.get_close_matches(name, BUILTIN_DATASETS, n=1)
        raise NotFoundError(
            f"there is no built-in data set {name}",
            f"did you mean `{near[0]}`?" if near else f"the built-in ones are {', '.join(BUILTIN_DATASETS)}",
        )
    for split in (config.split, config.eval_split):
        if split not in (None, "train"):
            raise DataError(f"{name} has no split {split}", "its one split is train; rows to evaluate on are held out")
    return BUILTIN_DATASETS[name]


def wanted_columns(config: DatasetConfig, task: str) -> dict[str, str]:
    """What the task reads: the setting, such as `text_column`, and the column that it names."""
    settings = ["text_column"]
    if task == "token-classification":
        settings = ["tokens_column", "label_column"]
    elif task == "sequence-classification" or (task == "embedding" and "label_column" in config.model_fields_set):
        settings.append("label_column")
    elif task in ("masked-lm", "embedding"):
        pass
    elif config.messages_column is not None:
        settings = ["messages_column"]
    elif config.prompt_column is not None:
        settings = ["prompt_column", "completion_column"]
        settings += ["reasoning_column"] if config.reasoning_column is not None else []
    settings += ["route_column"] if config.route_column is not None else []
    return {setting: getattr(config, setting) for setting in settings}


def check_columns(config: DatasetConfig, task: str, columns: Sequence[str] | None) -> list[Problem]:
    """Columns that the settings name and the data does not have, and settings that the task would not read.

    `where` of a problem is the dotted name of the setting.
    Without `columns`, which only the Hub may know, the settings alone are checked.
    """
    wanted = wanted_columns(config, task)
    problems = list(_unread(config, task, wanted))
    for setting, column in wanted.items():
        if columns is not None and column not in columns:
            near = difflib.get_close_matches(column, columns, n=1, cutoff=0.5)
            hint = f"did you mean `{near[0]}`?" if near else f"set `dataset.{setting}` to the one to read;"
            problems.append(
                Problem(
                    f"`dataset.{setting}`: the data has no column `{column}`",
                    f"{hint} {_listed(columns)}",
                    f"dataset.{setting}",
                )
            )
    return problems


def _listed(columns: Collection[str]) -> str:
    if not columns:
        return "it has no columns"
    return f"the {'only column is' if len(columns) == 1 else 'columns are'} {', '.join(columns)}"


def missing_text(column: str, row: int) -> DataError:
    """The error for a row without a text, or without words."""
    return DataError(
        f"row {row} has nothing in column `{column}`", "remove such rows, or fill them with an empty text or list"
    )


def check_features(features: Mapping[str, Any], config: DatasetConfig, task: str) -> None:
    """Whether the columns are there and hold text.

    Raises:
        DataError: not so.
    """
    if problems := check_columns(config, task, list(features)):
        raise DataError(problems[0].message, problems[0].hint)
    for setting, name in wanted_columns(config, task).items():
        kind = getattr(features[name], "dtype", type(features[name]).__name__)
        if setting in ("text_column", "prompt_column", "reasoning_column", "completion_column") and kind not in (
            "string",
            "large_string",
        ):
            raise DataError(
                f"column `{name}` holds {kind}, not text",
                f"give the column of the text as `dataset.{setting}`; {_listed(features)}",
            )
    if task == "token-classification":
        _check_lists(features, config)


def _check_lists(features: Mapping[str, Any], config: DatasetConfig) -> None:
    for setting, name, what in (
        ("tokens_column", config.tokens_column, "words"),
        ("label_column", config.label_column, "tags"),
    ):
        inner = getattr(features[name], "feature", None)
        held = getattr(inner, "dtype", None)
        if inner is None or (what == "words" and held not in ("string", "large_string", "null")):
            kind = getattr(features[name], "dtype", type(features[name]).__name__)
            raise DataError(
                f"column `{name}` holds {f'lists of {held}' if held else kind}, not lists of {what}",
                f"give the column of the {what} as `dataset.{setting}`; {_listed(features)}",
            )


_COLUMNS = ("text_column", "label_column", "tokens_column", "prompt_column", "completion_column", "messages_column")


def _unread(config: DatasetConfig, task: str, wanted: dict[str, str]) -> Iterator[Problem]:
    for setting in _COLUMNS:
        given = setting in config.model_fields_set and getattr(config, setting) is not None
        if given and setting not in wanted:
            name = f"dataset.{setting}"
            yield Problem(f"`{name}` is not read: {task} reads {' and '.join(wanted)}", "remove it", name)
    if config.labelled_rows is not None and "label_column" not in wanted:
        name = "dataset.labelled_rows"
        yield Problem(f"`{name}` is about classes, and {task} has none", "remove it", name)
    if "mask_probability" in config.model_fields_set and task != "masked-lm":
        name = "dataset.mask_probability"
        yield Problem(f"`{name}` is for masked-lm, and the task is {task}", "remove it", name)
    if config.streaming and task == "token-classification":
        name = "dataset.streaming"
        yield Problem(f"`{name}` is not for token-classification, whose tags are all read first", "remove it", name)


def _columns(file: Path, builder: str, suffix: str) -> tuple[str, ...] | None:
    try:
        match builder:
            case "text":
                return ("text",)
            case "parquet":
                import pyarrow.parquet

                return tuple(pyarrow.parquet.read_schema(file).names)
            case _ if file.suffix == ".zst":
                return None
            case "csv":
                with open_binary(file) as stream, io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
                    return tuple(next(csv.reader(text, delimiter="\t" if suffix == ".tsv" else ","), ()))
            case _:
                rows = itertools.islice(_json_rows(file), _PEEKED_ROWS)
                return tuple(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file}:{error.lineno}: not JSON: {error.msg}", "a .jsonl file has one object per line"
        ) from None
    except (OSError, EOFError, ValueError, csv.Error) as error:  # pyarrow's errors are ValueErrors
        if isinstance(error, UnicodeDecodeError) and (found := not_utf8(file)):
            raise found from None
        raise DataError(f"{file} cannot be read: {error}", "check that the file is whole") from error


def _json_rows(file: Path) -> Iterator[object]:
    """The objects of a list or of lines, as far as they are asked for."""
    with open_binary(file) as stream:
        start = next((line for line in stream if line.strip()), b"")
    if start.lstrip().startswith(b"["):
        with open_binary(file) as stream:
            yield from json.load(stream)
        return
    with open_binary(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    raise json.JSONDecodeError(error.msg, "\n" * (number - 1), number - 1) from None
