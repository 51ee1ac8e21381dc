"""Where a stream comes from: a built-in, local files, or a repository at one commit of the Hub."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from entrenar_core.config.schema import DatasetConfig
from entrenar_core.data.columns import builtin_of, source_of
from entrenar_core.data.files import LocalFiles, find_files
from entrenar_core.data.library import cache_folder, reader_options, reading, stream_files
from entrenar_core.errors import DataError, FetchError


@dataclass(frozen=True, slots=True)
class StreamSource:
    """`split` gives a `datasets.IterableDataset`, `count` its rows where that is written somewhere.

    `identity` is the same wherever the same rows are: it holds a commit or the digests of files, and no path. `files`
    are those on this machine.
    """

    split: Callable[[str], Any]
    count: Callable[[str], int | None]
    identity: tuple[str, ...]
    files: tuple[Path, ...] = ()


def open_stream(config: DatasetConfig, name: str, token: str | None, offline: bool | None) -> StreamSource:
    """The source that the settings name.

    Raises:
        NotFoundError, AccessError, FetchError, DataError: as for `load_rows`.
    """
    match source_of(config):
        case "builtin":
            return _builtin(config)
        case "local":
            return _local(config, name)
        case _:
            return _hub(config, token, offline)


def _builtin(config: DatasetConfig) -> StreamSource:
    import datasets

    data = builtin_of(config)
    rows = list(data.rows())
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    with reading(data.name):
        stream = datasets.Dataset.from_list(rows).to_iterable_dataset()
    return StreamSource(lambda _: stream, lambda _: len(rows), (data.name, digest))


def _local(config: DatasetConfig, name: str) -> StreamSource:
    found = find_files(config.path or "")
    options = reader_options(found.builder, found.suffix, config.label_column)
    splits = [split for split in (config.split, config.eval_split) if split is not None]
    used = tuple(file for split in splits for file in found.of(split))
    return StreamSource(
        lambda split: stream_files(name, found.builder, found.splits, split, options),
        lambda split: _in_footers(found, split, name),
        tuple(map(_digest, used)),
        used,
    )


def _in_footers(found: LocalFiles, split: str, name: str) -> int | None:
    if found.builder != "parquet":
        return None
    import pyarrow.parquet

    with reading(name):
        return sum(int(pyarrow.parquet.read_metadata(file).num_rows) for file in found.of(split))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hub(config: DatasetConfig, token: str | None, offline: bool | None) -> StreamSource:
    import datasets

    from entrenar_core.hub.client import Repository, connect
    from entrenar_core.hub.transfer import listing

    repo_id = config.name or ""
    client = connect(token=token, offline=offline)
    if client.offline:
        raise FetchError(
            f"{repo_id} cannot be streamed in offline mode",
            "unset HF_HUB_OFFLINE, or set `dataset.streaming: false` to read what is in the cache",
        )
    commit, _ = listing(client, Repository("dataset", repo_id, config.revision))
    with reading(repo_id):
        splits = datasets.load_dataset(
            repo_id,
            config.subset,
            revision=commit,
            streaming=True,
            token=client.token or False,
            cache_dir=cache_folder(),
        )

    def split(name: str) -> Any:
        if name not in splits:
            raise DataError(f"{repo_id} has no split {name}", f"its splits are {', '.join(splits)}")
        return splits[name]

    def count(name: str) -> int | None:
        known = (split(name).info.splits or {}).get(name)
        return known.num_examples or None if known else None

    return StreamSource(split, count, (repo_id, commit))
