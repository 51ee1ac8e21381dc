"""The safetensors reader and writer against the safetensors library, and against files that it must not believe."""

import json
import struct
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.safetensors import DTYPE_NAMES, read
from entrenar_core.formats.safetensors_writer import write
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import Header
from entrenar_core.formats.writing import Outgoing

TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz, "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
    "BOOL": torch.bool, "C64": torch.complex64,
}  # fmt: skip


def header_of(path: Path) -> Header:
    with FileSource(path) as source:
        return read(source)


def raw(path: Path, header: Any, data: bytes = b"", *, length: int | None = None, pad: bool = True) -> Path:
    """A file with this header, which may be text."""
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8) if pad else b""
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def test_every_dtype_of_the_library_is_read_as_it_wrote_it(tmp_path: Path) -> None:
    tensors = {name: torch.arange(24).view(2, 3, 4).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    save_file(tensors, tmp_path / "all.safetensors", metadata={"format": "pt", "who": "naïve"})
    header = header_of(tmp_path / "all.safetensors")
    data = (tmp_path / "all.safetensors").read_bytes()
    assert header.metadata == {"format": "pt", "who": "naïve"}
    assert {tensor.name for tensor in header.tensors} == set(tensors)
    for tensor in header.tensors:
        assert (tensor.dtype.name, tensor.shape) == (tensor.name, (2, 3, 4))
        expected = tensors[tensor.name].contiguous().view(torch.uint8).numpy().tobytes()
        assert data[tensor.offset : tensor.end] == expected
    assert header.oddities == ()


def test_the_dtypes_of_less_than_a_byte_are_those_that_the_library_takes(tmp_path: Path) -> None:
    assert set(TORCH_DTYPES) | {"F4", "F6_E2M3", "F6_E3M2"} == set(DTYPE_NAMES)
    for name, size in (("F4", 2), ("F6_E2M3", 3), ("F6_E3M2", 3)):
        path = raw(tmp_path / f"{name}.safetensors", {"w": entry(name, [4], [0, size])}, b"\0" * size)
        with safe_open(path, "np") as opened:  # the library agrees about the size
            assert opened.get_slice("w").get_shape() == [4]
        assert header_of(path).tensors[0].size_bytes == size


def test_scalars_and_empty_tensors_are_tensors(tmp_path: Path) -> None:
    save_file({"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 5)}, tmp_path / "x.safetensors")
    found = {tensor.name: tensor for tensor in header_of(tmp_path / "x.safetensors").tensors}
    assert (found["scalar"].shape, found["scalar"].values, found["scalar"].size_bytes) == ((), 1, 4)
    assert (found["empty"].shape, found["empty"].values, found["empty"].size_bytes) == ((0, 5), 0, 0)


UNSOUND: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "an empty file": ("it has 0 bytes", lambda p: (p.write_bytes(b"") and p) or p),
    "a length alone": ("of its header are missing", lambda p: raw(p, "", length=50)),
    "a header longer than the file": (
        r"84 bytes .* of its header are missing",
        lambda p: raw(p, "{}" + " " * 14, length=100),
    ),
    "a header of an exabyte": ("a header of 1.2 EB, where 100 MB", lambda p: raw(p, "{}", length=1 << 60)),
    "a header that is no JSON": ("is not JSON", lambda p: raw(p, '{"a": ')),
    "a header that is NaN": ("is not JSON", lambda p: raw(p, '{"a": NaN}')),
    "a header nested 100,000 deep": ("is not JSON", lambda p: raw(p, '{"a":' + "[" * 100_000)),
    "a header that is a list": ("no JSON object", lambda p: raw(p, "[]")),
    "a header that is no UTF-8": ("not UTF-8", lambda p: (p.write_bytes(struct.pack("<Q", 7) + b'{"\xff":0}'), p)[1]),
    "metadata of numbers": ("no object of strings", lambda p: raw(p, {"__metadata__": {"a": 1}})),
    "metadata that is a list": ("no object of strings", lambda p: raw(p, {"__metadata__": ["a"]})),
    "a tensor that is a number": ("has no dtype", lambda p: raw(p, {"w": 5})),
    "a tensor without a shape": ("has no dtype, shape", lambda p: raw(p, {"w": {"dtype": "F32"}})),
    "an unknown dtype": ("unknown dtype F31", lambda p: raw(p, {"w": entry("F31")}, b"\0" * 8)),
    "a dtype that is a list": ("unknown dtype", lambda p: raw(p, {"w": entry(["F32"])}, b"\0" * 8)),  # type: ignore[arg-type]
    "a negative size": ("no list of sizes", lambda p: raw(p, {"w": entry(shape=[-2])}, b"\0" * 8)),
    "a size that is true": ("no list of sizes", lambda p: raw(p, {"w": entry(shape=[True, 2])}, b"\0" * 8)),
    "a size of 2.0": ("no list of sizes", lambda p: raw(p, {"w": entry(shape=[2.0])}, b"\0" * 8)),
    "a size of 10^30": ("no list of sizes", lambda p: raw(p, {"w": entry(shape=[10**30])}, b"\0" * 8)),
    "sizes whose product is beyond all": ("takes", lambda p: raw(p, {"w": entry(shape=[2**62, 2**62])}, b"\0" * 8)),
    "three offsets": ("no range", lambda p: raw(p, {"w": entry(offsets=[0, 4, 8])}, b"\0" * 8)),
    "offsets that go back": ("no range", lambda p: raw(p, {"w": entry(offsets=[8, 0])}, b"\0" * 8)),
    "a shape larger than its range": ("takes 12 bytes, and has", lambda p: raw(p, {"w": entry(shape=[3])}, b"\0" * 8)),
    "half a byte": ("takes no whole bytes", lambda p: raw(p, {"w": entry("F4", [3], [0, 2])}, b"\0" * 2)),
    "tensors that overlap": (
        "v and w overlap",
        lambda p: raw(p, {"v": entry(), "w": entry(offsets=[4, 12])}, b"\0" * 12),
    ),
    "a hole": ("hole of 4 bytes before tensor w", lambda p: raw(p, {"w": entry(offsets=[4, 12])}, b"\0" * 12)),
    "bytes at the end": ("5 bytes follow its last tensor", lambda p: raw(p, {"w": entry()}, b"\0" * 13)),
    "a name twice with two meanings": (
        "w comes twice and says two things",
        lambda p: raw(p, f'{{"w": {json.dumps(entry())}, "w": {json.dumps(entry("I32"))}}}', b"\0" * 8),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", UNSOUND)
def test_an_unsound_file_is_refused_with_what_is_wrong(what: str, tmp_path: Path) -> None:
    complaint, make = UNSOUND[what]
    path = make(tmp_path / "hostile.safetensors")
    with pytest.raises(ModelError, match=rf"hostile\.safetensors is not a sound safetensors file: .*{complaint}"):
        header_of(path)


@pytest.mark.parametrize("what", [what for what in UNSOUND if "twice" not in what])
def test_the_library_refuses_the_same(what: str, tmp_path: Path) -> None:
    path = UNSOUND[what][1](tmp_path / "hostile.safetensors")
    with pytest.raises(Exception, match=r"."), safe_open(path, "np") as opened:
        opened.keys()


ODD: dict[str, tuple[str, Callable[[Path], Path]]] = {
    "white space before": ("does not start with `{`", lambda p: raw(p, "  " + json.dumps({"w": entry()}), b"\0" * 8)),
    "no tensors": ("holds no tensors", lambda p: raw(p, {})),
    "an extra field": ("extra field note", lambda p: raw(p, {"w": entry(note="x")}, b"\0" * 8)),
    "a name that leads out": ("leads out of a folder", lambda p: raw(p, {"../w": entry()}, b"\0" * 8)),
    "a name with an escape": ("steer terminals", lambda p: raw(p, {"\x1b[2Jw": entry()}, b"\0" * 8)),
    "a name with a NUL": ("steer terminals", lambda p: raw(p, {"a\0b": entry()}, b"\0" * 8)),
    "no name": ("has no name", lambda p: raw(p, {"": entry()}, b"\0" * 8)),
    "a long name": ("4,096 bytes", lambda p: raw(p, {"w" * 5000: entry()}, b"\0" * 8)),
    "an empty shape of 2^62": ("is empty", lambda p: raw(p, {"w": entry(shape=[2**62, 0], offsets=[0, 0])})),
    "a name twice": (
        "w comes twice",
        lambda p: raw(p, f'{{"w": {json.dumps(entry())}, "w": {json.dumps(entry())}}}', b"\0" * 8),
    ),
    "data between multiples of 8": (
        "no multiple of 8",
        lambda p: raw(p, json.dumps({"w": entry()}).replace(" ", "").ljust(53), b"\0" * 8, pad=False),
    ),
    "a tensor between its sizes": (
        "does not start at a multiple",
        lambda p: raw(p, {"b": entry("U8", [1], [0, 1]), "w": entry(offsets=[1, 9])}, b"\0" * 9),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ODD)
def test_what_the_library_lets_pass_is_noted(what: str, tmp_path: Path) -> None:
    complaint, make = ODD[what]
    path = make(tmp_path / "odd.safetensors")
    assert any(complaint in oddity for oddity in header_of(path).oddities)
    with safe_open(path, "np") as opened:  # it does let it pass
        opened.keys()


@pytest.mark.parametrize("keep", [0, 4, 7, 8, 20, 60, 88, 99])
def test_a_file_cut_short_says_what_is_missing(keep: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"weight": torch.zeros(16)}, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * keep // 100])
    with pytest.raises(ModelError) as refused:
        header_of(path)
    missing = len(whole) - path.stat().st_size
    if path.stat().st_size > 8 + struct.unpack("<Q", whole[:8])[0]:
        assert f"{missing:,} bytes" in refused.value.message


@settings(max_examples=300, deadline=2000)
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8))
def test_a_damaged_file_reads_or_fails_cleanly(flips: list[tuple[int, int]], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("damaged") / "x.safetensors"
    save_file({"a": torch.zeros(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}, path, metadata={"k": "v"})
    data = bytearray(path.read_bytes())
    for place, flip in flips:
        data[place % len(data)] ^= flip
    path.write_bytes(data)
    try:
        header = header_of(path)
    except ModelError:
        return
    assert all(tensor.end <= len(data) for tensor in header.tensors)


# Writing


def outgoing(name: str, tensor: torch.Tensor, dtype: str) -> Outgoing:
    data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    halves = (data[: len(data) // 2], data[len(data) // 2 :])
    return Outgoing(name, DTYPES[dtype], tuple(tensor.shape), lambda: halves)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {f"x.{name}": torch.arange(24).view(2, 3, 4).to(dtype) for name, dtype in TORCH_DTYPES.items()}
    tensors["scalar"] = torch.tensor(2.5)
    found = [outgoing(name, tensor, name.removeprefix("x.")) for name, tensor in tensors.items() if name != "scalar"]
    write(tmp_path / "out.safetensors", [*found, outgoing("scalar", tensors["scalar"], "F32")], {"format": "pt"})
    read_back = load_file(tmp_path / "out.safetensors")
    assert set(read_back) == set(tensors)
    for name, tensor in tensors.items():
        assert read_back[name].dtype == tensor.dtype
        assert torch.equal(read_back[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
    assert header_of(tmp_path / "out.safetensors").metadata == {"format": "pt"}


def test_ranges_are_copied_by_the_system_and_told_of(tmp_path: Path) -> None:
    save_file({"a": torch.randn(1000), "b": torch.randn(7, 3)}, tmp_path / "in.safetensors")
    told: list[int] = []
    with FileSource(tmp_path / "in.safetensors") as source:
        tensors = [
            Outgoing(t.name, t.dtype, t.shape, lambda: pytest.fail("read here"), (source, t.offset), tell=told.append)
            for t in read(source).tensors
        ]  # fmt: skip
        write(tmp_path / "out.safetensors", tensors, {})
    assert sum(told) == 1000 * 4 + 7 * 3 * 4
    one, other = load_file(tmp_path / "in.safetensors"), load_file(tmp_path / "out.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("order", permutations(("dtype", "shape", "data_offsets")))
@pytest.mark.parametrize("blank", ["", " ", "\n\t"])
def test_fields_may_come_in_any_order_with_blanks_between(order: tuple[str, ...], blank: str, tmp_path: Path) -> None:
    fields = {"dtype": '"F32"', "shape": f"[2,{blank}1{blank}]", "data_offsets": f"[{blank}0,{blank}8]"}
    entry = f",{blank}".join(f'"{name}"{blank}:{blank}{fields[name]}{blank}' for name in order)
    path = raw(tmp_path / "a.safetensors", f'{{{blank}"w"{blank}:{blank}{{{blank}{entry}}}{blank}}}', bytes(8))
    (tensor,) = header_of(path).tensors
    assert (tensor.name, tensor.shape, tensor.size_bytes) == ("w", (2, 1), 8)
    assert load_file(path)["w"].shape == (2, 1)


@pytest.mark.parametrize(
    "entry",
    [
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8],}',
        '{"dtype":"F32","shape":[2],"shape":[2]}',
        '{"dtype":"F32","shape":[2,],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[02],"data_offsets":[0,8]}',
        '{"dtype":"F32""shape":[2],"data_offsets":[0,8]}',
        '{,"dtype":"F32","shape":[2],"data_offsets":[0,8]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0 8]}',
        '{"dtype":"F32","shape":[2],"data_offsets":[0,8]},',
    ],
)
def test_what_is_almost_an_entry_is_refused_as_the_library_does(entry: str, tmp_path: Path) -> None:
    path = raw(tmp_path / "a.safetensors", f'{{"w":{entry}}}', bytes(8))
    with pytest.raises(ModelError, match="not a sound safetensors file"):
        header_of(path)
    with pytest.raises(SafetensorError):
        load_file(path)


@pytest.mark.parametrize("header", ['{"w\\ud800":%s}', '{"__metadata__":{"a":"\\udc00"},"w":%s}'])
def test_half_a_character_is_refused_as_the_library_does(header: str, tmp_path: Path) -> None:
    entry = '{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
    path = raw(tmp_path / "a.safetensors", header % entry, bytes(8))
    with pytest.raises(ModelError, match="no Unicode text"):
        header_of(path)
    with pytest.raises(SafetensorError):
        load_file(path)


def test_more_tensors_and_odd_ones_than_a_model_has_are_refused(tmp_path: Path) -> None:
    def header(count: int, more: str) -> str:
        entries = (f'"w{place}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]{more}}}' for place in range(count))
        return "{" + ",".join(entries) + "}"

    with pytest.raises(ModelError, match="more than 20,000 tensors with odd names, further fields"):
        header_of(raw(tmp_path / "a.safetensors", header(20_001, ',"more":1')))
    assert len(header_of(raw(tmp_path / "b.safetensors", header(200, ',"more":1'))).tensors) == 200
