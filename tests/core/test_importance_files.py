"""Files of importance matrices: both of llama.cpp's forms as their descriptions have them, and what is written for it.

A GGUF is written by the gguf package, and what we write is read by it; the older form is put together here,
number by number.
"""

import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError, NotFoundError, OutputError
from entrenar_core.importance import ImportanceMatrix, Inputs, read_importance, write_importance
from mutations import EDITS, Edit, Mutator

Entry = tuple[str, Sequence[Sequence[float]], Sequence[float]]
ENTRIES: tuple[Entry, ...] = (
    ("blk.0.attn_q.weight", [[2.0, 3.0, 0.1, 7.0]], [2.75]),  # counts are whole numbers
    ("blk.0.ffn_down_exps.weight", [[2.0, 6.0], [0.0, 0.0], [1.0, 5.0]], [2, 0, 4]),
)


def write_gguf(path: Path, entries: Sequence[Entry] = ENTRIES, *, kind: str = "imatrix", counts: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "")
    writer.kv_data[0].clear()  # no architecture: there is none
    writer.add_type(kind)
    writer.add_array("imatrix.datasets", ["first.txt", "second.txt"])
    writer.add_uint32("imatrix.chunk_count", 9)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, sums, seen in entries:
        writer.add_tensor(f"{name}.in_sum2", np.asarray(sums, np.float32))
        if counts:
            writer.add_tensor(f"{name}.counts", np.asarray(seen, np.float32)[:, None])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def older(*entries: tuple[str, int, Sequence[float]], rest: bytes = b"") -> bytes:
    """How many; of each name, chunks and values with their numbers before them."""
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name.encode())) + name.encode()
        data += struct.pack("<ii", calls, len(values)) + struct.pack(f"<{len(values)}f", *values)
    return data + rest


def read_bytes(folder: Path, data: bytes) -> ImportanceMatrix:
    path = folder / "imatrix"
    path.write_bytes(data)
    return read_importance(path)


def test_a_gguf_gives_sums_over_counts_and_ones_for_an_expert_without_tokens(tmp_path: Path) -> None:
    matrix = read_importance(write_gguf(tmp_path / "imatrix.gguf"))
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (9, 512, ("first.txt", "second.txt"))
    means = matrix.means("blk.0.attn_q.weight", 4)
    assert means is not None
    assert means.dtype == np.float32
    assert means.tolist() == [[float(np.float32(x) / np.float32(3)) for x in (2.0, 3.0, 0.1, 7.0)]]
    experts = matrix.means("blk.0.ffn_down_exps.weight", 2, 3)
    assert experts is not None
    assert experts.tolist() == [[1.0, 3.0], [1.0, 1.0], [0.25, 1.25]]
    assert matrix.means("output.weight", 4) is None


def test_the_older_form_gives_values_over_chunks(tmp_path: Path) -> None:
    end = struct.pack("<ii", 41, 8) + b"wiki.txt"
    matrix = read_bytes(
        tmp_path, older(("blk.0.attn_q.weight", 7, [3.0, 0.5]), ("blk.1.é", 0, [1.0, 2.0, 3.0, 4.0]), rest=end)
    )
    assert (matrix.chunk_count, matrix.chunk_size, matrix.datasets) == (41, 0, ("wiki.txt",))
    means = matrix.means("blk.0.attn_q.weight", 2)
    assert means is not None
    assert means.tolist() == [[float(np.float32(x) / np.float32(7)) for x in (3.0, 0.5)]]
    experts = matrix.means("blk.1.é", 2, 2)
    assert experts is not None
    assert experts.tolist() == [[1.0, 2.0], [3.0, 4.0]], "of no chunk, values are what they are"


@pytest.mark.parametrize(
    ("rest", "chunks", "datasets"),
    [(b"", 0, ()), (struct.pack("<i", 5), 5, ()), (struct.pack("<ii", 5, 0), 5, ())],
    ids=["oldest", "with chunks", "unnamed text"],
)
def test_the_older_form_may_end_early(tmp_path: Path, rest: bytes, chunks: int, datasets: tuple[str, ...]) -> None:
    matrix = read_bytes(tmp_path, older(("a", 1, [1.0]), rest=rest))
    assert (matrix.chunk_count, matrix.datasets) == (chunks, datasets)


def test_a_tensor_of_other_sizes_is_told_by_its_name_and_an_embedding_goes_without(tmp_path: Path) -> None:
    matrix = read_bytes(tmp_path, older(("blk.0.attn_q.weight", 1, [1.0, 2.0]), ("token_embd.weight", 1, [1.0])))
    assert matrix.means("token_embd.weight", 4) is None
    with pytest.raises(ModelError, match=r"2 values for tensor blk\.0\.attn_q\.weight, whose inputs are 3"):
        matrix.means("blk.0.attn_q.weight", 3)
    with pytest.raises(ModelError, match=r"whose inputs are 2 x 2"):
        matrix.means("blk.0.attn_q.weight", 2, 2)


@given(data=st.data())
def test_what_is_written_is_read_again_to_the_bit_by_us_and_by_the_gguf_package(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 40)), min_size=1, max_size=4))
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs = {
        f"blk.{number}.ffn_up.weight": Inputs(
            random.exponential(size=size).astype(np.float32), random.integers(0, 1 << 20, size[0])
        )
        for number, size in enumerate(sizes)
    }
    matrix = ImportanceMatrix(inputs, 77, 256, ("ein Text.txt",))
    path = tmp_path_factory.mktemp("importance") / "imatrix.gguf"
    write_importance(path, matrix)
    again = read_importance(path)
    assert (again.chunk_count, again.chunk_size, again.datasets) == (77, 256, ("ein Text.txt",))
    for name, known in inputs.items():
        np.testing.assert_array_equal(again.inputs[name].sums_MI, known.sums_MI)
        np.testing.assert_array_equal(again.inputs[name].counts_M, known.counts_M)
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    stored = {tensor.name: tensor for tensor in reader.tensors}
    assert len(stored) == 2 * len(inputs)
    for name, known in inputs.items():
        np.testing.assert_array_equal(stored[f"{name}.in_sum2"].data, known.sums_MI)
        np.testing.assert_array_equal(stored[f"{name}.counts"].data, known.counts_M[:, None])


def test_nothing_is_overwritten_unless_asked_for(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "imatrix.gguf")
    before, matrix = path.read_bytes(), read_importance(path)
    with pytest.raises(OutputError, match="is there already"):
        write_importance(path, matrix)
    assert path.read_bytes() == before
    write_importance(path, matrix, force=True)
    assert read_importance(path).inputs.keys() == matrix.inputs.keys()
    assert [file.name for file in tmp_path.iterdir()] == ["imatrix.gguf"], "something is left beside it"


NAME = "blk.0.attn_q.weight"


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ([(NAME, [[1.0, float("nan")]], [1])], f"a sum of {NAME} is nan"),
        ([(NAME, [[1.0, -0.5]], [1])], f"a sum of {NAME} is -0.5"),
        ([(NAME, [[1.0, float("inf")]], [1])], f"a sum of {NAME} is inf"),
        ([(NAME, [[1.0, 2.0]], [-1])], f"a count of {NAME} is -1"),
        ([(NAME, [[1.0, 2.0]], [1e30])], f"a count of {NAME} is 1e+30"),
        ([(NAME, [[1.0, 2.0, 3.0]], [1, 1])], f"{NAME} has 3 sums for 2 counts"),
        ([(NAME, [[1.0]], [1, 1])], f"{NAME} has 1 sums for 2 counts"),
    ],
)  # fmt: skip
def test_a_gguf_with_values_that_cannot_be_is_refused(tmp_path: Path, entries: Sequence[Entry], says: str) -> None:
    with pytest.raises(ModelError) as caught:
        read_importance(write_gguf(tmp_path / "imatrix.gguf", entries))
    assert caught.value.message.endswith(says)


def test_a_gguf_that_is_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'model', not 'imatrix'"):
        read_importance(write_gguf(tmp_path / "model.gguf", kind="model"))
    with pytest.raises(ModelError, match="no sums of any tensor"):
        read_importance(write_gguf(tmp_path / "empty.gguf", ()))
    with pytest.raises(ModelError, match=f"{NAME} has sums and no counts"):
        read_importance(write_gguf(tmp_path / "half.gguf", counts=False))
    with pytest.raises(NotFoundError):
        read_importance(tmp_path / "missing.gguf")


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "neither a GGUF nor"),
        (b"a text that is no matrix", "neither a GGUF nor"),
        (struct.pack("<i", 0) + bytes(99), "neither a GGUF nor"),
        (struct.pack("<i", 1 << 30) + bytes(99), "neither a GGUF nor"),
        (struct.pack("<ii", 1, 1 << 30) + bytes(99), "the name of entry 1 has 1,073,741,824 bytes"),
        (struct.pack("<ii", 1, -1) + bytes(99), "the name of entry 1 has -1 bytes"),
        (struct.pack("<ii", 1, 1) + b"\xff" + bytes(99), "the name of entry 1 is not UTF-8"),
        (older(("", 1, [1.0])) + bytes(9), "entry 1 has no name"),
        (older(("a", 1, [1.0]), ("a", 1, [1.0])), "entry 2 has the name a of another"),
        (older(("a", 1, []), rest=bytes(9)), "a has 0 values"),
        (older(("a", -2, [1.0])), "a has 1 values of -2 chunks"),
        (older(("a", 1, [float("nan")])), "a value of a is nan"),
        (older(("a", 1, [1.0, -1.0])), "a value of a is -1"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30) + bytes(99), "a has 1,073,741,824 values"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 20) + bytes(99), "4,194,205 of them are missing"),
    ],
)  # fmt: skip
def test_the_older_form_with_lengths_or_values_that_cannot_be_is_refused(
    tmp_path: Path, data: bytes, says: str
) -> None:
    with pytest.raises(ModelError) as caught:
        read_bytes(tmp_path, data)
    assert says in caught.value.message


OLDER = older((NAME, 3, [1.0, 2.0]), ("blk.0.ffn_up.weight", 3, [4.0]), rest=struct.pack("<ii", 3, 1) + b"x")


@given(edits=EDITS, form=st.sampled_from(["gguf", "older"]), cut=st.integers(0, 400))
def test_a_broken_file_is_read_soundly_or_refused(
    tmp_path_factory: pytest.TempPathFactory, edits: list[Edit], form: str, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("importance")
    sound = write_gguf(folder / "sound").read_bytes() if form == "gguf" else OLDER
    marks = (8, 16, 24) if form == "gguf" else (0, 4, 27, 31)
    try:
        matrix = read_bytes(folder, Mutator(False, marks, (OLDER,)).mutated(sound, edits)[: len(sound) - cut // 8])
    except ModelError:
        return
    for name, inputs in matrix.inputs.items():
        means = matrix.means(name, inputs.sums_MI.shape[1], len(inputs.sums_MI))
        assert means is not None
        assert np.isfinite(means).all()
        assert (means >= 0).all()
