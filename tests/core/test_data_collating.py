"""What a batch counts does not depend on its padding: the side, the pad token, or the company of a row."""

import pickle
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.data.collating import Batch, Collator

EOS = 2
Side = Literal["left", "right"]


@st.composite
def causal_rows(draw: Any) -> list[dict[str, Any]]:
    rows = []
    for number in range(draw(st.integers(1, 5))):
        ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
        labels = [token if draw(st.booleans()) else -100 for token in ids]
        rows.append({"input_ids": ids, "labels": labels, "row": number, "length": len(ids)})
    return rows


@given(rows=causal_rows(), side=st.sampled_from(["left", "right"]))
def test_a_language_models_targets_are_the_learnt_tokens_that_something_predicts(
    rows: list[dict[str, Any]], side: Side
) -> None:
    batch = Collator(EOS, side)(rows)
    assert batch.input_ids_BT.shape[1] == max(map(len, (row["input_ids"] for row in rows)))
    expected = sum(label != -100 for row in rows for label in row["labels"][1:])
    assert batch.num_soft == batch.num_hard == int(batch.targets.sum()) == expected
    assert not batch.targets[:, 0].any()
    assert torch.equal(batch.targets, batch.labels != -100)
    assert torch.equal(batch.labels[batch.targets], batch.input_ids_BT[batch.targets])
    assert not (batch.targets & (batch.attention_mask_BT == 0)).any()
    for index, row in enumerate(rows):
        assert batch.input_ids_BT[index][batch.attention_mask_BT[index].bool()].tolist() == row["input_ids"]
    assert batch.rows_B.tolist() == list(range(len(rows)))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_pad_token_that_is_the_eos_token_is_learnt_only_where_it_ends_a_text(side: Side) -> None:
    rows = [{"input_ids": ids, "labels": ids, "row": 0} for ids in ([5, 6, EOS], [7, 7, 7, 7, EOS])]
    batch = Collator(EOS, side)(rows)
    learnt = [row[mask].tolist() for row, mask in zip(batch.labels, batch.targets, strict=True)]
    assert learnt == [[6, EOS], [7, 7, 7, EOS]]


def test_a_classifier_counts_every_row_as_soft_and_labelled_ones_as_hard() -> None:
    rows = [{"input_ids": [1] * n, "labels": label, "row": 9 - n} for n, label in ((3, 2), (1, -100), (2, 0))]
    batch = Collator(0)(rows)
    assert batch.labels.tolist() == [2, -100, 0]
    assert batch.targets.tolist() == [True] * 3
    assert (batch.num_soft, batch.num_hard) == (3, 2)
    assert batch.attention_mask_BT.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert batch.rows_B.tolist() == [6, 8, 7]


@pytest.mark.parametrize("labels", [1, [4, 5]])
def test_a_blanked_batch_has_the_shapes_and_counts_nothing(labels: int | list[int]) -> None:
    batch = Collator(0)([{"input_ids": [4, 5], "labels": labels, "row": 3}])
    blank = batch.blanked()
    assert (blank.num_soft, blank.num_hard) == (0, 0)
    assert batch.num_soft == 1
    assert not blank.targets.any()
    assert (blank.labels == -100).all()
    assert blank.labels.shape == batch.labels.shape
    assert torch.equal(blank.input_ids_BT, batch.input_ids_BT)


def test_a_batch_moves_to_a_device_and_between_processes() -> None:
    batch = Collator(0)([{"input_ids": [4, 5], "labels": [4, 5], "row": 3}])
    moved = batch.to("meta")
    assert {moved.input_ids_BT.device.type, moved.labels.device.type, moved.targets.device.type} == {"meta"}
    assert (moved.num_soft, moved.num_hard) == (1, 1)
    copied: Batch = pickle.loads(pickle.dumps(batch))
    assert torch.equal(copied.labels, batch.labels)
    assert copied.num_soft == 1
