"""What the local Hub server holds: repositories with commits and files, and what shall go wrong with them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

RepoType = Literal["model", "dataset"]
FaultKind = Literal[
    "close",
    "reset",
    "corrupt",
    "unavailable",
    "ignore_range",
    "whole",
    "shifted",
    "shorter",
    "few",
    "packed",
    "expired",
    "stall",
    "lost",
    "limited",
]
SECRET = "hf_a-secret-that-nobody-may-see"
LFS_SUFFIXES = {".safetensors", ".bin", ".pt", ".pth", ".gguf", ".onnx", ".parquet", ".gz"}


@dataclass(frozen=True)
class ServedFile:
    """One file of a commit, with the identities by which the Hub knows it."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """The git object: of the content, or of the LFS pointer that stands for it."""
        data = self.content
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid


@dataclass
class Repository:
    """A repository: commits, and the branches and tags that name them."""

    repo_id: str
    kind: RepoType
    commits: dict[str, dict[str, ServedFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    granted: set[str] | None = None
    private: bool = False
    messages: list[str] = field(default_factory=list)
    ignored: set[str] = field(default_factory=set)
    """Names that a `.gitignore` leaves out."""

    def commit(self, files: Mapping[str, bytes], *, revision: str = "main") -> str:
        """Makes `files` the content of a branch and returns the commit."""
        served = {name: ServedFile(data, Path(name).suffix in LFS_SUFFIXES) for name, data in files.items()}
        listing = json.dumps([self.repo_id, revision, {name: file.oid for name, file in sorted(served.items())}])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = served
        self.refs[revision] = commit
        return commit

    def change(self, files: Mapping[str, ServedFile], message: str) -> str:
        """Adds files to the main branch, or replaces them, in a commit of its own."""
        before = self.refs.get("main")
        served = {**(self.commits[before] if before else {}), **files}
        listing = json.dumps([self.repo_id, before, {name: file.oid for name, file in sorted(served.items())}])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = served
        self.refs["main"] = commit
        self.messages.append(message)
        return commit

    def gate(self, *granted: str) -> None:
        """Anyone sees the list of files; only these tokens may fetch one."""
        self.granted = set(granted)

    def find(self, revision: str) -> str | None:
        return self.refs.get(revision, revision if revision in self.commits else None)


class Refused(Exception):
    """An answer that says no."""

    def __init__(self, status: int, code: str | None, message: str, **more: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.more = status, code, message, more


@dataclass
class Fault:
    """What goes wrong when a file's bytes are sent: so many times, or always."""

    kind: FaultKind
    times: float
    after_bytes: int = 0


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    authorization: str | None
    range: str | None
    name: str | None
