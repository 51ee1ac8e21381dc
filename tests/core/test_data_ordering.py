"""Batches hold every row once in an order of seed and epoch; processes share them evenly."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.data.ordering import epoch_batches, share

ROWS, SIZES = st.integers(0, 300), st.integers(1, 9)


@given(rows=ROWS, batch_size=SIZES, seed=st.integers(0, 2**70), epoch=st.integers(0, 9), grouped=st.booleans())
def test_every_row_is_in_one_batch_and_only_the_last_is_short(
    rows: int, batch_size: int, seed: int, epoch: int, grouped: bool
) -> None:
    lengths = [row % 17 for row in range(rows)] if grouped else None
    batches = epoch_batches(rows, batch_size=batch_size, seed=seed, epoch=epoch, lengths=lengths)
    assert sorted(row for batch in batches for row in batch) == list(range(rows))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches) == -(-rows // batch_size)
    assert batches == epoch_batches(rows, batch_size=batch_size, seed=seed, epoch=epoch, lengths=lengths)


@pytest.mark.parametrize("lengths", [None, list(range(100))])
def test_another_seed_or_epoch_is_another_order(lengths: list[int] | None) -> None:
    orders = [
        epoch_batches(100, batch_size=7, seed=seed, epoch=epoch, lengths=lengths)
        for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len({str(order) for order in orders}) == 4


def test_rows_of_similar_length_share_a_batch_and_the_batches_stay_mixed() -> None:
    lengths = [(row * 7919) % 1000 for row in range(800)]

    def padded(batches: list[list[int]]) -> int:
        return sum(len(batch) * max(lengths[row] for row in batch) for batch in batches)

    grouped = epoch_batches(800, batch_size=8, seed=1, epoch=0, lengths=lengths)
    assert padded(grouped) < 1.1 * sum(lengths) < padded(epoch_batches(800, batch_size=8, seed=1, epoch=0)) / 1.5
    longest = [max(lengths[row] for row in batch) for batch in grouped]
    assert sum(a < b for a, b in itertools.pairwise(longest)) in range(35, 65)


@given(batch=st.lists(st.integers()), world_size=st.integers(1, 12))
def test_the_shares_of_a_batch_are_even_and_make_it_up(batch: list[int], world_size: int) -> None:
    parts = [share(batch, rank, world_size) for rank in range(world_size)]
    assert [row for part in parts for row in part] == batch
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
