"""Reading all of a cache, to find what a disk has changed."""

from collections.abc import Callable
from pathlib import Path

from entrenar_core.errors import DataError
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
    for told in manifest.shards:
        file = folder / str(told["file"])
        shard = Shard(file)
        if sha256_of(file) != told["sha256"]:
            _first_wrong_row(shard)
            raise DataError(f"{file} is damaged: it is not what was written", AGAIN)
        if len(shard) != told["rows"]:
            raise DataError(f"{shard.file} has {len(shard)} rows, and {told['rows']} were written", AGAIN)
        for index in range(len(shard)):
            shard.row(index)
            done += 1
            on_row(done)


def _first_wrong_row(shard: Shard) -> None:
    """Raises DataError with the row that is damaged, if it is one, and not what says where rows are."""
    for index in range(len(shard)):
        shard.row(index)
