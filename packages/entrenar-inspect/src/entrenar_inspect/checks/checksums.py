"""The SHA-256 of files, against what is said of them: on the command line, beside them, and by the Hub.

Source: the layout of huggingface_hub's cache, where a large file links to `blobs/<its SHA-256>`, and of folders that
`hf download --local-dir` fills, which keep it in `.cache/huggingface/download/<file>.metadata`; and coreutils'
`sha256sum`, for files of sums.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from entrenar_core.errors import ModelError, NotFoundError, UsageError
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import found, skipped
from entrenar_inspect.reports.validation import Check

NAME = "sha-256"
_SHOWN = 16  # of the 64 digits, in a finding
_DIGEST = re.compile(r"[0-9a-f]{64}", re.IGNORECASE)
_LINE = re.compile(r"\\?([0-9a-f]{64})(?:[ \t]+\*?(.+))?", re.IGNORECASE)
_BSD_LINE = re.compile(r"SHA256 \((.+)\) = ([0-9a-f]{64})", re.IGNORECASE)
_LISTS = ("sha256sums", "sha256sums.txt", "sha256sum.txt")
_OF_ONE = ".sha256"
_MAX_BYTES, _BLOCK_BYTES = 1_000_000, 1 << 20


@dataclass(frozen=True, slots=True)
class Expected:
    """The SHA-256 that a file should have, and what says so."""

    file: str
    digest: str
    what: str


def parsed(texts: Sequence[str]) -> tuple[tuple[str | None, str], ...]:
    """The file and digest of each `FILE=SHA256`; no file, where there is only a digest.

    Raises:
        UsageError: a text is neither.
    """
    pairs = []
    for text in texts:
        file, equals, digest = text.rpartition("=")
        if not _DIGEST.fullmatch(digest) or (equals and not file):
            raise UsageError(
                f"{text} is no SHA-256", "write its 64 digits, or FILE=SHA256; `sha256sum FILE` prints them"
            )
        pairs.append((file or None, digest.lower()))
    return tuple(pairs)


def wanted(model: StoredModel, pairs: Sequence[tuple[str | None, str]]) -> tuple[Expected, ...]:
    """What the command line says of the files of a model.

    Raises:
        UsageError: it has no such file, or several where none is named.
    """
    files = ", ".join(model.sources)
    found = []
    for file, digest in pairs:
        if file is None and len(model.sources) > 1:
            raise UsageError(f"one SHA-256 for {len(model.sources)} files", f"write FILE=SHA256; the files are {files}")
        if file is not None and file not in model.sources:
            raise UsageError(f"{model.reference} has no weights in {file}", f"its files are {files}")
        found.append(Expected(file or next(iter(model.sources)), digest, "the hash of --expect"))
    return tuple(found)


def digests(sources: Mapping[str, FileSource], progress: Callable[[int], None]) -> Mapping[str, str]:
    """The SHA-256 of files.

    Raises:
        ModelError: one cannot be read any more.
    """
    return {name: _digest(source, progress) for name, source in sources.items()}


def _digest(source: FileSource, progress: Callable[[int], None]) -> str:
    found = hashlib.sha256()
    for place in range(0, source.size_bytes, _BLOCK_BYTES):
        found.update(source.read(place, min(_BLOCK_BYTES, source.size_bytes - place)))
        progress(min(_BLOCK_BYTES, source.size_bytes - place))
    return found.hexdigest()


def matching(model: StoredModel, sums: Mapping[str, str], asked: Sequence[Expected]) -> Check:
    """Holds the digests of files against what was asked for, and what is said of them here."""
    if not sums:
        return skipped(NAME, "it needs every byte, and only headers were read")
    told = [one for one in (*asked, *_stated(model)) if one.file in sums]
    if not told:
        return skipped(NAME, "nothing here says what it should be; `--expect SHA256` does")
    wrong = [
        f"{one.file} has the SHA-256 {sums[one.file][:_SHOWN]}…, and {one.what} is {one.digest[:_SHOWN]}…"
        for one in told
        if sums[one.file] != one.digest
    ]
    unsaid = len(sums) - len({one.file for one in told})
    besides = f"; nothing states that of {unsaid} {'other' if unsaid == 1 else 'others'}" if unsaid else ""
    return found(NAME, wrong, fine=f"matches {' and '.join(dict.fromkeys(one.what for one in told))}{besides}")


def _stated(model: StoredModel) -> Iterator[Expected]:
    for name, source in model.sources.items():
        if not isinstance(source, FileSource):
            continue
        digest = _in_cache(source.path) or _fetched_into(model.place, name)
        if digest is not None:
            yield Expected(name, digest, "the Hub's hash")
    if isinstance(model.place, LocalPlace):
        yield from _beside(model.place, model.sources)


def _in_cache(path: Path) -> str | None:
    """What the Hub said of a file when it was fetched into the cache."""
    with suppress(OSError, RuntimeError):
        blob = path.resolve()
        if path.is_symlink() and blob.parent.name == "blobs" and _DIGEST.fullmatch(blob.name):
            return blob.name.lower()
    return None


def _fetched_into(place: object, name: str) -> str | None:
    """What the Hub said of a file when it was fetched into a folder: the second line beside it."""
    if not isinstance(place, LocalPlace):
        return None
    text = _text(place, f".cache/huggingface/download/{name}.metadata")
    lines = text.splitlines()
    return lines[1].lower() if len(lines) > 1 and _DIGEST.fullmatch(lines[1]) else None


def _beside(place: LocalPlace, files: Mapping[str, object]) -> Iterator[Expected]:
    """What files of sums say: SHA256SUMS and the like of any file, `FILE.sha256` of one."""
    for listed in place.sizes:
        if listed.lower() in _LISTS or listed.endswith(_OF_ONE):
            alone = listed.removesuffix(_OF_ONE)
            for file, digest in _lines(_text(place, listed)):
                meant = alone if alone in files else str(PurePosixPath(file))
                if meant in files:
                    yield Expected(meant, digest, f"the hash in {listed}")


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """File and digest of each line; where there is only a digest, the file is called nothing."""
    for line in map(str.strip, text.splitlines()):
        if (bsd := _BSD_LINE.fullmatch(line)) is not None:
            yield bsd[1], bsd[2].lower()
        elif (plain := _LINE.fullmatch(line)) is not None:
            yield plain[2] or "", plain[1].lower()


def _text(place: LocalPlace, name: str) -> str:
    """A small text file of a place; nothing of one that is large, or not there."""
    with suppress(ModelError, NotFoundError), place.open(name) as source:
        return source.read(0, source.size_bytes).decode(errors="replace") if source.size_bytes <= _MAX_BYTES else ""
    return ""
