"""Reading all of a cache, to find what a disk has changed."""

from collections.abc import Callable
from pathlib import Path

from entrenar_core.errors import DataError
from entrenar_core.teachers.cache.manifest import Manifest
from entrenar_core.teachers.cache.opening import check_head
from entrenar_core.teachers.cache.shards import AGAIN, Shard


def verify_rows(folder: Path, manifest: Manifest, *, on_row: Callable[[int], None] = lambda _: None) -> None:
    """Compares the checksum of every row; `on_row` is told how many are done.

    Raises:
        DataError: the head or a shard is missing, damaged, or has other rows than the manifest says.
    """
    check_head(manifest, folder)
    done = 0
    for told in manifest.shards:
        shard = Shard(folder / str(told["file"]))
        if len(shard) != told["rows"]:
            raise DataError(f"{shard.file} has {len(shard)} rows, and {told['rows']} were written", AGAIN)
        for index in range(len(shard)):
            shard.row(index)
            done += 1
            on_row(done)
