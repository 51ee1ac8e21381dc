"""Brings the bytes of large files into the Hub's storage, where a later commit finds them.

The Hub says which files are large (`preupload`), which of those its storage has already, and how it takes the others
(the LFS batch): by plain PUT in one or many parts, or by Xet, which sends only chunks that it has not seen. Files go
one after the other, so that a push that is killed has lost no more than the file under way.

Source: git-lfs's docs/api/batch.md; the HTTP API that huggingface_hub speaks.
"""

import base64
import hashlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, BinaryIO

from entrenar_core.errors import FetchError, OutputError
from entrenar_core.hub.client import TIMEOUT_S, Client, Repository
from entrenar_core.hub.progress import Meter
from entrenar_core.hub.upload_choice import LocalFile, reading
from entrenar_core.hub.upload_failures import AGAIN, explained_push, one_line

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_SAMPLE_BYTES = 512
_BATCH = 256
"""As many files as the Hub takes in one question."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What the Hub says of a file before a commit: whether it keeps it as a large one, whether a `.gitignore` there
    leaves it out, and the digest of the file that it has by that name, if any (SHA-256 of a large file, else git's).
    """

    large: bool
    ignored: bool
    digest: str | None


def standings(client: Client, repository: Repository, files: Sequence[LocalFile]) -> Mapping[str, Standing]:
    """How the files stand to those of the main branch, by name.

    Raises:
        AccessError, NotFoundError, FetchError, OutputError: see `explained_push`.
    """
    found: dict[str, Standing] = {}
    for start in range(0, len(files), _BATCH):
        question = partial(_standings, client, repository, files[start : start + _BATCH])
        found |= client.ask(question, repository, explain=explained_push)
    return found


def _standings(client: Client, repository: Repository, files: Sequence[LocalFile]) -> Mapping[str, Standing]:
    described = [
        {"path": file.name, "size": file.size_bytes, "sample": base64.b64encode(_sample(file)).decode()}
        for file in files
    ]
    answer = post(client, f"api/models/{repository.repo_id}/preupload/main", {"files": described})
    try:
        told = {
            entry["path"]: Standing(entry["uploadMode"] == "lfs", bool(entry.get("shouldIgnore")), entry.get("oid"))
            for entry in answer["files"]
        }
        return {file.name: _of_nothing(told[file.name], file) for file in files}
    except (KeyError, TypeError) as error:
        raise FetchError(
            f"{client.endpoint} does not say how it takes files", "check that HF_ENDPOINT is a Hub"
        ) from error


def _of_nothing(standing: Standing, file: LocalFile) -> Standing:
    """An empty file is never a large one: there is nothing to store."""
    return standing if file.size_bytes else Standing(False, standing.ignored, standing.digest)


def _sample(file: LocalFile) -> bytes:
    with reading(file.path), file.path.open("rb") as stream:
        return stream.read(_SAMPLE_BYTES)


def post(client: Client, path: str, document: Mapping[str, Any]) -> Any:
    """The JSON that the Hub answers to a JSON document; failures are those of huggingface_hub."""
    from huggingface_hub import get_session, hf_raise_for_status

    login = {"Authorization": f"Bearer {client.token}"}
    response = get_session().post(f"{client.endpoint}/{path}", json=document, headers=login, timeout=TIMEOUT_S)
    hf_raise_for_status(response)
    return response.json()


def digest(file: LocalFile, *, large: bool) -> str:
    """What the Hub calls a file with these bytes (see `Standing`)."""
    with reading(file.path), file.path.open("rb") as stream:
        if large:
            return hashlib.file_digest(stream, "sha256").hexdigest()
        data = stream.read()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A large file that a commit is to have, with its SHA-256."""

    file: LocalFile
    sha256: str


@dataclass(frozen=True, slots=True)
class Stored:
    """What of large files had to be sent: their names, and how many bytes went over the network."""

    names: frozenset[str]
    sent_bytes: int


def store(client: Client, repository: Repository, files: Sequence[LargeFile], meter: Meter) -> Stored:
    """Sends what the Hub's storage has not got.

    huggingface_hub tries every request up to six times.

    Raises:
        AccessError, NotFoundError, FetchError, OutputError: see `explained_push`.
    """
    sent: set[str] = set()
    sent_bytes = 0
    for large in files:
        meter.start(large.file.name)
        question = partial(_store, client, repository, large, meter)
        size = _once(client).ask(question, repository, large.file.name, explain=explained_push)
        meter.finish(large.file.size_bytes)
        if size is not None:
            sent.add(large.file.name)
            sent_bytes += size
    return Stored(frozenset(sent), sent_bytes)


def _once(client: Client) -> Client:
    """The same way to the Hub, without retries on top of those of huggingface_hub."""
    return replace(client, retry_delays_s=())


def _store(client: Client, repository: Repository, large: LargeFile, meter: Meter) -> int | None:
    """How many bytes were sent for a file; None where the storage had it."""
    from huggingface_hub.lfs import lfs_upload, post_lfs_batch_info

    operation = large_addition(large, meter)
    transfers = ["basic", "multipart", *(["xet"] if has_xet() else [])]
    actions, errors, chosen = post_lfs_batch_info(
        [operation.upload_info],
        token=client.token,
        repo_type=repository.kind,
        repo_id=repository.repo_id,
        endpoint=client.endpoint,
        transfers=transfers,
    )
    if errors:
        raise FetchError(
            f"{client.endpoint} does not take {large.file.name}: {one_line(errors[0]['error']['message'])}",
            "a file may be too large for the Hub: export the model in shards",
        )
    if chosen == "xet":
        return _store_by_xet(client, repository, large, meter)
    if actions[0].get("actions") is None:
        return None
    lfs_upload(operation, actions[0], token=client.token, endpoint=client.endpoint)
    return large.file.size_bytes


def has_xet() -> bool:
    """Whether files can go by Xet: hf_xet is installed, and HF_HUB_DISABLE_XET is not set."""
    from huggingface_hub import constants

    if constants.HF_HUB_DISABLE_XET or importlib.util.find_spec("hf_xet") is None:
        return False
    import hf_xet  # type: ignore[import-untyped]

    return hasattr(hf_xet, "XetSession")  # older ones are driven otherwise


def _store_by_xet(client: Client, repository: Repository, large: LargeFile, meter: Meter) -> int:
    """Sends the chunks of a file that the storage has not got. Its progress is told from a thread of hf_xet's."""
    import hf_xet

    sent_bytes = 0

    def move(report: Any, _files: object) -> None:
        nonlocal sent_bytes
        sent_bytes = max(sent_bytes, report.total_transfer_bytes_completed)
        meter.file_bytes = min(report.total_bytes_completed, large.file.size_bytes)
        meter.report()

    session = hf_xet.XetSession()
    try:
        with session.new_upload_commit(
            token_refresh_url=f"{client.endpoint}/api/models/{repository.repo_id}/xet-write-token/main",
            token_refresh_headers={"Authorization": f"Bearer {client.token}"},  # of the Hub, not of the storage
            progress_callback=move,
        ) as upload:
            sending = upload.start_upload_file(str(large.file.path), sha256=hf_xet.COMPUTE_SHA256)
        sent = sending.result().xet_info.sha256
    except KeyboardInterrupt:
        session.sigint_abort()
        raise
    except Exception as error:  # hf_xet has no kind of its own
        raise FetchError(
            f"{large.file.name} of {repository}: its way by Xet failed: {one_line(str(error))}",
            f"check the network, then {AGAIN}; HF_HUB_DISABLE_XET=1 takes the older way",
        ) from error
    if sent != large.sha256:
        raise OutputError(f"{large.file.path} changed while it was pushed", "wait until it is whole, and push again")
    return sent_bytes


def large_addition(large: LargeFile, meter: Meter) -> "CommitOperationAdd":
    """The addition of a large file to a commit, its bytes being in the storage or about to be: reading it moves the
    meter, and nothing is drawn.
    """
    from huggingface_hub import CommitOperationAdd

    class Metered(CommitOperationAdd):
        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:  # noqa: ARG002 - of huggingface_hub
            with super().as_file() as stream:
                read = stream.read

                def counted(size: int = -1) -> bytes:
                    data = read(size)
                    meter.file_bytes = stream.tell()
                    meter.report()
                    return data

                stream.read = counted  # type: ignore[method-assign]
                yield stream

    with reading(large.file.path):
        large.file.path.stat()  # huggingface_hub calls what is gone an improper value
    addition = Metered(large.file.name, str(large.file.path))
    addition.upload_info.sha256 = bytes.fromhex(large.sha256)
    # Without these two `create_commit` would ask again, and be told that the storage has the file.
    addition._upload_mode, addition._is_uploaded = "lfs", True
    return addition
