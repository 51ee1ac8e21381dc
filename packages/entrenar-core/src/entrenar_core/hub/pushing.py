"""Pushes the folder of a model to the Hub, in one commit.

Large files go into the Hub's storage first, each whole one to stay there; then a single commit makes everything visible
at once. So no one ever meets half a model, and a push that was cut off or killed goes on where it was: what the
repository or the storage has is not sent again. (huggingface_hub's `upload_folder` commits in several parts instead,
and always by Xet where it is installed, even to a server that has none.)
"""

import re
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.errors import AccessError, FetchError, NotFoundError, OutputError, UsageError
from entrenar_core.hub.client import RETRY_DELAYS_S, TIMEOUT_S, Client, Repository, connect
from entrenar_core.hub.failures import LOG_IN
from entrenar_core.hub.progress import Meter, Progress
from entrenar_core.hub.upload_choice import Choice, LocalFile, choose_files, reading
from entrenar_core.hub.upload_failures import explained_push
from entrenar_core.hub.uploading import LargeFile, Standing, Stored, digest, large_addition, post, standings, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from huggingface_hub import CommitOperationAdd

_CARD = "README.md"
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Where a folder is now. `size_bytes` are those of all its files that are there, `sent_bytes` those that went over
    the network for large ones.

    `present` are the files that the Hub had before, in the repository or from a push that broke off; `left_out` is what
    of the folder is no part of a model, or what a `.gitignore` in the repository leaves out.
    """

    url: str
    commit: str
    private: bool
    uploaded: tuple[str, ...]
    present: tuple[str, ...]
    left_out: tuple[str, ...]
    size_bytes: int
    sent_bytes: int


def push_folder(
    folder: Path,
    repo: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> Pushed:
    """Makes the main branch of `repo` (`org/name`), which is created if need be, hold the files of a model.

    Files that only the repository has stay there. `private` is how a new repository is made, None as its organisation
    has it; one that is public already is not pushed to where it is True. Paths of this machine in the card of a run are
    cut down to their last part.

    Raises:
        UsageError: `repo` is no org/name, the run is not complete, or the repository is public and was not to be.
        NotFoundError, ModelError: there is no such folder, or no weights in it.
        AccessError: there is no login, or it may not write there.
        FetchError: the Hub cannot be reached, or does not answer as it should.
        OutputError: the Hub refuses a file, or one cannot be read.
    """
    _require_name(repo)
    choice = choose_files(folder)
    with _as_published(folder, choice) as files:
        pushed = push_files(
            files,
            repo,
            private=private,
            message=message,
            token=token,
            progress=progress,
            endpoint=endpoint,
            offline=offline,
            retry_delays_s=retry_delays_s,
        )
    return replace(pushed, left_out=(*choice.left_out, *pushed.left_out))


def require_pushable(repo: str, *, token: str | None = None, endpoint: str | None = None) -> None:
    """Refuses what cannot be pushed to, before hours of work; whether the login may write there, only the Hub knows.

    Raises:
        UsageError: `repo` is no org/name.
        AccessError: there is no login.
        FetchError: in offline mode.
    """
    _require_name(repo)
    _require_login(connect(token=token, endpoint=endpoint), repo)


def _require_login(client: Client, repo: str) -> None:
    if client.offline:
        raise FetchError(f"{repo} cannot be pushed to in offline mode", "unset HF_HUB_OFFLINE")
    if client.token is None:
        raise AccessError(f"to push to {repo} takes a login", f"{LOG_IN}, with a token that has write access")


def push_files(
    files: Mapping[str, Path],
    repo: str,
    *,
    private: bool | None = None,
    message: str | None = None,
    token: str | None = None,
    progress: Progress | None = None,
    endpoint: str | None = None,
    offline: bool | None = None,
    retry_delays_s: Sequence[float] = RETRY_DELAYS_S,
) -> Pushed:
    """As `push_folder`, of files by the names that they are to have there, as they are; raises as that."""
    _require_name(repo)
    local = [_local(name, path) for name, path in files.items()]
    client = connect(token=token, offline=offline, endpoint=endpoint, retry_delays_s=retry_delays_s)
    _require_login(client, repo)
    repository = Repository("model", repo)
    _check_card(client, repository, local)
    is_private = _made(client, repository, private=private)
    told = message or "Upload a model with entrenar"
    commit, uploaded, ignored, sent_bytes = _push(client, repository, local, told, progress)
    return Pushed(
        url=f"{client.endpoint}/{repo}",
        commit=commit,
        private=is_private,
        uploaded=uploaded,
        present=tuple(file.name for file in local if file.name not in {*uploaded, *ignored}),
        left_out=ignored,
        size_bytes=sum(file.size_bytes for file in local if file.name not in ignored),
        sent_bytes=sent_bytes,
    )


def _require_name(repo: str) -> None:
    if not _REPO_ID.fullmatch(repo):
        raise UsageError(f"{repo!r} cannot be the name of a repository", "write org/name")


def _local(name: str, path: Path) -> LocalFile:
    with reading(path):
        return LocalFile(name, path, path.stat().st_size)


@contextmanager
def _as_published(folder: Path, choice: Choice) -> "Iterator[Mapping[str, Path]]":
    """The files as they are to be read by others: the card of a run tells no folders of this machine."""
    from entrenar_core.exporting.card_files import without_local_paths

    files = {file.name: file.path for file in choice.files}
    with tempfile.TemporaryDirectory() as aside:
        if (folder / "run.json").is_file() and _CARD in files:
            with reading(files[_CARD]):
                text = without_local_paths(files[_CARD].read_text(encoding="utf-8", errors="replace"))
            clean = Path(aside) / _CARD
            clean.write_text(text, encoding="utf-8", newline="")
            files[_CARD] = clean
        yield files


def _check_card(client: Client, repository: Repository, files: Sequence[LocalFile]) -> None:
    """Lets the Hub read the card's front matter now, which it would refuse after hours of uploading."""
    card = next((file for file in files if file.name == _CARD), None)
    if card is not None:
        try:
            with reading(card.path):
                content = card.path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise OutputError(f"{card.path} is not a text in UTF-8", "save it as UTF-8") from error
        question = partial(post, client, "api/validate-yaml", {"content": content, "repoType": repository.kind})
        client.ask(question, repository, _CARD, explain=explained_push)


def _made(client: Client, repository: Repository, *, private: bool | None) -> bool:
    """Creates the repository if there is none that this login sees, and says whether it is private."""
    repo_id = repository.repo_id
    try:
        is_private = _is_private(client, repository)
    except NotFoundError:
        client.ask(
            lambda: client.api.create_repo(repo_id, private=private, exist_ok=True), repository, explain=explained_push
        )
        is_private = _is_private(client, repository)
    if private and not is_private:
        page = f"{client.endpoint}/{repo_id}"
        raise UsageError(
            f"{repo_id} exists and is public", f"make it private at {page}/settings, or push to another name"
        )
    return is_private


def _is_private(client: Client, repository: Repository) -> bool:
    def question() -> bool:
        return bool(client.api.model_info(repository.repo_id, timeout=TIMEOUT_S).private)

    return client.ask(question, repository, explain=explained_push)


def _push(
    client: Client, repository: Repository, files: Sequence[LocalFile], message: str, progress: Progress | None
) -> tuple[str, tuple[str, ...], tuple[str, ...], int]:
    """The commit, the names of the files that it took, of those that the repository ignores, and the bytes sent."""
    before = standings(client, repository, files)
    digests = _digests(files, before)
    changed = _changed(files, before, digests)
    meter = Meter(progress, sum(file.size_bytes for file in changed))
    large = [LargeFile(file, digests[file.name]) for file in changed if before[file.name].large]
    stored = store(client, repository, large, meter)
    small = [file for file in changed if not before[file.name].large]
    attempts = 0

    def commit() -> str:
        nonlocal attempts
        attempts += 1
        # A commit whose answer was lost is not made twice: what the repository has by now falls away.
        now = before if attempts == 1 else standings(client, repository, files)
        additions = [*_small_additions(small), *(large_addition(one, meter) for one in large)]
        open_ = {file.name for file in _changed(files, now, digests)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an empty front matter
            made = client.api.create_commit(
                repository.repo_id,
                [addition for addition in additions if addition.path_in_repo in open_],
                commit_message=message,
                revision="main",
            )
        return str(made.oid)

    oid = client.ask(commit, repository, explain=explained_push)
    for file in small:
        meter.start(file.name)
        meter.finish(file.size_bytes)
    ignored = tuple(file.name for file in files if before[file.name].ignored)
    return oid, _taken(small, stored), ignored, stored.sent_bytes


def _taken(small: Sequence[LocalFile], stored: Stored) -> tuple[str, ...]:
    return tuple(sorted({*(file.name for file in small), *stored.names}))


def _digests(files: Sequence[LocalFile], standing: Mapping[str, Standing]) -> dict[str, str]:
    return {file.name: digest(file, large=standing[file.name].large) for file in files}


def _changed(
    files: Sequence[LocalFile], standing: Mapping[str, Standing], digests: Mapping[str, str]
) -> list[LocalFile]:
    """The files of which the repository has none or other bytes, and that it does not ignore."""
    return [
        file for file in files if not standing[file.name].ignored and standing[file.name].digest != digests[file.name]
    ]


def _small_additions(files: Sequence[LocalFile]) -> "list[CommitOperationAdd]":
    from huggingface_hub import CommitOperationAdd

    additions = []
    for file in files:
        with reading(file.path):
            additions.append(CommitOperationAdd(file.name, file.path.read_bytes()))
    return additions
