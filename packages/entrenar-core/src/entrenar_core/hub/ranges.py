"""A repository on the Hub as a place of files that are read by ranges, so that to look inside a model fetches its
headers and not its weights.

Nothing is written: what was fetched is kept in memory as long as its file is open. A file that the cache has already is
read from there. What a server sends is held against what was asked for: half an answer, another range or a whole file
is never taken for the bytes that were meant.

Source: RFC 9110, sections 14 and 15.3.7; the Hub's `resolve`, which sends large files by a redirect to its storage.
"""

from bisect import bisect_right, insort
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.errors import FetchError, ModelError, NotFoundError
from entrenar_core.formats.choosing import stays_below
from entrenar_core.formats.places import LocalPlace, Place
from entrenar_core.formats.safetensors import FIRST_READ_BYTES
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.hub.client import RETRY_DELAYS_S, TIMEOUT_S, Client, Repository, connect, hinting_at_offline
from entrenar_core.hub.transfer import RemoteFile, cached_snapshot, listing
from entrenar_core.references import HubReference
from entrenar_core.units import size as humane

if TYPE_CHECKING:
    from httpx2 import Response

MAX_FETCHED_BYTES = 128_000_000
"""Of one file. Whoever needs more needs the file."""
_SMALLEST_WINDOW_BYTES, _LARGEST_WINDOW_BYTES, _GROWTH = 65_536, 1_048_576, 4


def remote_place(reference: HubReference, *, retry_delays_s: Sequence[float] = RETRY_DELAYS_S) -> tuple[Place, str]:
    """The files of a repository, without fetching one, and the commit that its revision names now. In offline mode,
    what the cache holds of it.

    Raises:
        AccessError: the repository is private, or the login is not known.
        NotFoundError: there is no such repository or revision, or offline no cached one.
        FetchError: the Hub does not answer.
    """
    client = connect(retry_delays_s=retry_delays_s)
    repository = Repository("model", reference.repo_id, reference.revision)
    if client.offline:
        commit, folder = cached_snapshot(client, repository)
        return _CachedPlace(client, folder), commit
    commit, files = listing(client, repository)
    return RemotePlace(client, repository, commit, files), commit


class _CachedPlace(LocalPlace):
    """What the cache holds of one commit, where the network is not to be used."""

    def __init__(self, client: Client, folder: Path) -> None:
        self._client = client
        with hinting_at_offline(client):
            super().__init__(folder)

    def open(self, name: str) -> FileSource:
        """As `Place.open`."""
        with hinting_at_offline(self._client):
            return super().open(name)


class RemotePlace:
    """The files of one commit, as the Hub lists them."""

    def __init__(self, client: Client, repository: Repository, commit: str, files: Mapping[str, RemoteFile]) -> None:
        self.name, self.commit = str(repository), commit
        self.sizes: Mapping[str, int] = {name: file.size_bytes for name, file in files.items()}
        self._client, self._repository, self._files = client, repository, files

    def open(self, name: str) -> Source:
        """As `Place.open`: a file on this machine if the cache has it, else one that is fetched as it is read."""
        if not stays_below(name):
            raise ModelError(f"{self.name}/{name} lies outside of its repository", "take a model that you trust")
        if name not in self._files:
            page = f"{self._client.endpoint}/{self._repository.page}"
            raise NotFoundError(f"{self.name} has no file {name}", f"its files are listed at {page}")
        return self._cached(name) or RemoteSource(self._client, self._repository, self.commit, self._files[name])

    def _cached(self, name: str) -> FileSource | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self._repository.repo_id, name, self._client.cache_dir, revision=self.commit)
        if not isinstance(path, str):
            return None
        source = FileSource(Path(path))
        if source.size_bytes == self.sizes[name]:
            return source
        source.close()  # cut short: the Hub has the whole of it
        return None


@dataclass(frozen=True, slots=True)
class _Piece:
    """Bytes of a file, and where in it they start."""

    start: int
    data: bytes

    @property
    def end(self) -> int:
        return self.start + len(self.data)


class RemoteSource:
    """A file on the Hub, of which ranges are fetched as they are asked for, and kept. For one thread at a time.

    The first request takes as much as almost every header needs. Further ones take at least a window, which grows while
    the file is read on from where the last one ended, and is small again after a leap.
    """

    def __init__(self, client: Client, repository: Repository, commit: str, file: RemoteFile) -> None:
        from huggingface_hub import hf_hub_url

        self.name, self.size_bytes = f"{repository}/{file.name}", file.size_bytes
        self._client, self._repository, self._file = client, repository, file.name
        self._url = hf_hub_url(
            repository.repo_id, file.name, repo_type=repository.kind, revision=commit, endpoint=client.endpoint
        )
        self._storage: str | None = None  # where the Hub last sent us; such an address holds for an hour or less
        self._kept: list[_Piece] = []  # by offset; no two overlap
        self._fetched_bytes, self._window, self._last_end = 0, _SMALLEST_WINDOW_BYTES, -1

    def read(self, offset: int, size: int) -> bytes:
        """As `Source.read`.

        Raises:
            ModelError: the file ends before.
            AccessError, FetchError: the Hub does not give it, or more than `MAX_FETCHED_BYTES` would be fetched.
        """
        end = offset + size
        if end > self.size_bytes:
            raise ModelError(
                f"{self.name} ends {humane(end - self.size_bytes)} too early: it has {self.size_bytes:,} bytes",
                "its author has to upload it again",
            )
        parts = []
        while offset < end:
            piece = self._holding(offset, end)
            parts.append(piece.data[offset - piece.start : end - piece.start])
            offset += len(parts[-1])
        return b"".join(parts)

    def close(self) -> None:
        """Forgets what was fetched."""
        self._kept.clear()

    def _holding(self, offset: int, end: int) -> _Piece:
        """The piece that has the byte at `offset`. If none has, one is fetched, up to `end` or to the next piece."""
        place = bisect_right(self._kept, offset, key=_start)
        if place and offset < self._kept[place - 1].end:
            return self._kept[place - 1]
        following = self._kept[place].start if place < len(self._kept) else self.size_bytes
        start, wanted = self._worth_fetching(offset, end)
        piece = _Piece(start, self._fetch(start, min(wanted, following)))
        insort(self._kept, piece, key=_start)
        return piece

    def _worth_fetching(self, offset: int, end: int) -> tuple[int, int]:
        """The range to ask for, which may end after what is there."""
        if not self._kept and offset < FIRST_READ_BYTES:
            return 0, max(end, FIRST_READ_BYTES)
        on = offset == self._last_end
        window = min(self._window, _LARGEST_WINDOW_BYTES) if on else _SMALLEST_WINDOW_BYTES
        self._window = window * _GROWTH
        return offset, max(end, offset + window)

    def _fetch(self, start: int, end: int) -> bytes:
        if self._fetched_bytes + end - start > MAX_FETCHED_BYTES:
            raise FetchError(
                f"{self.name}: to look into it takes more than {humane(MAX_FETCHED_BYTES)} of it",
                f"fetch it first: {self._download}",
            )
        data = self._client.ask(partial(self._request, start, end), self._repository, self._file)
        self._fetched_bytes += len(data)
        self._last_end = end
        return data

    def _request(self, start: int, end: int) -> bytes:
        """Asks the storage, if the Hub has named it, else the Hub, which alone is told who asks."""
        from huggingface_hub.errors import HfHubHTTPError

        storage, self._storage = self._storage, None
        if storage is not None:
            with suppress(HfHubHTTPError):  # the address no longer holds
                return self._answer(storage, None, start, end)
        return self._answer(self._url, self._client.token, start, end)

    def _answer(self, url: str, token: str | None, start: int, end: int) -> bytes:
        from huggingface_hub import get_session, hf_raise_for_status

        headers = {"Accept-Encoding": "identity"}  # ranges are of plain bytes
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        whole = end - start == self.size_bytes
        if not whole:
            headers["Range"] = f"bytes={start}-{end - 1}"
        # The session leaves out the token where a redirect leads to another host.
        with get_session().stream("GET", url, headers=headers, timeout=TIMEOUT_S, follow_redirects=True) as response:
            if response.status_code != 416:
                hf_raise_for_status(response)
            self._check(response, "" if whole else f"bytes {start}-{end - 1}/{self.size_bytes}")
            body = _body(response, end - start)
        if not str(response.url).startswith(f"{self._client.endpoint}/"):
            self._storage = str(response.url)
        return body

    @property
    def _download(self) -> str:
        revision = f" --revision {self._repository.revision}" if self._repository.revision else ""
        return f"`hf download {self._repository.repo_id} {self._file}{revision}`"

    def _check(self, response: "Response", wanted: str) -> None:
        """Holds the head of an answer against the range that was asked for, before any of its body is read. A whole
        file has none.
        """
        given = response.headers.get("Content-Range", "").strip()
        if wanted and response.status_code == 200:
            complaint = "ignores ranges: it sends the whole file"
        elif response.status_code != (206 if wanted else 200):
            complaint = f"answered {response.status_code} instead of {wanted or 'the file'}"
        elif wanted and given.lower() != wanted:
            complaint = f"sends {given[:80]!r} instead of {wanted!r}"
        elif (encoding := response.headers.get("Content-Encoding", "identity").lower()) != "identity":
            complaint = f"sends it packed by {encoding[:40]!r}"
        else:
            return
        raise FetchError(
            f"{self._file} of {self._repository}: the server {response.url.host} {complaint}",
            f"a proxy or mirror may be in the way; fetch the file whole: {self._download}",
        )


def _start(piece: _Piece) -> int:
    return piece.start


def _body(response: "Response", size: int) -> bytes:
    """Exactly `size` bytes; what is short may be whole the next time (see `failures.may_pass`)."""
    body = bytearray()
    for chunk in response.iter_raw():
        body += chunk
        if len(body) > size:
            break
    if len(body) != size:
        raise OSError(f"{'more than ' if len(body) > size else ''}{min(len(body), size):,} bytes came for {size:,}")
    return bytes(body)
