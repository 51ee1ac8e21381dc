"""A batch of packed rows counts what its examples count, each by itself, and knows where each of them is."""

import pickle
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.data.collating import Collator
from entrenar_core.data.masking import Masking
from entrenar_core.models.rows import Counting
from entrenar_core.teachers.cache.keys import keys_of

Side = Literal["left", "right"]
TASKS = ("causal-lm", "masked-lm", "token-classification", "weighted")
PAD = 2


@st.composite
def packs(draw: Any, task: str) -> list[list[dict[str, Any]]]:
    """Rows of examples."""
    rows, number = [], 0
    for _ in range(draw(st.integers(1, 3))):
        row = []
        for _ in range(draw(st.integers(1, 4))):
            ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=6))
            example: dict[str, Any] = {"input_ids": ids, "row": number}
            labels = [token if draw(st.booleans()) else -100 for token in ids]
            if task == "masked-lm":
                example["words"] = list(range(len(ids)))
            elif task == "token-classification":
                example |= {"labels": labels, "targets": [draw(st.booleans()) for _ in ids]}
            else:
                example["labels"] = labels
            if task == "weighted":
                example["weights"] = [draw(st.sampled_from([0.5, 1.0, 2.0])) for _ in ids]
            row.append(example)
            number += 1
        rows.append(row)
    return rows


def collator(side: Side = "right") -> Collator:
    return Collator(PAD, side, Masking(4, (5, 6, 7), 0.5, 3), epoch=1)


@pytest.mark.parametrize("task", TASKS)
@given(data=st.data(), side=st.sampled_from(["left", "right"]))
def test_what_counts_is_what_counts_of_each_example(data: st.DataObject, side: Side, task: str) -> None:
    rows = data.draw(packs(task))
    examples = [example for row in rows for example in row]
    batch, alone = collator(side).packed(rows), [collator()([example]) for example in examples]
    assert batch.num_soft == sum(one.num_soft for one in alone)
    assert batch.num_hard == sum(one.num_hard for one in alone)
    assert batch.rows_B.tolist() == [example["row"] for example in examples]
    assert batch.input_ids_BT[batch.real].tolist() == [
        int(token) for one in alone for token in one.input_ids_BT.flatten()
    ]
    counting = Counting(shifted=task in ("causal-lm", "weighted"))
    assert counting.labels(batch).tolist() == [int(label) for one in alone for label in counting.labels(one)]
    if task == "weighted":
        weights = [float(w) for one in alone for w in counting.weights(one)]  # type: ignore[union-attr]
        assert counting.weights(batch).tolist() == weights  # type: ignore[union-attr]
    assert list(keys_of(batch)) == [key for one in alone for key in keys_of(one)]


@given(data=st.data(), side=st.sampled_from(["left", "right"]))
def test_examples_are_numbered_and_found_again(data: st.DataObject, side: Side) -> None:
    rows = data.draw(packs("causal-lm"))
    batch = collator(side).packed(rows)
    packed = batch.packed
    assert packed is not None
    for index, row in enumerate(rows):
        real = batch.real[index]
        lengths = [len(example["input_ids"]) for example in row]
        assert packed.positions_BT[index][real].tolist() == [at for length in lengths for at in range(length)]
        numbers = [number for number, length in enumerate(lengths) for _ in range(length)]
        assert packed.segments_BT[index][real].tolist() == numbers
        beside = numbers[0] if side == "left" else numbers[-1]
        assert (packed.segments_BT[index][~real] == beside).all()
    places_EL, real_EL = packed.apart(batch.real)
    found = [batch.input_ids_BT.flatten()[at[there]].tolist() for at, there in zip(places_EL, real_EL, strict=True)]
    assert found == [example["input_ids"] for row in rows for example in row]


def test_a_packed_batch_is_blanked_moved_and_sent_to_processes() -> None:
    rows = [[{"input_ids": [4, 5], "labels": [4, 5], "row": n} for n in (0, 1)]]
    batch = Collator(0).packed(rows)
    assert batch.packed is not None
    blank = batch.blanked()
    assert (blank.num_soft, blank.packed) == (0, batch.packed)
    assert batch.packed.apart(blank.real)[0].shape == (0, 0)
    moved = batch.to("meta").packed
    assert moved is not None
    assert moved.positions_BT.device.type == moved.segments_BT.device.type == "meta"
    copied = pickle.loads(pickle.dumps(batch)).packed
    assert torch.equal(copied.segments_BT, batch.packed.segments_BT)
    assert Collator(0)(rows[0]).packed is None
