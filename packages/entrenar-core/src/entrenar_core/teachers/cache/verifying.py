"""Reading all of a cache, to find what a disk has changed."""

from collections.abc import Callable
from pathlib import Path

from entrenar_core.errors import DataError
from entrenar_core.teachers.cache.building import shard_file, told_of
from entrenar_core.teachers.cache.manifest import Manifest
from entrenar_core.teachers.cache.opening import check_head, sha256_of
from entrenar_core.teachers.cache.settings import AGAIN
from entrenar_core.teachers.cache.shards import Shard


def verify_rows(folder: Path, manifest: Manifest, *, on_row: Callable[[int], None] = lambda _: None) -> None:
    """Compares the checksum of every row; `on_row` is told how many are done.

    Raises:
        DataError: the head or a shard is missing, damaged, or has other rows than the manifest says.
    """
    check_head(manifest, folder)
    done = 0
    for number, told in enumerate(manifest.shards):
        shard = Shard(shard_file(folder, number))
        if shard.about != told_of(manifest.about, number):
            raise DataError(f"{shard.file} is of another cache, or at another's place", AGAIN)
        if len(shard) != told["rows"]:
            raise DataError(f"{shard.file} has {len(shard)} rows, and {told['rows']} were written", AGAIN)
        for index in range(len(shard)):
            shard.row(index)
            done += 1
            on_row(done)
        if sha256_of(shard.file) != told["sha256"]:  # what says where rows are has no checksum of its own
            raise DataError(f"{shard.file} is damaged: it is not what was written", AGAIN)
