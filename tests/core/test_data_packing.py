"""Packed rows hold every example once, none is too long, and almost nothing of them is empty."""

import itertools
import random

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.config.schema import TrainingConfig
from entrenar_core.data.collating import Collator
from entrenar_core.data.packing import Packing, best_fit
from entrenar_core.training.batches import StoredBatches

CAPACITY = 40
LENGTHS = st.lists(st.integers(1, CAPACITY), max_size=120)


@given(lengths=LENGTHS, seed=st.integers(0, 2**70), epoch=st.integers(0, 9))
def test_every_example_is_in_one_row_and_no_row_is_too_long(lengths: list[int], seed: int, epoch: int) -> None:
    packing = Packing(lengths, CAPACITY)
    rows = packing.rows(seed=seed, epoch=epoch)
    assert sorted(example for row in rows for example in row) == list(range(len(lengths)))
    assert [sum(lengths[example] for example in row) for row in rows] == packing.filled
    assert all(0 < filled <= CAPACITY for filled in packing.filled)
    assert len(rows) == len(packing)
    assert rows == Packing(lengths, CAPACITY).rows(seed=seed, epoch=epoch)


@given(lengths=LENGTHS)
def test_two_rows_never_fit_into_one_and_the_rows_are_near_the_fewest(lengths: list[int]) -> None:
    """Best fit decreasing needs at most 11/9 of the fewest rows and one (Johnson 1974)."""
    packing = Packing(lengths, CAPACITY)
    assert all(one + other > CAPACITY for one, other in itertools.combinations(packing.filled, 2))
    assert len(packing) <= 11 / 9 * -(-sum(lengths) // CAPACITY) + 1 or max(lengths) > CAPACITY // 3


@given(lengths=LENGTHS)
def test_a_length_goes_into_the_fullest_row_that_has_room(lengths: list[int]) -> None:
    """The rule itself, with all rows looked at."""
    rows: list[int] = []
    for length, found in zip(lengths, best_fit(lengths, CAPACITY), strict=True):
        fitting = [filled for filled in rows if filled + length <= CAPACITY]
        if fitting:
            assert rows[found] == max(fitting)
            rows[found] += length
        else:
            assert found == len(rows)
            rows.append(length)


@pytest.mark.parametrize(
    ("middle", "spread"), [(3.5, 0.8), (5.0, 0.9), (6.0, 0.7)], ids=["sentences", "chats", "documents"]
)
@pytest.mark.parametrize("examples", [500, 20_000])
def test_rows_of_realistic_lengths_are_nearly_full(examples: int, middle: float, spread: float) -> None:
    chance = random.Random(0)
    lengths = [min(1024, max(2, round(chance.lognormvariate(middle, spread)))) for _ in range(examples)]
    assert Packing(lengths, 1024).fill >= 0.95
    assert Packing(lengths, 1024).fill == pytest.approx(sum(lengths) / (1024 * len(Packing(lengths, 1024))))


def test_company_changes_from_epoch_to_epoch_and_with_the_seed() -> None:
    packing = Packing([3, 5, 8, 2] * 30, 20)
    made = [packing.rows(seed=seed, epoch=epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert len({str(rows) for rows in made}) == 4


def test_nothing_to_pack_and_too_long_an_example() -> None:
    assert (len(Packing([], 8)), Packing([], 8).fill, Packing([], 8).rows(seed=0, epoch=0)) == (0, 1.0, [])
    with pytest.raises(ValueError, match="9 tokens does not fit into a row of 8"):
        Packing([3, 9], 8)


# ── Batches of packed rows ──

ROWS = [{"input_ids": [5] * n, "labels": [5] * n, "row": at, "length": n} for at, n in enumerate([5, 2, 9, 3, 8] * 5)]


def taken(first: int = 0, rank: int = 0, world_size: int = 1, **settings: object) -> list[list[list[int]]]:
    """The examples of each micro-batch of each step that count."""
    training = TrainingConfig.model_validate({"epochs": 2, "batch_size": 2, "gradient_accumulation": 2} | settings)
    packing = Packing([row["length"] for row in ROWS], 12)  # type: ignore[misc]
    rows = Dataset.from_list(ROWS)
    steps = StoredBatches(rows, Collator(0), training, rank, world_size, packing=packing).steps(first)
    return [[batch.rows_B.tolist() if batch.num_soft else [] for batch in step] for step in steps]


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_takes_every_example_once_and_a_resumed_one_goes_on(grouped: bool) -> None:
    whole = taken(group_by_length=grouped)
    epochs = whole[: len(whole) // 2], whole[len(whole) // 2 :]
    for epoch in epochs:
        assert sorted(row for step in epoch for batch in step for row in batch) == list(range(25))
    assert epochs[0] != epochs[1]
    for first in range(len(whole)):
        assert taken(first, group_by_length=grouped) == whole[first:]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_packed_rows_of_one_process(world_size: int) -> None:
    parts = [taken(rank=rank, world_size=world_size) for rank in range(world_size)]
    for step, step_parts in zip(taken(), zip(*parts, strict=True), strict=True):
        joined = [[row for part in batch_parts for row in part] for batch_parts in zip(*step_parts, strict=True)]
        assert joined == step


def test_workers_give_the_same_packed_batches() -> None:
    assert taken(dataloader_workers=2) == taken()
