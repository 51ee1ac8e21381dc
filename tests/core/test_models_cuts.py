"""Cuts of a width: inverses, ends, and the choice of heads by groups."""

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.models.choosing import chosen_heads
from entrenar_core.models.cuts import Projection, Selection, each_times, first, interpolation, largest, principal
from entrenar_core.models.widths import Widths


@given(teacher=st.integers(1, 40), data=st.data())
def test_interpolation_weighs_neighbours_and_can_be_undone(teacher: int, data: st.DataObject) -> None:
    student = data.draw(st.integers(1, teacher))
    cut = interpolation(teacher, student)
    assert cut.down_mn.shape == (student, teacher)
    torch.testing.assert_close(cut.down_mn @ cut.up_nm, torch.eye(student, dtype=torch.float64), rtol=0, atol=1e-9)
    np.testing.assert_allclose(cut.up_nm.numpy(), np.linalg.pinv(cut.down_mn.numpy()), atol=1e-8)
    ramp = np.interp(np.linspace(0, teacher - 1, student), np.arange(teacher), np.arange(teacher) ** 2.0)
    squares = torch.arange(teacher, dtype=torch.float64) ** 2
    np.testing.assert_allclose(cut.written(squares).numpy(), ramp, atol=1e-8)


def test_interpolation_to_the_same_width_changes_nothing() -> None:
    assert torch.equal(interpolation(7, 7).down_mn, torch.eye(7, dtype=torch.float64))


@given(numbers=st.integers(2, 20), data=st.data())
def test_principal_directions_keep_as_much_as_any_can(numbers: int, data: st.DataObject) -> None:
    kept = data.draw(st.integers(1, numbers - 1))
    rows = np.random.default_rng(data.draw(st.integers(0, 99))).normal(size=(30, numbers))
    cut = principal(torch.from_numpy(rows.T @ rows), kept)
    torch.testing.assert_close(cut.down_mn @ cut.up_nm, torch.eye(kept, dtype=torch.float64), rtol=0, atol=1e-9)
    lost = rows - rows @ cut.up_nm.numpy() @ cut.down_mn.numpy()
    singular = scipy.linalg.svdvals(rows)
    assert (lost**2).sum() == pytest.approx((singular[kept:] ** 2).sum(), rel=1e-8, abs=1e-9)


def test_a_selection_reads_and_writes_the_same_places() -> None:
    matrix = torch.arange(12.0).view(3, 4)
    cut = Selection(torch.tensor([0, 2]))
    assert torch.equal(cut.written(matrix), matrix[[0, 2]])
    assert torch.equal(cut.read(matrix), matrix[:, [0, 2]])
    assert first(2).indices_m.tolist() == [0, 1]
    assert largest(torch.tensor([3.0, 5.0, 3.0, 1.0]), 2).indices_m.tolist() == [0, 1]


def test_blocks_are_cut_whole() -> None:
    assert each_times(Selection(torch.tensor([2, 0])), 3).indices_m.tolist() == [6, 7, 8, 0, 1, 2]  # type: ignore[union-attr]
    cut = each_times(interpolation(3, 2), 2)
    assert isinstance(cut, Projection)
    blocks = torch.arange(6, dtype=torch.float64).view(3, 2)
    assert torch.equal(cut.written(blocks.flatten()).view(2, 2), blocks[[0, 2]])


@given(groups=st.integers(1, 5), group=st.integers(1, 4), data=st.data())
def test_heads_stay_in_their_groups_and_the_best_groups_stay(groups: int, group: int, data: st.DataObject) -> None:
    kept_groups, kept = data.draw(st.integers(1, groups)), data.draw(st.integers(1, group))
    scores = np.random.default_rng(data.draw(st.integers(0, 99))).permutation(groups * group).astype(float)
    before, after = Widths(8, groups * group, groups, 8), Widths(8, kept_groups * kept, kept_groups, 8)
    kv_heads, heads = chosen_heads(torch.from_numpy(scores), before, after)
    worth = {g: sum(sorted(scores[g * group : (g + 1) * group])[-kept:]) for g in range(groups)}
    assert sum(worth[g] for g in kv_heads.indices_m.tolist()) == sum(sorted(worth.values())[-kept_groups:])
    expected = [
        head
        for g in kv_heads.indices_m.tolist()
        for head in sorted(sorted(range(g * group, (g + 1) * group), key=lambda h: -scores[h])[:kept])
    ]
    assert heads.indices_m.tolist() == expected
