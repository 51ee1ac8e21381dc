"""APR, version 2: its bytes against a parser of its own here, and files that someone broke."""

import hashlib
import json
import random
import struct
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.apr import check_sum, read
from entrenar_core.formats.apr_writer import WRITES, write
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.sniffing import sniff
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header
from entrenar_core.formats.writing import Outgoing

GOLDEN: dict[str, Any] = {
    "model_type": "linear_regression", "name": "golden-v2", "license": None, "data_source": None, "data_license": None,
    "version": "0.0.0-golden", "created_at": "1700000000", "total_size": 0, "param_count": 8,
}  # fmt: skip
CODES = {"F32": 0, "F16": 1, "BF16": 30, "Q4_K": 12, "Q6_K": 14, "APR_Q4": 128, "APR_Q8": 129}
# A tensor as it is put into a file by hand: name, number of the dtype, shape, place in the data, size.
Row = tuple[bytes, int, tuple[int, ...], int, int]
WEIGHTS: tuple[Row, ...] = ((b"bias", 0, (1,), 0, 4), (b"weights", 0, (2, 4), 64, 32))


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def outgoing(name: str, data: bytes, shape: tuple[int, ...], dtype: str = "F32") -> Outgoing:
    return Outgoing(name, DTYPES[dtype], shape, lambda: [data[:3], memoryview(data)[3:]])


def entry(row: Row) -> bytes:
    name, code, shape, offset, size = row
    return struct.pack(f"<H{len(name)}sBB{len(shape) + 2}Q", len(name), name, code, len(shape), *shape, offset, size)


def built(
    rows: Sequence[Row] = WEIGHTS,
    metadata: bytes = json.dumps(GOLDEN).encode(),
    *,
    data: bytes = bytes(128),
    index: bytes | None = None,
    reserved: bytes = bytes(20),
    **fields: int,
) -> bytes:
    """A file put together by hand, its checksums right, which may say what no writer would."""
    index = b"".join(map(entry, rows)) if index is None else index
    said = {"major": 2, "minor": 0, "flags": 0x400, "count": len(rows), "at": 64, "size": len(metadata)}
    said["index_at"] = 64 + len(padded(metadata))
    said["data_at"] = said["index_at"] + len(padded(index))
    said |= fields
    front = struct.pack("<4s2BHIQIQQ", b"APR\0", *said.values())
    head = front + struct.pack("<I", zlib.crc32(front + reserved)) + reserved
    content = head + padded(metadata) + padded(index) + data
    return content + struct.pack("<I", zlib.crc32(content))


def read_bytes(data: bytes, folder: Path) -> Header:
    path = folder / "model.apr"
    path.write_bytes(data)
    with FileSource(path) as source:
        return read(source)


def test_the_smallest_file_is_the_one_of_the_formats_own_program(tmp_path: Path) -> None:
    path = tmp_path / "golden.apr"
    weights = struct.pack("<8f", 1.0, 2.0, 0.5, -0.5, 4.0, -2.0, 0.25, 8.0)
    write(path, [outgoing("weights", weights, (8,)), outgoing("bias", struct.pack("<f", 0.125), (1,))], GOLDEN)
    assert path.stat().st_size == 516
    assert set(WRITES) == set(CODES)
    written = path.read_bytes()  # the sums are of what AprV2Writer of aprender wrote of the same
    assert struct.unpack("<I", written[40:44]) == (0x3BC08C02,)
    assert struct.unpack("<I", written[-4:]) == (0x550F3F35,)
    assert hashlib.sha256(written).hexdigest() == "047642c8a09f5807466374928c28e370855ddb96f527d4445ee359a591594c2c"


def parsed(data: bytes) -> tuple[int, Any, dict[str, tuple[int, tuple[int, ...], bytes]]]:
    """Flags, metadata and tensors of a file, by nothing but its description; and that all of it adds up."""
    magic, major, minor, flags, count, at, size, index_at, data_at, head_sum = struct.unpack("<4s2BHIQIQQI", data[:44])
    assert (magic, major, minor, at) == (b"APR\0", 2, 0, 64)
    assert head_sum == zlib.crc32(data[:40] + data[44:64])
    assert struct.unpack("<I", data[-4:]) == (zlib.crc32(data[:-4]),)
    assert not any(data[44:64])
    assert index_at == 64 + len(padded(data[64 : 64 + size]))
    assert not any(data[64 + size : index_at])
    place, rest, found = index_at, data_at, {}
    for _ in range(count):
        (length,) = struct.unpack_from("<H", data, place)
        name = data[place + 2 : place + 2 + length].decode()
        code, ndim = data[place + 2 + length], data[place + 3 + length]
        *shape, offset, bytes_ = struct.unpack_from(f"<{ndim + 2}Q", data, place + 4 + length)
        assert data_at + offset == rest, "each tensor follows the one before"
        found[name] = (code, tuple(shape), data[rest : rest + bytes_])
        rest += len(padded(bytes(bytes_)))
        assert not any(data[data_at + offset + bytes_ : rest])
        place += 20 + length + 8 * ndim
    assert data_at % 64 == 0
    assert 0 <= data_at - place < 64
    assert not any(data[place:data_at])
    assert rest == len(data) - 4
    assert list(found) == sorted(found, key=str.encode)
    return flags, json.loads(data[64 : 64 + size]), found


TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
SHAPES: dict[str, list[tuple[int, ...]]] = {"Q4_K": [(256,), (3, 512)], "Q6_K": [(2, 256)], "APR_Q4": [(8, 8), (96,)]}


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for name in draw(st.lists(TEXT, unique=True, max_size=6)):
        dtype = draw(st.sampled_from(list(CODES)))
        shape = draw(st.sampled_from(SHAPES.get(dtype, [(), (5,), (0, 3), (2, 3, 4), (1,) * 8, (70,)])))
        size = DTYPES[dtype].size_bytes(shape)
        assert size is not None
        found[name] = (dtype, shape, draw(st.randoms(use_true_random=False)).randbytes(size))
    return found


@given(wanted=tensors(), metadata=st.dictionaries(TEXT, TEXT, max_size=4))
def test_what_is_written_is_what_the_description_says_and_what_is_read(
    wanted: dict[str, tuple[str, tuple[int, ...], bytes]],
    metadata: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.apr"
    told = {f"x-{key}": value for key, value in metadata.items()}
    write(path, [outgoing(name, data, shape, dtype) for name, (dtype, shape, data) in wanted.items()], told)
    flags, said, found = parsed(path.read_bytes())
    assert found == {name: (CODES[dtype], shape, data) for name, (dtype, shape, data) in wanted.items()}
    assert said | told == said
    assert flags == 0x400 | (0x20 if any("Q" in dtype for dtype, _, _ in wanted.values()) else 0)
    with FileSource(path) as source:
        header = read(source)
        assert check_sum(source)
        assert sniff(source) is WeightFormat.APR
        again = {t.name: (t.dtype.name, t.shape, source.read(t.offset, t.size_bytes)) for t in header.tensors}
    assert again == wanted
    assert header.metadata == said
    assert header.details.flags == flags
    assert header.details.checksum == zlib.crc32(path.read_bytes()[:-4])


def test_metadata_is_completed_and_the_order_of_tensors_does_not_matter(tmp_path: Path) -> None:
    pair = [outgoing("b", bytes(8), (2,)), outgoing("é", bytes(20), (2, 5), "F16")]
    told = {"tokenizer.vocabulary": ["a"], "model_type": "llama"}
    write(tmp_path / "a.apr", pair, told)
    write(tmp_path / "b.apr", pair[::-1], told)
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()
    flags, said, _ = parsed((tmp_path / "a.apr").read_bytes())
    assert flags == 0x600, "it has a vocabulary"
    always = {"license": None, "data_source": None, "data_license": None, "total_size": 28, "param_count": 12}
    assert said == told | always


REFUSED: dict[str, tuple[str, Sequence[Outgoing], Mapping[str, Any]]] = {
    "a dtype that APR lacks": ("w is stored as F64, which APR lacks", [outgoing("w", bytes(8), (1,), "F64")], {}),
    "a long name": ("more than 256 bytes", [outgoing("é" * 129, bytes(4), (1,))], {}),
    "a name twice": ("two tensors are called w", [outgoing("w", bytes(4), (1,))] * 2, {}),
    "a name that is no text": ("no Unicode text", [outgoing("\ud800", bytes(4), (1,))], {}),
    "nine dimensions": ("w has 9 dimensions", [outgoing("w", bytes(4), (1,) * 9)], {}),
    "fewer bytes": ("w has 8 bytes, where 12 are expected", [outgoing("w", bytes(8), (3,))], {}),
    "two spellings": ("num_layers under 2 names", [], {"num_layers": 2, "num_hidden_layers": None}),
    "one foreign spelling": ("another name, n_embd", [], {"n_embd": 8}),
    "a size that is text": ("hidden_size in its metadata is no count", [], {"hidden_size": "8"}),
    "NaN": ("written as JSON", [], {"loss": float("nan")}),
    "an object": ("written as JSON", [], {"path": Path()}),
    "half a character": ("written as JSON", [], {"text": "\ud800"}),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_apr_cannot_hold_is_not_written(what: str, tmp_path: Path) -> None:
    complaint, wanted, metadata = REFUSED[what]
    with pytest.raises(ModelError, match=complaint) as refused:
        write(tmp_path / "x.apr", wanted, metadata)
    assert refused.value.hint


def test_a_file_built_by_hand_is_read(tmp_path: Path) -> None:
    rows = ((b"a", 129, (3,), 128, 7), (b"b", 1, (), 64, 2), (b"c", 128, (5, 7), 0, 36), (b"d", 30, (0, 9), 192, 0))
    header = read_bytes(built(rows, data=bytes(192), flags=0x6A0), tmp_path)
    assert header.oddities == (), "data may lie in another order, and the last block of APR_Q4 be cut"
    found = [(t.name, t.dtype.name, t.shape, t.offset - header.header_bytes, t.size_bytes) for t in header.tensors]
    assert found == [
        ("a", "APR_Q8", (3,), 128, 7), ("b", "F16", (), 64, 2),
        ("c", "APR_Q4", (5, 7), 0, 36), ("d", "BF16", (0, 9), 192, 0),
    ]  # fmt: skip
    assert header.metadata == GOLDEN
    assert header.format is WeightFormat.APR


SHORT = json.dumps(GOLDEN | {"name": "x" * 80}).encode()
HOSTILE: dict[str, tuple[str, bytes]] = {
    "another magic": ("is not an APR file", b"APRX" + built()[4:]),
    "version 3": ("version 3.0; 2.0 is read", built(major=3)),
    "version 2.1": ("version 2.1", built(minor=1)),
    "a header that was changed": ("checksum of its header", built()[:8] + b"\x01" + built()[9:]),
    "no layout": ("row by row", built(flags=0)),
    "columns": ("column by column", built(flags=0xC00)),
    "LZ4": ("compressed by LZ4", built(flags=0x401)),
    "zstd": ("compressed by zstd", built(flags=0x402)),
    "encryption": ("encrypted", built(flags=0x404)),
    "metadata inside the header": ("metadata starts at byte 0", built(at=0)),
    "an index inside the metadata": ("index starts at byte 128, before", built(metadata=SHORT, index_at=128)),
    "an index between multiples": ("no multiple of 64", built(index_at=321)),
    "data before the index": ("data starts at byte 64, before", built(data_at=64)),
    "metadata of 4 GB": ("too large", built(size=2**32 - 1, index_at=2**33, data_at=2**33)),
    "an index of exabytes": ("too large", built(data_at=2**62)),
    "data beyond the file": ("bytes .* are missing at its end", built(data_at=2**20)),
    "metadata that is no UTF-8": ("not JSON", built(metadata=b'{"a":"\xff"}')),
    "metadata that is no JSON": ("not JSON", built(metadata=b"{")),
    "metadata that is a list": ("no JSON object", built(metadata=b"[]")),
    "metadata nested deeply": ("not JSON", built(metadata=b"[" * 50_000)),
    "NaN": ("NaN is no JSON", built(metadata=b'{"a":NaN}')),
    "four billion tensors": ("4,294,967,295 tensors in an index of 128 bytes", built(count=2**32 - 1)),
    "one tensor too many": ("index ends before its tensors do", built(((b"n" * 36, 0, (1,), 0, 4),), count=2)),
    "an unsorted index": ("not sorted: bias comes after weights", built(WEIGHTS[::-1])),
    "a name twice": ("bias comes twice", built((WEIGHTS[0], WEIGHTS[0]))),
    "a long name": ("a name of 257 bytes", built(((b"n" * 257, 0, (1,), 0, 4),))),
    "a name beyond the index": ("index ends before", built(index=struct.pack("<H", 200) + bytes(40), count=1)),
    "a name that is no UTF-8": ("not UTF-8", built(((b"\xff", 0, (1,), 0, 4),))),
    "the old number of APR_Q4": ("number 8, which is APR_Q4 or Q8_0", built(((b"w", 8, (32,), 0, 18),))),
    "the old number of APR_Q8": ("number 9", built(((b"w", 9, (4,), 0, 8),))),
    "an unknown number": ("number 77: 0, 1, 12", built(((b"w", 77, (4,), 0, 8),))),
    "nine dimensions": ("9 dimensions", built(((b"w", 0, (1,) * 9, 0, 4),))),
    "another size": ("takes 16 bytes, and has 12", built(((b"w", 0, (4,), 0, 12),))),
    "a size beyond 64 bits": ("takes .* bytes", built(((b"w", 0, (2**63, 2**63), 0, 4),))),
    "a row that no block divides": ("no whole blocks", built(((b"w", 12, (2, 128), 0, 144),))),
    "a place between multiples": ("start at a multiple of 64", built(((b"w", 0, (1,), 4, 4),))),
    "an overlap": ("tensors a and b overlap", built(((b"a", 0, (20,), 0, 80), (b"b", 0, (1,), 64, 4)))),
    "data at the end of numbers": ("missing at its end", built(((b"w", 0, (1,), 2**64 - 64, 4),))),
}  # fmt: skip


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_file_is_a_model_error_at_once(what: str, tmp_path: Path) -> None:
    complaint, data = HOSTILE[what]
    started = time.process_time()
    with pytest.raises(ModelError, match=rf"model\.apr.*{complaint}") as refused:
        read_bytes(data, tmp_path)
    assert refused.value.hint
    assert time.process_time() - started < 10


def test_a_cut_file_says_how_much_is_missing(tmp_path: Path) -> None:
    whole = built()
    assert read_bytes(whole, tmp_path).oddities == ()
    for length in range(len(whole)):
        with pytest.raises(ModelError) as refused:
            read_bytes(whole[:length], tmp_path)
        if length >= len(whole) - 128:
            assert f"{len(whole) - length:,} bytes" in refused.value.message


def test_a_flipped_byte_is_found_by_the_sum_and_breaks_no_reader(tmp_path: Path) -> None:
    whole, path, dice = built(), tmp_path / "model.apr", random.Random(0)
    path.write_bytes(b"APR")
    with FileSource(path) as source:
        assert not check_sum(source), "it is too short to have one"
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ dice.randrange(1, 256)]) + whole[place + 1 :])
        with FileSource(path) as source:
            assert not check_sum(source)
            if place < 64:
                with pytest.raises(ModelError):
                    read(source)
                continue
            try:
                header = read(source)
            except ModelError:
                continue
            assert all(tensor.end <= len(whole) - 4 for tensor in header.tensors)


def metadata(**changes: Any) -> bytes:
    return json.dumps({key: value for key, value in (GOLDEN | changes).items() if value != "gone"}).encode()


ODD: dict[str, tuple[str, bytes]] = {
    "two spellings": (
        "has hidden_size under 2 names (hidden_size, n_embd), so that programs drop all of the metadata",
        built(metadata=metadata(hidden_size=8, n_embd=8)),
    ),
    "an HF alias alone": (
        "its metadata calls num_layers by another name, num_hidden_layers",
        built(metadata=metadata(num_hidden_layers=2)),
    ),
    "a key that is missing": ("its metadata has no data_license", built(metadata=metadata(data_license="gone"))),
    "a size of another type": ("vocab_size in its metadata is no count", built(metadata=metadata(vocab_size=2.5))),
    "a count that is null": ("param_count in its metadata is no count", built(metadata=metadata(param_count=None))),
    "a key twice": ("a comes twice in its metadata", built(metadata=metadata()[:-1] + b',"a":1,"a":2}')),
    "reserved bytes": ("the reserved bytes of its header are not zero", built(reserved=b"x" + bytes(19))),
    "padding": ("the padding after its metadata is not zero", built(metadata=metadata() + b"x", size=len(metadata()))),
    "padding of the index": (
        "the padding after its index is not zero", built(index=b"".join(map(entry, WEIGHTS)) + b"x"),
    ),
    "a hole before the data": (
        "a hole of 117 bytes after its index", built(index=b"".join(map(entry, WEIGHTS)) + bytes(81)),
    ),
    "a hole between tensors": (
        "a hole of 64 bytes before tensor weights",
        built((WEIGHTS[0], (b"weights", 0, (8,), 128, 32)), data=bytes(192)),
    ),
    "more at the end": ("64 bytes follow its last tensor", built(data=bytes(192))),
    "no tensors": ("it holds no tensors", built(())),
    "a shard": ("one of several files", built(flags=0x410)),
    "a flag of tomorrow": ("flags of unknown meaning, 0x4000", built(flags=0x4400)),
    "a name that steers terminals": ("steer terminals", built(((b"\x1b[2J", 0, (1,), 0, 4),))),
    "an empty tensor of huge shape": ("is empty, and has the shape", built(((b"w", 0, (0, 2**60), 0, 0),))),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_programs_let_pass_is_an_oddity(what: str, tmp_path: Path) -> None:
    complaint, data = ODD[what]
    oddities = read_bytes(data, tmp_path).oddities
    assert [oddity for oddity in oddities if complaint in oddity], oddities
    assert read_bytes(built(), tmp_path).oddities == ()


class Counting(FileSource):
    """A file that counts what is read of it."""

    count = 0

    def read(self, offset: int, size: int) -> bytes:
        self.count += size
        return super().read(offset, size)


def test_the_header_of_a_large_file_takes_little(tmp_path: Path) -> None:
    size = 20_000_000_000
    whole = built(((b"w", 1, (size // 2,), 0, size),))
    path = tmp_path / "large.apr"
    with path.open("wb") as file:  # a hole of the file system, not of the format
        file.write(whole[:-132])
        file.truncate(len(whole) - 132 + size + 4)
    started = time.process_time()
    with Counting(path) as source:
        assert read(source).tensors[0].size_bytes == size
        assert source.count < 100_000
    assert time.process_time() - started < 10
