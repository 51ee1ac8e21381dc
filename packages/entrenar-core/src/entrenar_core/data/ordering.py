"""In what order batches take rows, and which part of a batch a process takes. The same seed gives the same order."""

from collections.abc import Sequence

import torch

from entrenar_core.data.chance import mixed

CHUNK_BATCHES = 50
"""Rows are sorted by length within so many batches: enough to pad little, few enough that company changes."""


def epoch_batches(
    num_rows: int, *, batch_size: int, seed: int, epoch: int, lengths: Sequence[int] | None = None
) -> list[list[int]]:
    """Every row once, in batches of `batch_size`; the last batch has what is left.

    The permutation depends on seed and epoch alone. With `lengths`, rows of similar length share a batch, while the
    order of the batches stays random.
    """
    generator = torch.Generator().manual_seed(mixed(seed, f"order of epoch {epoch}"))
    order: list[int] = torch.randperm(num_rows, generator=generator).tolist()
    if lengths is None:
        return _cut(order, batch_size)
    whole = num_rows - num_rows % batch_size
    batches: list[list[int]] = []
    for chunk in _cut(order[:whole], CHUNK_BATCHES * batch_size):
        batches += _cut(sorted(chunk, key=lengths.__getitem__), batch_size)
    shuffled = [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
    return shuffled + _cut(order[whole:], batch_size)


def share(batch: Sequence[int], rank: int, world_size: int, group_size: int = 1) -> list[int]:
    """The contiguous part of a batch that a process takes; the parts differ by at most one group of rows, of which
    each lies in one part.
    """
    groups = -(-len(batch) // group_size)
    first, end = (groups * part // world_size * group_size for part in (rank, rank + 1))
    return list(batch[first:end])


def _cut(rows: list[int], size: int) -> list[list[int]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]
