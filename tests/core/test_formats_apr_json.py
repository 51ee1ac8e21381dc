"""APR as JSON: every value to the bit, against numpy and ml_dtypes; and files that someone broke."""

import json
import random
import struct
import time
import tracemalloc
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats import apr_json as reader
from entrenar_core.formats.apr_json import read
from entrenar_core.formats.apr_json_writer import WRITES, write
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.sniffing import sniff
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header
from entrenar_core.formats.writing import Outgoing

REQUIRED: dict[str, Any] = {
    "model_type": "", "license": None, "data_source": None, "data_license": None, "total_size": 4, "param_count": 1,
}  # fmt: skip
NUMPY = {
    "F64": numpy.float64, "F32": numpy.float32, "F16": numpy.float16, "BF16": ml_dtypes.bfloat16,
    "I64": numpy.int64, "I32": numpy.int32, "I16": numpy.int16, "I8": numpy.int8,
    "U64": numpy.uint64, "U32": numpy.uint32, "U16": numpy.uint16, "U8": numpy.uint8, "BOOL": numpy.bool_,
}  # fmt: skip


def outgoing(name: str, data: bytes, shape: tuple[int, ...], dtype: str = "F32", cut: int = 3) -> Outgoing:
    """A tensor whose bytes come in pieces that cut values."""
    return Outgoing(name, DTYPES[dtype], shape, lambda: [memoryview(data[:cut]), b"", data[cut:]])


def read_text(text: str | bytes, folder: Path) -> Header:
    path = folder / "model.apr.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    with FileSource(path) as source:
        return read(source)


def with_tensor(shape: Any, dtype: Any, data: Any) -> str:
    """A file with one tensor, its data given as JSON text."""
    entry = f'{{"shape":{json.dumps(shape)},"dtype":{json.dumps(dtype)},"data":{data}}}'
    return f'{{"version":"1.0","metadata":{json.dumps(REQUIRED)},"tensors":{{"w":{entry}}}}}'


def test_a_file_says_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "a.apr.json"
    weights = struct.pack("<4f", 0.5, -0.0, 0.1, float("nan"))
    write(
        path,
        [outgoing("naïve", weights, (2, 2)), outgoing("n", struct.pack("<q", -(2**63)), (), "I64")],
        {"model_type": "llama"},
    )
    text = path.read_text("utf-8")
    assert list(json.loads(text)) == ["version", "metadata", "tensors"]
    assert text.splitlines()[2:] == [
        '"tensors":{',
        r'"na\u00efve":{"shape":[2,2],"dtype":"f32","data":[0.5,-0.0,0.10000000149011612,"NaN"]},',
        '"n":{"shape":[],"dtype":"i64","data":[-9223372036854775808]}',
        "}}",
    ]
    assert json.loads(text)["metadata"] == REQUIRED | {"model_type": "llama", "total_size": 24, "param_count": 5}
    with FileSource(path) as source:
        assert sniff(source) is WeightFormat.APR_JSON
        header = read(source)
    assert header.inline == {"naïve": weights, "n": struct.pack("<q", -(2**63))}
    assert [(t.name, t.dtype.name, t.shape, t.offset, t.inline) for t in header.tensors] == [
        ("naïve", "F32", (2, 2), 0, True),
        ("n", "I64", (), 0, True),
    ]
    assert header.oddities == ()
    assert header.header_bytes == path.stat().st_size


@pytest.mark.parametrize("dtype", WRITES)
@given(data=st.binary(max_size=400), seed=st.integers(0, 99))
def test_every_bit_survives(dtype: str, data: bytes, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    size = DTYPES[dtype].block_bytes
    data = bytes(byte & 1 for byte in data) if dtype == "BOOL" else data[: len(data) // size * size]
    shape, path = (len(data) // size,), tmp_path_factory.getbasetemp() / "bits.apr.json"
    write(path, [outgoing("w", data, shape, dtype, cut=seed)], {})
    with FileSource(path) as source:
        assert read(source).inline["w"] == data
    values = json.loads(path.read_text(), parse_constant=pytest.fail)["tensors"]["w"]["data"]
    expected = numpy.frombuffer(data, NUMPY[dtype])
    for told, value in zip(values, expected.tolist(), strict=True):  # an independent reading of the same bits
        if isinstance(told, str):
            assert numpy.isnan(value) if told.startswith("NaN") else float(told) == value
        else:
            assert (told, type(told)) == (value, type(value))


FLOATS = st.floats(width=64, allow_nan=False, allow_infinity=False, min_value=-3e38, max_value=3e38)


@given(values=st.lists(FLOATS, max_size=20))
def test_a_number_becomes_the_nearest_one(values: list[float], tmp_path_factory: pytest.TempPathFactory) -> None:
    for dtype, limit in (("F64", 1e308), ("F32", 3e38), ("F16", 65504.0), ("BF16", 3e38)):
        held = [value for value in values if abs(value) <= limit]
        text = with_tensor([len(held)], dtype.lower(), json.dumps(held))
        found = read_text(text, tmp_path_factory.getbasetemp()).inline["w"]
        single = numpy.array(held, numpy.float32) if dtype == "BF16" else numpy.array(held)
        assert found == single.astype(NUMPY[dtype]).tobytes()


def test_whole_numbers_are_floats_too(tmp_path: Path) -> None:
    found = read_text(with_tensor([3], "f16", "[1, -2, 1e0]"), tmp_path)
    assert numpy.frombuffer(found.inline["w"], numpy.float16).tolist() == [1.0, -2.0, 1.0]


@pytest.mark.parametrize(
    ("dtype", "text", "bits"),
    [
        ("f32", "NaN", 0x7FC00000),
        ("f32", "NaN(0x7fa00001)", 0x7FA00001),
        ("f32", "NaN(0xffc00000)", 0xFFC00000),
        ("f16", "-Infinity", 0xFC00),
        ("bf16", "NaN", 0x7FC0),
        ("f64", "Infinity", 0x7FF0000000000000),
    ],
)
def test_texts_stand_for_what_is_no_number(dtype: str, text: str, bits: int, tmp_path: Path) -> None:
    found = read_text(with_tensor([1], dtype, json.dumps([text])), tmp_path).inline["w"]
    assert int.from_bytes(found, "little") == bits


HOSTILE: dict[str, tuple[str, str | bytes]] = {
    "nothing": ("not JSON", ""),
    "a list": ("`{` is missing", "[]"),
    "no UTF-8": ("not UTF-8", b'{"version":"\xff"}'),
    "a key that is a number": ("a key with a colon is missing at byte 1", '{1:2}'),
    "no colon": ("a key with a colon is missing at byte 1", '{"version"}'),
    "no comma": ("`,` is missing", '{"version":"1.0""tensors":{}}'),
    "something after": ("follows its end", '{"version":"1.0","tensors":{}} {}'),
    "version 2": ("version 2; 1.0 is read", '{"version":2,"tensors":{}}'),
    "no version": ("version None", '{"tensors":{}}'),
    "a part twice": ("version comes twice", '{"version":"1.0","version":"1.0","tensors":{}}'),
    "metadata that is a list": ("its metadata is no object", '{"version":"1.0","metadata":[]}'),
    "tensors that are a list": ("its tensors are no object", '{"version":"1.0","tensors":[]}'),
    "nesting": ("not JSON", '{"version":' + "[" * 100_000),
    "nested data": ("has a bracket among values", with_tensor([1], "f32", "[" * 100_000)),
    "a tensor twice": ("w comes twice", with_tensor([1], "u8", "[1]")[:-2] + ',"w":{}}}'),
    "a tensor that is a number": ("tensor w has no shape, dtype and data", '{"version":"1.0","tensors":{"w":1}}'),
    "a field twice": ("tensor w has a field that comes twice", with_tensor([1], "u8", '[1],"data":[1]')),
    "half a character": ("no Unicode text", '{"version":"1.0","tensors":{"\\ud800":{}}}'),
    "a dtype in capitals": ("tensor w has the unknown dtype F32", with_tensor([1], "F32", "[1]")),
    "a quantised dtype": ("tensor w has the unknown dtype q4_k", with_tensor([1], "q4_k", "[1]")),
    "a dtype that is a list": ("tensor w has the unknown dtype", with_tensor([1], [], "[1]")),
    "a negative size": ("shape of tensor w is no list of sizes", with_tensor([-1], "f32", "[1]")),
    "a huge size": ("shape of tensor w is no list of sizes", with_tensor([2**60, 0], "f32", "[]")),
    "a size that is true": ("shape of tensor w", with_tensor([True], "f32", "[1]")),
    "a shape that is a number": ("shape of tensor w", with_tensor(1, "f32", "[1]")),
    "a hundred dimensions": ("tensor w has 100 dimensions", with_tensor([1] * 100, "f32", "[1]")),
    "too few values": ("tensor w .* takes 4 values in one list, and has 3", with_tensor([2, 2], "f32", "[1,2,3]")),
    "rows": ("has a bracket among values, before byte", with_tensor([2, 2], "f32", "[[1,2],[3,4]]")),
    "a row among values": ("has a bracket among values, before byte", with_tensor([2], "f32", "[1,[2]]")),
    "data that is a text": ("the data of tensor w is no list", with_tensor([1], "f32", '"1"')),
    "null": ("tensor w of dtype f32 has null among", with_tensor([1], "f32", "[null]")),
    "true as a float": ("tensor w .* has true or false among", with_tensor([1], "f32", "[true]")),
    "true as a whole number": ("tensor w .* has true or false", with_tensor([1], "u8", "[true]")),
    "one as true": ("tensor w of dtype bool has a number", with_tensor([1], "bool", "[1]")),
    "a float as a whole number": ("tensor w of dtype i8 has a float", with_tensor([1], "i8", "[1.0]")),
    "a text as a whole number": ("tensor w of dtype i8 has a text", with_tensor([1], "i8", '["NaN"]')),
    "another text": ("has the text 'nan' among", with_tensor([1], "f32", '["nan"]')),
    "bits that are no NaN": ("the text 'NaN.0x3f800000.'", with_tensor([1], "f32", '["NaN(0x3f800000)"]')),
    "infinity as a NaN": ("the text", with_tensor([1], "f32", '["NaN(0x7f800000)"]')),
    "bits of a wider NaN": ("the text", with_tensor([1], "f16", '["NaN(0x7fc00001)"]')),
    "NaN as it is": ("NaN is no JSON", with_tensor([1], "f32", "[NaN]")),
    "256 as a byte": ("beyond what u8 holds", with_tensor([1], "u8", "[256]")),
    "-1 as a byte": ("beyond what u8 holds", with_tensor([1], "u8", "[-1]")),
    "2^63": ("beyond what i64 holds", with_tensor([1], "i64", "[9223372036854775808]")),
    "1e999": ("beyond what f64 holds", with_tensor([1], "f64", "[1e999]")),
    "1e39": ("beyond what f32 holds", with_tensor([1], "f32", "[1e39]")),
    "65520": ("beyond what f16 holds", with_tensor([1], "f16", "[65520]")),
    "3.4e38": ("beyond what bf16 holds", with_tensor([1], "bf16", "[3.4e38]")),
    "a number of 400 digits": ("beyond what f32 holds", with_tensor([1], "f32", f"[{10**400}]")),
    "a number of 5,000 digits": ("not JSON", with_tensor([1], "f32", f"[{'9' * 5000}]")),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_a_model_error_at_once(what: str, tmp_path: Path) -> None:
    complaint, text = HOSTILE[what]
    started = time.process_time()
    with pytest.raises(ModelError, match=rf"model\.apr\.json.*{complaint}") as refused:
        read_text(text, tmp_path)
    assert refused.value.hint
    assert time.process_time() - started < 10


def test_a_cut_file_is_a_model_error_and_a_changed_one_is_no_crash(tmp_path: Path) -> None:
    whole = with_tensor([2, 2], "f32", '[1.5, "NaN", -0.0, 1e-3]').encode()
    dice = random.Random(0)
    for length in range(len(whole)):
        with pytest.raises(ModelError):
            read_text(whole[:length], tmp_path)
        changed = bytearray(whole)
        changed[length] = dice.randrange(256)
        with suppress(ModelError):
            read_text(bytes(changed), tmp_path)


def test_a_file_of_more_than_a_gigabyte_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "large.apr.json").open("wb") as file:
        file.truncate(1_000_000_001)
    with (
        FileSource(tmp_path / "large.apr.json") as source,
        pytest.raises(ModelError, match="1,000,000,001 bytes, and JSON is read up to 1,000,000,000"),
    ):
        read(source)
    monkeypatch.setattr(reader, "_MAX_TENSORS", 0)
    with pytest.raises(ModelError, match="more than 0 tensors"):
        read_text(with_tensor([1], "u8", "[1]"), tmp_path)


ODD = {
    "it has the extra part format": '{"format":"apr","version":"1.0","metadata":{},"tensors":{}}',
    "it holds no tensors": '{ "version" : "1.0" ,\n "metadata" : {} , "tensors" : { } }',
    "its metadata has no license": '{"version":"1.0"}',
    "num_heads by another name, n_head": '{"version":"1.0","metadata":{"n_head":2}}',
    "a comes twice in its metadata": '{"version":"1.0","metadata":{"a":1,"a":1}}',
    "tensor w has the extra field min": with_tensor([1], "u8", '[1],"min":1'),
    "lead": with_tensor([1], "u8", "[1]").replace('"w"', '"../w"'),
}


@pytest.mark.parametrize("complaint", ODD)
def test_what_could_be_let_pass_is_an_oddity(complaint: str, tmp_path: Path) -> None:
    oddities = read_text(ODD[complaint], tmp_path).oddities
    assert [oddity for oddity in oddities if complaint in oddity], oddities


REFUSED: dict[str, tuple[str, Sequence[Outgoing]]] = {
    "a dtype that JSON lacks": ("w is stored as Q4_K, which", [outgoing("w", bytes(144), (256,), "Q4_K")]),
    "a name twice": ("two tensors are called w", [outgoing("w", bytes(4), (1,))] * 2),
    "a name that is no text": ("no Unicode text", [outgoing("\udfff", bytes(4), (1,))]),
    "nine dimensions": ("w has 9 dimensions", [outgoing("w", bytes(4), (1,) * 9)]),
    "fewer bytes": ("w has 8 bytes, where 12 are expected", [outgoing("w", bytes(8), (3,))]),
    "half a value": ("w ends in the middle of a value", [outgoing("w", bytes(6), (1,))]),
    "a boolean of 2": ("w has a boolean that is neither", [outgoing("w", b"\x01\x02", (2,), "BOOL")]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_held_is_not_written(what: str, tmp_path: Path) -> None:
    complaint, wanted = REFUSED[what]
    with pytest.raises(ModelError, match=complaint) as refused:
        write(tmp_path / "x.apr.json", wanted, {})
    assert refused.value.hint


def test_memory_does_not_grow_with_the_tensor(tmp_path: Path) -> None:
    block, blocks = bytes(300_000), 6

    def chunks() -> Iterator[bytes]:
        yield from (block for _ in range(blocks))

    tensor = Outgoing("w", DTYPES["F64"], (len(block) // 8 * blocks,), chunks)
    peaks = []
    for wanted in (outgoing("w", block, (len(block) // 8,), "F64"), tensor):
        tracemalloc.start()
        write(tmp_path / "w.apr.json", [wanted], {})
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0], "six times the values"


def test_the_values_of_one_tensor_at_a_time_are_in_memory(tmp_path: Path) -> None:
    def peak(lists: Iterable[int]) -> int:
        entries = ",".join(f'"{at}":{{"shape":[{n}],"dtype":"u8","data":{[200] * n}}}' for at, n in enumerate(lists))
        text = f'{{"version":"1.0","tensors":{{{entries}}}}}'
        tracemalloc.start()
        read_text(text, tmp_path)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    assert peak([10_000] * 20) < 0.7 * peak([200_000])


def test_values_of_a_large_file_are_read_when_they_are_looked_at(tmp_path: Path) -> None:
    weights = numpy.random.default_rng(0).normal(size=600_000).astype("<f4")
    path = tmp_path / "large.apr.json"
    write(path, [outgoing("w", weights.tobytes(), (600, 1000)), outgoing("bias", bytes(4), (1,))], {})
    assert path.stat().st_size > reader.SMALL_BYTES
    with FileSource(path) as source:
        tracemalloc.start()
        header = read(source)
        assert tracemalloc.get_traced_memory()[1] < 6_000_000
        tracemalloc.stop()
        assert {tensor.name: (tensor.shape, tensor.size_bytes) for tensor in header.tensors} == {
            "w": ((600, 1000), 2_400_000), "bias": ((1,), 4)
        }  # fmt: skip
        assert len(header.inline) == 2
        assert "w" in header.inline
        assert "other" not in header.inline
        assert dict(header.inline) == {"w": weights.tobytes(), "bias": bytes(4)}


@pytest.mark.parametrize(
    ("value", "complaint"),
    [("nul", "is not JSON"), ("1 2", "is not JSON"), ("", "is not JSON"), ("true", "true or false among"),
     ("1e99", "beyond what f32 holds"), ("9" * 5000, "thousands of digits"), (" " * 3_000_000, "a value of more than")],
)  # fmt: skip
def test_a_value_of_a_large_file_that_is_wrong_is_told_when_it_is_looked_at(
    value: str, complaint: str, tmp_path: Path
) -> None:
    path = tmp_path / "large.apr.json"
    path.write_text(with_tensor([2_500_001], "f32", f"[{'0,' * 2_000_000}{value}{',0' * 500_000}]"))
    with FileSource(path) as source:
        header = read(source)
        with pytest.raises(ModelError, match=rf"large\.apr\.json is not a sound APR file in JSON: .*{complaint}"):
            header.inline["w"]
