"""Fetches the data files of a data set repository.

Which file belongs to which split and configuration is for the `datasets` library to say. It decides from names and
from README.md, so it is shown a folder of empty files with those names, and only what it chooses is fetched.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from entrenar_core.errors import DataError
from entrenar_core.hub.client import RETRY_DELAYS_S, Client, Repository, connect, hinting_at_offline
from entrenar_core.hub.progress import Progress
from entrenar_core.hub.transfer import RemoteFile, cached_snapshot, fetch_files, listing

SUFFIXES = (".parquet", ".json", ".jsonl", ".csv", ".tsv", ".txt")
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_CARD = "README.md"


@dataclass(frozen=True, slots=True)
class DatasetFiles:
    """The files of one configuration of a data set, by split, on this machine.

    They are read by `datasets.load_dataset(builder, data_files=data_files, **options)`.
    """

    repo_id: str
    commit: str
    config: str
    builder: str
    splits: Mapping[str, tuple[Path, ...]]
    options: Mapping[str, Any]

    @property
    def data_files(self) -> dict[str, list[str]]:
        return {split: [str(file) for file in files] for split, files in self.splits.items()}


def download_dataset(
    repo_id: str,
    *,
    revision: str | None = None,
    config: str | None = None,
    splits: Sequence[str] | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
    offline: bool | None = None,
    progress: Progress | None = None,
    endpoint: str | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> DatasetFiles:
    """Fetches the parquet, JSON, CSV or text files of a data set, of all its splits or of those named.

    Raises:
        AccessError, NotFoundError, FetchError: as for models.
        DataError: it holds no such files, several configurations and none is named, or lacks a split.
    """
    client = connect(
        token=token, cache_dir=cache_dir, offline=offline, endpoint=endpoint, retry_delays_s=retry_delays_s
    )
    repository = Repository("dataset", repo_id, revision)
    commit, remote, folder = _available(client, repository)
    card = (folder / _CARD).read_bytes() if _CARD in remote else None
    with hinting_at_offline(client):
        chosen = _chosen(repository, [name for name in remote if _is_data(name)], card, config)
        wanted = {split: chosen.splits[split] for split in _wanted_splits(repository, chosen, splits)}
    if not client.offline:
        names = dict.fromkeys(name for found in wanted.values() for name in found)
        fetch_files(client, repository, commit, [remote[name] for name in names], progress)
    local = {split: tuple(folder / name for name in names) for split, names in wanted.items()}
    return DatasetFiles(repo_id, commit, chosen.config, chosen.builder, local, chosen.options)


def _available(client: Client, repository: Repository) -> tuple[str, Mapping[str, RemoteFile], Path]:
    """The commit, the files that can be had, and the folder where they are or will be; the card is there."""
    if not client.offline:
        commit, remote = listing(client, repository)
        folder = fetch_files(client, repository, commit, [remote[_CARD]] if _CARD in remote else [])
        return commit, remote, folder
    commit, folder = cached_snapshot(client, repository)
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    return commit, {name: RemoteFile(name, 0, None, "") for name in names}, folder


def _is_data(name: str) -> bool:
    path = PurePosixPath(name)
    plain = PurePosixPath(path.stem) if path.suffix in _COMPRESSED else path
    return plain.suffix in SUFFIXES and not path.is_absolute() and ".." not in path.parts and "\\" not in name


@dataclass(frozen=True, slots=True)
class _Chosen:
    config: str
    builder: str
    splits: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]


def _chosen(repository: Repository, names: Sequence[str], card: bytes | None, config: str | None) -> _Chosen:
    """What `datasets` makes of files with these names."""
    if not names:
        raise DataError(f"{repository} holds no data files", f"files that end in {', '.join(SUFFIXES)} are read")
    import datasets

    with tempfile.TemporaryDirectory() as temporary:
        folder, cache = Path(temporary).resolve() / "names", Path(temporary) / "cache"
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        if card is not None:
            (folder / _CARD).write_bytes(card)
        try:
            builder = datasets.load_dataset_builder(str(folder), name=config, cache_dir=str(cache))
        except Exception as error:  # whatever a stranger's card brings about
            message = str(error).split("\nExample of usage")[0].replace(f"{folder}/", "").replace("\n", " ")
            message = message.replace(str(folder), str(repository))
            raise DataError(f"{repository}: {message}", "name a configuration that its card lists") from error
        settings = builder.config
        splits = {
            str(split): tuple(Path(file).relative_to(folder).as_posix() for file in files)
            for split, files in settings.data_files.items()
        }
        default = type(settings)()
        plain = ("name", "version", "data_dir", "data_files", "description")
        options = {
            field.name: getattr(settings, field.name)
            for field in fields(settings)
            if field.name not in plain and getattr(settings, field.name) != getattr(default, field.name)
        }
        return _Chosen(settings.name, builder.name, splits, options)


def _wanted_splits(repository: Repository, chosen: _Chosen, splits: Sequence[str] | None) -> Sequence[str]:
    for split in splits or ():
        if split not in chosen.splits:
            raise DataError(f"{repository} has no split {split}", f"its splits are {', '.join(chosen.splits)}")
    return splits or list(chosen.splits)
