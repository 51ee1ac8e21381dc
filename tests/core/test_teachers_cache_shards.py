"""A shard gives back what was written, and says when it is not that any more."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import DataError, OutputError
from entrenar_core.teachers.cache.keys import row_key
from entrenar_core.teachers.cache.shards import Arrays, Shard, write_shard
from entrenar_core.teachers.cache.store import Store


def row(positions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Of two arrays over the positions and one over anything else."""
    drawn = np.random.default_rng((seed, positions))
    return {
        "hidden": drawn.standard_normal((positions, 3)).astype(np.float32),
        "tokens": drawn.integers(0, 60_000, (positions, 2), np.uint16),
        "ragged": drawn.integers(0, 255, 2 * positions + seed % 3, np.uint8),
    }


def rows(count: int, first: int = 0) -> tuple[list[bytes], list[Arrays]]:
    keys = [row_key([number, 7], [True, False]) for number in range(first, first + count)]
    return keys, [row(number % 5, number) for number in range(first, first + count)]


def same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values)


def test_rows_come_back_as_they_were(tmp_path: Path) -> None:
    keys, written = rows(13)
    write_shard(tmp_path / "a.safetensors", keys, written, {"made": "here"})
    shard = Shard(tmp_path / "a.safetensors")
    assert (len(shard), shard.about, shard.names) == (13, {"made": "here"}, ("hidden", "ragged", "tokens"))
    for index, expected in enumerate(written):
        same(shard.row(index), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_same_rows_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_shard(tmp_path / name, *rows(9), {"made": "here"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(place=st.integers(min_value=0), bit=st.integers(0, 7))
def test_a_changed_bit_is_found(place: int, bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Wherever it is: in the header, in what says where rows are, or in a row."""
    file = tmp_path_factory.mktemp("changed") / "a.safetensors"
    keys, written = rows(6)
    write_shard(file, keys, written, {"made": "here"})
    content = bytearray(file.read_bytes())
    content[place % len(content)] ^= 1 << bit
    file.write_bytes(content)
    try:
        shard = Shard(file)
        found = [shard.row(index) for index in range(6)]
    except DataError:
        return
    # what is left is a word about the shard, or white space
    assert shard.about != {"made": "here"} or json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for values, expected in zip(found, written, strict=True):
        same(values, expected)


@pytest.mark.parametrize("kept", [0, 5, 100, -1])
def test_half_a_file_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "a.safetensors"
    write_shard(file, *rows(6), {})
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match="is damaged") as caught:
        Shard(file)
    assert caught.value.hint is not None
    assert "build the cache again" in caught.value.hint


def test_what_is_not_there_or_no_shard_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    with pytest.raises(DataError, match="is missing"):
        Shard(tmp_path / "none.safetensors")
    save_file({"weight": np.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="is no shard of a cache"):
        Shard(tmp_path / "model.safetensors")


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").mkdir()
    with pytest.raises(OutputError):
        write_shard(tmp_path / "a.safetensors", *rows(3), {})
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


# ── Several shards ──


def test_rows_are_found_in_their_shards(tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(3)]
    for number, file in enumerate(files):
        write_shard(file, *rows(10, first=10 * number), {})
    store = Store(files)
    assert len(store) == 30
    keys, written = rows(30)
    places = [store.place(key) for key in keys]
    assert sorted(place for place in places if place is not None) == list(range(30))
    for place, expected in zip(places, written, strict=True):
        assert place is not None
        same(store.read(place), expected)
    assert store.place(row_key([30, 7], [True, False])) is None
    gathered = store.gathered([place for place in (places[29], places[3], places[11]) if place is not None])
    same(gathered, {name: np.concatenate([written[i][name] for i in (29, 3, 11)]) for name in written[0]})


def test_keys_that_share_their_first_half_are_told_apart(tmp_path: Path) -> None:
    keys = [bytes(8) + number.to_bytes(8, "little") for number in range(5)]
    write_shard(tmp_path / "a", keys, rows(5)[1], {})
    store = Store([tmp_path / "a"])
    assert [store.place(key) for key in keys] == [0, 1, 2, 3, 4]
    assert store.place(bytes(8) + b"\xff" * 8) is None


def test_a_store_of_nothing_has_nothing() -> None:
    assert len(Store([])) == 0
    assert Store([]).place(bytes(16)) is None


# ── Keys ──


@given(
    first=st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), max_size=9),
    second=st.lists(st.tuples(st.integers(0, 200_000), st.booleans()), max_size=9),
)
def test_other_rows_have_other_keys(first: list[tuple[int, bool]], second: list[tuple[int, bool]]) -> None:
    keys = [row_key([token for token, _ in each], [counts for _, counts in each]) for each in (first, second)]
    assert (keys[0] == keys[1]) == (first == second)
    assert {len(key) for key in keys} == {16}
