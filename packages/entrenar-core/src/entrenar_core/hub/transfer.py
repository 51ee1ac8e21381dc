"""Lists and fetches the files of a repository, and checks that what arrived is what was listed."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from entrenar_core.errors import FetchError, NotFoundError
from entrenar_core.hub.client import RETRY_DELAYS_S, TIMEOUT_S, Client, Repository, connect
from entrenar_core.hub.progress import Meter, Progress

_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file on the Hub. `sha256` is known of large (LFS) files; `git_oid` names the blob of the small ones."""

    name: str
    size_bytes: int
    sha256: str | None
    git_oid: str

    @property
    def digest(self) -> str:
        """What the cache calls it, and what its bytes must give."""
        return self.sha256 or self.git_oid


def list_files(
    repo_id: str,
    *,
    revision: str | None = None,
    repo_type: Literal["model", "dataset"] = "model",
    token: str | None = None,
    endpoint: str | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> tuple[RemoteFile, ...]:
    """Every file of a repository, by name, folders included.

    Raises:
        AccessError, NotFoundError, FetchError: see `Client.ask`.
    """
    client = connect(token=token, endpoint=endpoint, retry_delays_s=retry_delays_s)
    if client.offline:
        raise FetchError(f"the files of {repo_id} cannot be listed in offline mode", "unset HF_HUB_OFFLINE")
    return tuple(listing(client, Repository(repo_type, repo_id, revision))[1].values())


def listing(client: Client, repository: Repository) -> tuple[str, Mapping[str, RemoteFile]]:
    """The commit that the revision names now, and its files by name. What the cache calls the revision follows."""
    from huggingface_hub.hf_api import RepoFile

    kind, repo_id = repository.kind, repository.repo_id
    info = client.ask(
        lambda: client.api.repo_info(repo_id, repo_type=kind, revision=repository.revision, timeout=TIMEOUT_S),
        repository,
    )
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise FetchError(f"{client.endpoint} names no commit for {repository}", "check that HF_ENDPOINT is a Hub")
    tree = client.ask(
        lambda: list(client.api.list_repo_tree(repo_id, repo_type=kind, revision=commit, recursive=True)), repository
    )
    files = (
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in tree
        if isinstance(entry, RepoFile)
    )
    return commit, {file.name: file for file in sorted(files, key=lambda file: file.name)}


def fetch_files(
    client: Client,
    repository: Repository,
    commit: str,
    files: Iterable[RemoteFile],
    progress: Progress | None = None,
) -> Path:
    """Brings files of one commit into the cache, one after the other, and returns their folder.

    Files that are there already are not fetched; of the others, the bytes are checked. An interrupted file starts
    anew in the next call, since huggingface_hub keeps no half files.
    """
    files = list(files)
    folder = _snapshot(client, repository, commit)
    missing = [file for file in files if not (folder / file.name).exists()]
    meter = Meter(progress, sum(file.size_bytes for file in missing))
    for file in missing:
        meter.start(file.name)
        _fetch_checked(client, repository, commit, file, meter)
        meter.finish(file.size_bytes)
    _remember(client, repository, commit)
    return folder


def cached_snapshot(client: Client, repository: Repository) -> tuple[str, Path]:
    """The commit and folder that the cache holds for a revision.

    Raises:
        NotFoundError: it holds none.
    """
    commit = repository.revision or "main"
    if not _COMMIT.fullmatch(commit):
        with suppress(OSError):
            commit = _ref(client, repository).read_text().strip()
    folder = _snapshot(client, repository, commit)
    if not _COMMIT.fullmatch(commit) or not folder.is_dir():
        raise NotFoundError(
            f"{repository} is not in the cache, and offline mode is on",
            f"fetch it once without HF_HUB_OFFLINE; the cache is {client.cache_dir}",
        )
    return commit, folder


def _fetch_checked(client: Client, repository: Repository, commit: str, file: RemoteFile, meter: Meter) -> None:
    from huggingface_hub import hf_hub_download

    def download() -> Path:
        meter.restart()
        return Path(
            hf_hub_download(
                repository.repo_id,
                file.name,
                repo_type=repository.kind,
                revision=commit,
                cache_dir=client.cache_dir,
                token=client.token or False,
                endpoint=client.endpoint,
                tqdm_class=meter.bar_class(),
            )
        )

    known = (_storage(client, repository) / "blobs" / file.digest).exists()
    for _ in range(2):
        path = client.ask(download, repository, file.name)
        if known or client.ask(partial(_digest, path, file), repository, file.name) == file.digest:
            return
        for broken in (path.resolve(), path):  # the blob, and the link to it
            broken.unlink(missing_ok=True)
    raise FetchError(
        f"{file.name} of {repository} arrived twice with other bytes than the Hub lists",
        "a proxy or mirror may be changing it; the broken file was removed from the cache",
    )


def _digest(path: Path, file: RemoteFile) -> str:
    """SHA-256 of a large file; of a small one the name that git gives it, the SHA-1 of a header and its bytes."""
    with path.open("rb") as stream:
        if file.sha256:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        data = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _storage(client: Client, repository: Repository) -> Path:
    from huggingface_hub.file_download import repo_folder_name

    return client.cache_dir / repo_folder_name(repo_id=repository.repo_id, repo_type=repository.kind)


def _snapshot(client: Client, repository: Repository, commit: str) -> Path:
    return _storage(client, repository) / "snapshots" / commit


def _ref(client: Client, repository: Repository) -> Path:
    return _storage(client, repository) / "refs" / (repository.revision or "main")


def _remember(client: Client, repository: Repository, commit: str) -> None:
    """Notes which commit a branch named, as the cache's layout has it, so that offline mode finds it."""
    ref = _ref(client, repository)
    inside = Path(os.path.normpath(ref)).is_relative_to(_storage(client, repository) / "refs")
    if repository.revision == commit or not inside:
        return
    with suppress(OSError):  # a cache that may only be read
        ref.parent.mkdir(parents=True, exist_ok=True)
        aside = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
        aside.write_text(commit)
        aside.replace(ref)
