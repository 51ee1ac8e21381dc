"""The folder that a cache is built in: what is there, whether there is room, and one build at a time."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from entrenar_core.errors import DataError, OutputError, UsageError
from entrenar_core.teachers.cache.building import is_whole, shard_file
from entrenar_core.teachers.cache.identity import Identity, differences
from entrenar_core.teachers.cache.manifest import MANIFEST, Manifest, read_manifest
from entrenar_core.teachers.cache.opening import HEAD, check_head
from entrenar_core.training.files import writing
from entrenar_core.units import size

_BESIDE, _SHARDS = (MANIFEST, HEAD, f".{MANIFEST}.partial", f".{HEAD}.partial", ".shard-*"), "shard-*.safetensors"
_ELSEWHERE = "choose another folder, or replace it with --force"


@dataclass(frozen=True, slots=True)
class CacheFolder:
    """Where a cache is, or will be."""

    path: Path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Makes the folder, and holds it until the block ends; the system lets go of it however the process ends.

        Raises:
            OutputError: it cannot be made.
            UsageError: another build is at work in it.
        """
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._hold(handle)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):  # it holds something
                    self.path.rmdir()
        finally:
            os.close(handle)

    def _hold(self, handle: int) -> None:
        with contextlib.suppress(OSError):  # of a file system that holds nothing
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"another build is at work in {self.path}"
                raise UsageError(message, "wait until it ends, or choose another folder") from None

    def manifest(self, *, force: bool) -> Manifest | None:
        """Of the cache that is there; None where nothing is, or, with `force`, where what is there is damaged.

        Raises:
            UsageError: something else is there.
            DataError: it is damaged.
        """
        with writing(self.path):
            names = {entry.name for entry in self.path.iterdir()} if self.path.exists() else set[str]()
        if not names:
            return None
        if MANIFEST not in names:
            raise UsageError(f"{self.path} holds something else than a cache", "choose another folder")
        try:
            return read_manifest(self.path)
        except DataError as error:
            if not any(name == HEAD or name.startswith("shard-") for name in names):
                raise UsageError(f"{self.path} holds something else than a cache", "choose another folder") from error
            if not force:
                raise DataError(error.message, "replace the cache with --force") from error
        return None

    def require_fitting(self, kind: str, identity: Identity, *, force: bool) -> None:
        """What is there must be of the same kind and made of the same: known before the teacher is loaded.

        Raises:
            UsageError: it is another cache, and what is another in it.
            DataError: as `manifest`.
        """
        found = self.manifest(force=force)
        if found is None or force:
            return
        if found.kind["name"] != kind:
            message = f"{self.path} holds a cache of another kind: {found.kind['name']}, and {kind} is asked for"
            raise UsageError(message, _ELSEWHERE)
        if others := list(differences(found.identity, identity)):
            message = f"{self.path} holds a cache that was made of something else: {', '.join(others)}"
            raise UsageError(message, _ELSEWHERE)

    def kept(self, wanted: Manifest, *, force: bool) -> Manifest | None:
        """The cache that is there, if it is the wanted one and complete; None where some of it is missing. With
        `force`, another cache is deleted.

        Raises:
            UsageError: another cache is there.
            DataError: as `manifest`.
            OutputError: it cannot be deleted.
        """
        found = self.manifest(force=force)
        if found is not None and found.about == wanted.about:
            return found if found.complete and self._whole(found) else None
        if found is not None and not force:
            differing = [
                name
                for name, one, other in (
                    ("settings", found.kind, wanted.kind),
                    ("layers", found.layers, wanted.layers),
                    ("rows", found.plan, wanted.plan),
                )
                if one != other
            ]
            message = f"{self.path} holds another cache: of other {' and '.join(differing)}"
            raise UsageError(message, _ELSEWHERE)
        if force:
            with writing(self.path):
                for file in self._others(wanted.about):
                    file.unlink()
        return None

    def _others(self, about: str) -> Iterator[Path]:
        """The files of another cache; the manifest first, for what is half deleted is no cache."""
        for pattern in _BESIDE:
            yield from self.path.glob(pattern)
        for file in self.path.glob(_SHARDS):
            number = file.stem.removeprefix("shard-")
            if not number.isdecimal() or not is_whole(file, about, int(number)):
                yield file

    def require_room(self, taken: int) -> None:
        """Raises OutputError where so many bytes more have no room."""
        free = shutil.disk_usage(self.path).free
        if taken > free:
            raise OutputError(
                f"the cache takes about {size(taken)} more, and {size(free)} are free in {self.path}",
                "choose another folder, another kind, or fewer rows",
            )

    def size_of(self, shards: Iterable[int]) -> int:
        """Of shards that are there, in bytes."""
        return sum(shard_file(self.path, number).stat().st_size for number in shards)

    def _whole(self, manifest: Manifest) -> bool:
        try:
            check_head(manifest, self.path)
        except DataError:
            return False
        shards = range(len(manifest.shards))
        return all(is_whole(shard_file(self.path, number), manifest.about, number) for number in shards)
