"""A small server on the loopback that speaks the Hugging Face Hub's protocol, for the real clients to talk to.

It serves what a test gives it: repositories of models and data sets, with branches, commits, LFS files (sent by a
second host, as the Hub's storage does) and gates. Faults are switched on per file. Every request and every byte sent
is recorded, so that a test can say that nothing else was fetched.
"""

import sys
import threading
from collections import Counter
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from hub_content import Fault, FaultKind, Repository, RepoType, Request
from hub_protocol import HubHandler, StorageHandler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is none
            super().handle_error(request, client_address)


class HubServer:
    """Serves repositories on `url`; a context manager.

    `tokens` holds those with an account. `refuses_with` is a status that answers every request, `delay_s` a pause
    before each answer, `page_size` how many entries a page of a listing has.

    Pushing: `writers` are the tokens that may write; `blobs` is the storage of large files by SHA-256, `received` how
    many bytes of each came; `part_bytes` has them come in parts of that size, and `xet` by Xet, into that folder. While
    a PUT is held up (`stall`), `stalled` is set, until `released` is.
    """

    def __init__(self) -> None:
        self.repositories: dict[tuple[RepoType, str], Repository] = {}
        self.tokens: set[str] = set()
        self.faults: dict[str, Fault] = {}
        self.delay_s = 0.0
        self.refuses_with: int | None = None
        self.page_size = 1000
        self.requests: list[Request] = []
        self.sent: Counter[str] = Counter()
        self.writers: set[str] = set()
        self.blobs: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.received: Counter[str] = Counter()
        self.part_bytes: int | None = None
        self.xet: Path | None = None
        self.stalled, self.released = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._hub, self._storage = (self._listen(handler) for handler in (HubHandler, StorageHandler))
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.storage_url = f"http://127.0.0.1:{self._storage.server_port}"

    def _listen(self, handler: type[BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
        return _Server(("127.0.0.1", 0), type(handler.__name__, (handler,), {"hub": self}))

    def __enter__(self) -> "HubServer":
        for server in (self._hub, self._storage):
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    def add(self, repo_id: str, source: Path | Mapping[str, bytes], *, kind: RepoType = "model") -> Repository:
        """Serves a folder, or files by name, as the `main` branch of a new repository."""
        if isinstance(source, Path):
            source = {
                path.relative_to(source).as_posix(): path.read_bytes() for path in source.rglob("*") if path.is_file()
            }
        repository = self.repositories[kind, repo_id] = Repository(repo_id, kind)
        repository.commit(source)
        return repository

    def fail(
        self,
        name: str,
        kind: FaultKind,
        *,
        times: float = 1,
        after_bytes: int = 0,
    ) -> None:
        """Lets the sending of a file go wrong: the connection closes or is reset after some bytes, a bit of it is
        flipped, the answer is 503, or ranges are ignored and the connection closes.

        What goes wrong with ranges alone: the whole file is sent instead (`whole`), the answer says another range
        (`shifted`), is of a file that ends after some bytes (`shorter`), ends after some bytes itself (`few`), claims
        to be `packed`, or the address is `expired`.

        A step of a push has a name too: `create`, `yaml`, `preupload`, `batch`, `verify`, `commit`. It can be
        `unavailable` or `limited` (429), or be done and its answer `lost`. Bytes on their way here are `put`, or the
        SHA-256 of one file, and can also `stall`.
        """
        self.faults[name] = Fault(kind, times, after_bytes)

    def asked(self, what: str) -> int:
        """How many requests had this in their path."""
        return sum(what in request.path for request in self.requests)

    def fetched(self) -> set[str]:
        """The files of which a byte was sent, or which were asked for with GET."""
        return {request.name for request in self.requests if request.name and request.method == "GET"}

    def forget(self) -> None:
        """Empties the record, to look at what one step does."""
        self.requests.clear()
        self.sent.clear()
        self.received.clear()

    def take_fault(self, name: str) -> Fault | None:
        with self._lock:
            fault = self.faults.get(name)
            if fault is None or fault.times <= 0:
                return None
            fault.times -= 1
            return fault

    def record(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def count(self, name: str, size: int) -> None:
        with self._lock:
            self.sent[name] += size
