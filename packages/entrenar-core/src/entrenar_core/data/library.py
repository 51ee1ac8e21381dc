"""The one door to `datasets`: silent, with a cache of its own, and with its failures told as ours."""

import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from errno import EDQUOT, ENOSPC
from functools import cache
from pathlib import Path
from typing import Any

from entrenar_core.data.files import data_suffix, not_utf8, open_binary
from entrenar_core.data.scratch import scratch_folder
from entrenar_core.errors import DataError, EntrenarError

DEEPEST = 200  # lists or objects inside each other
_QUOTED = re.compile(rb'"(?:[^"\\]|\\.)*"')


@cache
def cache_folder() -> str:
    """Where `datasets` keeps what it has converted: HF_DATASETS_CACHE where it is set, else until this process ends.

    The text of a user's files is not left behind in their home by default; a folder for temporary files moves with
    TMPDIR. A process has its own, so that the ranks of a run do not wait for each other.
    """
    if chosen := os.environ.get("HF_DATASETS_CACHE"):
        return chosen
    return str(scratch_folder())


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no messages of `datasets` within."""
    import datasets

    level, bars = datasets.utils.logging.get_verbosity(), datasets.are_progress_bars_disabled()
    datasets.utils.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.utils.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def reading(name: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """Quiet, and what fails is told as a DataError about `name`; `files` are looked through for bad JSON."""
    with quiet(), telling(name, files):
        yield


@contextmanager
def telling(name: str, files: Sequence[Path] = ()) -> Iterator[None]:
    """What fails is told as a DataError about `name`. For generators: they are left in any order, `quiet` is not."""
    try:
        yield
    except EntrenarError:
        raise
    except Exception as error:
        raise _explained(name, files, error) from error


def stored(stream: Any) -> Any:
    """All rows of a `datasets.IterableDataset` as a `datasets.Dataset`, in a file that goes with this process.

    Raises:
        DataError: they cannot be read, or not be written.
    """
    import datasets
    from datasets.arrow_writer import ArrowWriter

    file = Path(tempfile.mkdtemp(dir=scratch_folder())) / "rows.arrow"
    with reading("the data set"):
        with ArrowWriter(features=stream.features, path=str(file)) as writer:
            for row in stream:
                writer.write(row)
            writer.finalize()
        return datasets.Dataset.from_file(str(file))


def load_files(name: str, builder: str, files: Mapping[str, Sequence[Path]], split: str, options: Any) -> Any:
    """One split of local files as a `datasets.Dataset`.

    Raises:
        DataError: they cannot be read.
    """
    return _load(name, builder, files, split, options, streaming=False)


def stream_files(name: str, builder: str, files: Mapping[str, Sequence[Path]], split: str, options: Any) -> Any:
    """One split of local files as a `datasets.IterableDataset`.

    Raises:
        DataError: they cannot be read. What is found later is raised where the rows are read.
    """
    return _load(name, builder, files, split, options, streaming=True)


def _load(
    name: str, builder: str, files: Mapping[str, Sequence[Path]], split: str, options: Any, *, streaming: bool
) -> Any:
    import glob

    import datasets

    names = {split: [glob.escape(str(file.resolve())) for file in files[split]]}
    if builder == "json":
        require_shallow(files[split])
    with reading(name, files[split]):
        return datasets.load_dataset(
            builder, data_files=names, split=split, streaming=streaming, cache_dir=cache_folder(), **options
        )


def reader_options(builder: str, suffix: str, label_column: str) -> dict[str, Any]:
    """What the readers are told. In a CSV file only an empty class is a missing value: `NA` and `null` are texts."""
    if builder != "csv":
        return {}
    options = {"keep_default_na": False, "na_values": {label_column: [""]}}
    return {**options, "sep": "\t"} if suffix == ".tsv" else options


def _explained(name: str, files: Sequence[Path], error: BaseException) -> DataError:
    for file in files:
        if data_suffix(file) != ".parquet" and (found := not_utf8(file)):
            return found
        if data_suffix(file) in (".json", ".jsonl") and (message := bad_json(file)):
            return DataError(
                message, "each line of a .jsonl file is one JSON object; a .json file may be a list of them"
            )
    root = error
    while (deeper := root.__cause__ or root.__context__) is not None:
        root = deeper
    if isinstance(root, OSError) and root.errno in (ENOSPC, EDQUOT):
        return DataError(
            f"{name}: no space is left in {cache_folder()}", "free some, or set HF_DATASETS_CACHE to another folder"
        )
    if "corresponds to no data" in str(error):  # how `datasets` says that a split has no rows
        return DataError(f"{name} is empty", "a data set needs at least one row")
    told = str(root).strip() or type(root).__name__
    return DataError(f"{name} cannot be read: {' '.join(told.split())[:300]}", "check that its files are whole")


def bad_json(file: Path) -> str | None:
    """Where a JSON file stops being JSON, as `file:line: …`; None if all of it is."""
    try:
        with open_binary(file) as stream:
            start = next((line for line in stream if line.strip()), b"").strip()
        with open_binary(file) as stream:
            if start.startswith(b"[") or start == b"{":  # a list, or one object over several lines
                return _mistake(file, stream.read(), 1)
            lines = ((number, text) for number, text in enumerate(stream, start=1) if text.strip())
            return next((told for number, text in lines if (told := _mistake(file, text, number))), None)
    except (OSError, EOFError, ValueError):  # not a matter of JSON
        return None


def require_shallow(files: Sequence[Path]) -> None:
    """Arrow's reader of JSON ends the whole process over lists inside lists without end.

    Raises:
        DataError: a line is nested too deeply.
    """
    for file in files:
        with suppress(OSError, EOFError, ValueError), open_binary(file) as stream:  # told where it is read
            for number, line in enumerate(stream, start=1):
                if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(line) > DEEPEST:
                    raise DataError(
                        f"{file}:{number}: lists or objects inside each other, more than {DEEPEST} deep",
                        "a row is an object of texts and numbers",
                    )


def _depth(line: bytes) -> int:
    import numpy as np

    signs = np.frombuffer(_QUOTED.sub(b"", line), np.uint8)
    steps = np.isin(signs, list(b"[{")).astype(np.int32) - np.isin(signs, list(b"]}"))
    return int(np.cumsum(steps).max(initial=0))


class _Twice(ValueError):
    """An object with a key that it has already."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    raise _Twice(next(key for key in keys if keys.count(key) > 1))


def _mistake(file: Path, text: bytes, line: int) -> str | None:
    try:
        found = json.loads(text.rstrip(), object_pairs_hook=_once)
        json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"{file}:{line + error.lineno - 1}: not JSON: {error.msg}"
    except _Twice as error:
        return f"{file}:{line}: the key `{error}` is there twice"
    except UnicodeEncodeError:
        return f"{file}:{line}: half of a character (a lone surrogate, \\ud800 to \\udfff)"
    except RecursionError:
        return f"{file}:{line}: lists or objects inside each other, deeper than can be read"
    return None
