"""Finds the data files that a path means: one file, a folder of them, or a pattern. Standard library only.

Files belong to a split by their names, as on the Hub: `test-0.jsonl` and `test/0.jsonl` are of `test`. A file whose
name says nothing is of `train`, and so are all of them where no file says `train` and they agree.
"""

import bz2
import glob
import gzip
import itertools
import lzma
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO

from entrenar_core.errors import DataError, NotFoundError

BUILDERS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".json": "json",
    ".jsonl": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
}
"""What `datasets` calls the reader of a kind of file."""
MOST_FILES = 100_000
"""In a folder; beyond that, it was hardly meant."""

_OPENERS: Mapping[str, Callable[[Path], IO[bytes]]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # type: ignore[dict-item]
COMPRESSED = (*_OPENERS, ".zst")
_READ = f"files that end in {', '.join(BUILDERS)} are read; those of text also with {', '.join(COMPRESSED)} behind it"
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}


@dataclass(frozen=True, slots=True)
class LocalFiles:
    """Files of one kind, by split."""

    builder: str
    suffix: str
    splits: Mapping[str, tuple[Path, ...]]

    def of(self, split: str) -> tuple[Path, ...]:
        """The files of a split.

        Raises:
            DataError: there are none.
        """
        if split not in self.splits:
            raise DataError(f"there is no split {split}", f"found by the names of the files: {', '.join(self.splits)}")
        return self.splits[split]


def find_files(path: str) -> LocalFiles:
    """The data files that `path` means.

    Raises:
        NotFoundError: there is nothing there.
        DataError: what is there is not data, is of several kinds, or is empty.
    """
    root, files = _listed(path)
    kinds = {(BUILDERS[suffix], suffix == ".tsv") for suffix in map(data_suffix, files) if suffix}
    if not files or not kinds:
        raise DataError(f"{path} holds no data files", _READ)
    if len(kinds) > 1:
        raise DataError(
            f"{path} holds files of several kinds: {', '.join(sorted(file.name for file in files)[:5])}",
            f"give a pattern that picks one kind, such as {root}/*{data_suffix(files[0])}",
        )
    if packed := next((file for file in files if file.suffix in COMPRESSED and data_suffix(file) == ".parquet"), None):
        raise DataError(f"{packed} is parquet, which is compressed inside", "unpack it")
    if not any(file.stat().st_size for file in files):
        raise DataError(f"{path} is empty", "a data set needs at least one row")
    return LocalFiles(next(iter(kinds))[0], data_suffix(files[0]) or "", _by_split(root, files))


def data_suffix(file: PurePath) -> str | None:
    """The ending that says what a file holds, compressed or not; None if it is not data."""
    plain = PurePath(file.stem) if file.suffix in COMPRESSED else file
    return plain.suffix if plain.suffix in BUILDERS else None


def open_binary(file: Path) -> IO[bytes]:
    """The bytes of a file, decompressed.

    Raises:
        ValueError: Python alone cannot decompress it.
    """
    if file.suffix == ".zst":
        raise ValueError("zstandard is read by `datasets` only")
    return _OPENERS[file.suffix](file) if file.suffix in _OPENERS else file.open("rb")


def _inside(folder: Path) -> list[Path]:
    found = list(itertools.islice(folder.rglob("*"), MOST_FILES + 1))
    if len(found) > MOST_FILES:
        raise DataError(f"{folder} holds more than {MOST_FILES:,} files", "give a pattern, such as folder/*.jsonl")
    return sorted(found)


def _listed(path: str) -> tuple[Path, list[Path]]:
    """The folder that names are relative to, and the files."""
    place = Path(path).expanduser()
    if place.is_file():
        if data_suffix(place) is None:
            raise DataError(f"{path} is not a data file", _READ)
        return place.parent, [place]
    if place.is_dir():
        return place, [file for file in _inside(place) if _is_data(file, place)]
    patterned = glob.has_magic(path)
    matches = glob.glob(str(place), recursive=True) if patterned else []  # noqa: PTH207 - Path.glob takes no absolute pattern
    found = sorted(map(Path, matches))
    if not found:
        raise NotFoundError(
            f"{path}: no file matches" if patterned else f"{path}: no such file or folder",
            "`dataset.path` is relative to the folder that the command runs in",
        )
    fixed = place.parts[:-1]
    depth = next((index for index, part in enumerate(fixed) if glob.has_magic(part)), len(fixed))
    root = Path(*fixed[:depth])
    return root, [file for file in found if _is_data(file, root)]


def _is_data(file: Path, root: Path) -> bool:
    hidden = any(part.startswith(".") for part in file.relative_to(root).parts)
    return file.is_file() and not hidden and data_suffix(file) is not None


def _by_split(root: Path, files: list[Path]) -> dict[str, tuple[Path, ...]]:
    named: dict[str | None, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", file.relative_to(root).as_posix().lower())
        named.setdefault(next((_SPLIT_OF[word] for word in words if word in _SPLIT_OF), None), []).append(file)
    if len(named) == 1:
        return {"train": tuple(files)}
    train = sorted(named.pop(None, []) + named.pop("train", []))
    return {split: tuple(found) for split, found in (("train", train), *named.items()) if found and split}


def not_utf8(file: Path) -> DataError | None:
    """The error for a file whose text is in another encoding, with its first such line; None if all is UTF-8."""
    try:
        with open_binary(file) as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError:
                    hint = "convert it, for example with `iconv -f latin1 -t utf-8`"
                    return DataError(f"{file}:{number}: not text in UTF-8", hint)
    except (OSError, EOFError, ValueError):  # not a matter of encodings
        return None
    return None
