"""Building a cache: the teacher reads every row once, shard by shard; what is whole is not built again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from entrenar_core.errors import DataError, Interrupted
from entrenar_core.teachers.cache.keeping import Asks
from entrenar_core.teachers.cache.planning import CachePlan
from entrenar_core.teachers.cache.shards import Arrays, Shard, write_shard
from entrenar_core.training.signals import StopRequest

OnBatch = Callable[[int, int], None]
"""Is told how many batches are done, and of how many."""


@dataclass(frozen=True, slots=True)
class Builder:
    """Reads the rows of a plan with the teacher, and keeps what it says of them.

    `about` says what the cache is made of: a shard of another one is written anew.
    """

    reader: Asks
    plan: CachePlan
    texts: Sequence[str]
    folder: Path
    about: str

    def missing(self) -> list[int]:
        """The shards that are not there yet."""
        files = (shard_file(self.folder, number) for number in range(len(self.plan.shards)))
        return [number for number, file in enumerate(files) if not is_whole(file, self.about, number)]

    def positions_per_s(self) -> float:
        """How fast the teacher reads a batch of middle length."""
        batches = [batch for shard in self.plan.shards for batch in shard]
        batch = batches[len(batches) // 2]
        began = time.perf_counter()
        self.reader.read(batch, self.texts)
        return sum(row.positions for row in batch) / max(time.perf_counter() - began, 1e-9)

    def build(self, missing: Sequence[int], stop: StopRequest, on_batch: OnBatch) -> float:
        """Writes the `missing` shards, and tells how many positions a second it read.

        Raises:
            Interrupted: asked to stop; whole shards are kept.
            ModelError: the teacher says what are no numbers.
            OutputError: a shard cannot be written.
        """
        total = sum(map(len, self.plan.shards))
        done = total - sum(len(self.plan.shards[number]) for number in missing)
        positions, began = 0, time.perf_counter()
        for place, number in enumerate(missing):
            keys: list[bytes] = []
            kept: list[Arrays] = []
            for batch in self.plan.shards[number]:
                on_batch(done, total)
                if stop.requested:
                    built = len(self.plan.shards) - len(missing) + place
                    raise Interrupted(
                        f"stopped with {built} of {len(self.plan.shards)} shards built, which are kept",
                        "give the same command again to go on",
                    )
                kept += self.reader.read(batch, self.texts)
                keys += [row.key for row in batch]
                positions += sum(row.positions for row in batch)
                done += 1
            write_shard(shard_file(self.folder, number), keys, kept, told_of(self.about, number))
        on_batch(total, total)
        return positions / max(time.perf_counter() - began, 1e-9)


def shard_file(folder: Path, number: int) -> Path:
    """Where a shard lies."""
    return folder / f"shard-{number:05d}.safetensors"


def is_whole(file: Path, about: str, number: int) -> bool:
    """Whether the shard of this number of this very cache is there, and every row of it is what was written."""
    try:
        if not file.exists():
            return False
        shard = Shard(file)
        for index in range(len(shard)):
            shard.row(index)
    except DataError:
        return False
    return shard.about == told_of(about, number)


def told_of(about: str, number: int) -> dict[str, str]:
    """What a shard says of itself."""
    return {"cache": about, "shard": str(number)}
