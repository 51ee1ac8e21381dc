"""The reader of PyTorch files against files that are damaged, or that mean harm: one ModelError each, and at once."""

import io
import pickle
import struct
import sys
import time
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from entrenar_core.errors import ModelError
from entrenar_core.formats.pytorch import read
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.zips import MAX_ENTRIES
from torch_files import (
    CENTRAL,
    END,
    LOCAL,
    Ranges,
    called,
    dict_of,
    header,
    header_of,
    integer,
    named,
    pickled,
    raw,
    raw_in,
    storage,
    tensor,
    text,
    tuple_of,
    zipped,
)

BYTES = storage(kind="UntypedStorage", length=16)
V2, V3 = named("torch._utils", "_rebuild_tensor_v2"), named("torch._utils", "_rebuild_tensor_v3")
FLAGS = dict_of({"conj": pickle.NEWTRUE})
COMMON = pickle.BININT1 + b"\0", tuple_of(integer(4)), tuple_of(integer(1)), pickle.NEWFALSE, pickle.EMPTY_DICT

TENSORS: dict[str, tuple[bytes, str]] = {
    "a value more than there are": (tensor(shape=(5,)), "does not lie inside its storage of 4 values"),
    "an offset that is too far": (tensor(offset=1), "does not lie inside its storage"),
    "strides that are too long": (tensor(shape=(2, 2), strides=(3, 1)), "does not lie inside its storage"),
    "a bomb of 10^12 equal values": (tensor(shape=(10**12,), strides=(0,)), "does not lie inside its storage"),
    "a small bomb": (tensor(shape=(5, 1), strides=(0, 1)), "does not lie inside its storage"),
    "values that overlap up to the end": (tensor(offset=1, shape=(2, 2), strides=(1, 1)), "does not lie inside"),
    "a negative offset": (tensor(offset=-1), "impossible offsets"),
    "a negative stride": (tensor(offset=3, strides=(-1,)), "impossible strides"),
    "an absurd stride": (tensor(shape=(1,), strides=(2**63,)), "impossible strides"),
    "a negative shape": (tensor(shape=(-4,)), "impossible dimensions"),
    "a shape of words": (called(V2, storage(), COMMON[0],
                                tuple_of(text("a")), *COMMON[2:]), "impossible dimensions"),
    "a thousand dimensions": (tensor(shape=(1,) * 1000, strides=(1,) * 1000), "impossible dimensions"),
    "more strides than dimensions": (tensor(strides=(1, 1)), "1 dimensions and 2 strides"),
    "a storage that is not there": (tensor(storage("1")), "storage '1' of 16 bytes is not there"),
    "a storage that leads elsewhere": (tensor(storage("../version")), "is not there"),
    "a storage that is longer": (tensor(storage(length=5)), "storage '0' of 20 bytes has 16 bytes"),
    "a storage of wider values": (tensor(storage(kind="DoubleStorage")), "of 32 bytes has 16 bytes"),
    "a storage of negative length": (tensor(storage(length=-1)), "its class, key or length is none"),
    "a storage of absurd length": (tensor(storage(length=2**1000)), "has 16 bytes"),
    "a storage without a dtype": (tensor(BYTES), "gives torch._utils._rebuild_tensor_v2 what it does not take"),
    "a dtype for what has one": (called(V3, storage(), *COMMON, named("torch", "uint8")), "_rebuild_tensor_v3 what"),
    "a dtype that is none": (called(V3, BYTES, *COMMON, text("uint8")), "_rebuild_tensor_v3 what"),
    "a dtype that nobody here knows": (called(V3, BYTES, *COMMON, named("torch", "complex32")), r"torch\.complex32"),
    "half a value": (called(V3, BYTES, *COMMON[:-1], pickle.EMPTY_DICT, named("torch", "uint64")), "does not lie"),
    "pairs that are apart": (
        called(V3, BYTES, COMMON[0], tuple_of(integer(2), integer(2)), tuple_of(integer(1), integer(2)), *COMMON[3:],
               named("torch", "float4_e2m1fn_x2")), "F4 does not lie row by row"),
    "a shape that is a list": (called(V2, storage(), COMMON[0], b"]", *COMMON[2:]), "_rebuild_tensor_v2 what"),
    "flags that are none": (tensor(more=(b"N",)), "_rebuild_tensor_v2 what"),
    "more flags than there are": (tensor(more=(dict_of({"a": b"N", "b": b"N", "c": b"N"}),)), "_tensor_v2 what"),
    "a conjugate": (tensor(more=(FLAGS,)), "conjugate or negative"),
    "too few arguments": (called(V2, storage()), "what it does not take"),
    "a parameter of nothing": (called(named("torch._utils", "_rebuild_parameter"), b"N", b"N", b"N"), "not take"),
    "tensors that rebuild themselves": (
        called(named("torch._tensor", "_rebuild_from_type_v2"), named("torch._tensor", "_rebuild_from_type_v2"),
               named("torch", "Tensor"), pickle.EMPTY_TUPLE, pickle.NONE), "what it does not take"),
    "attributes of a number": (
        called(named("torch._tensor", "_rebuild_from_type_v2"), V3, b"K\1", b")", b"N"), "what it does not take"),
    "a size that is a list": (called(named("torch", "Size"), b"]"), r"torch\.Size what it does not take"),
    "a set of a number": (called(named("__builtin__", "set"), b"K\1"), r"builtins\.set what it does not take"),
    "a device with a long name": (called(named("torch", "device"), text("c" * 99)), "what it does not take"),
    "a pickle in the pickle": (called(named("torch.storage", "_load_from_bytes"), text("a")), "_load_from_bytes"),
    "sparse values": (named("torch._utils", "_rebuild_sparse_tensor"), "_rebuild_sparse_tensor"),
}  # fmt: skip


@pytest.mark.parametrize("what", TENSORS)
def test_an_unsound_tensor_is_a_model_error_at_once(tmp_path: Path, what: str) -> None:
    value, complaint = TENSORS[what]
    started = time.process_time()
    with pytest.raises(ModelError, match=rf"hostile\.pt.*{complaint}"):
        header_of(zipped(pickled({"a": value})), tmp_path / "hostile.pt")
    assert time.process_time() - started < 10


def shared(levels: int) -> bytes:
    """Dicts of which each has the one before twice."""
    value: dict[str, object] = {"a": 1}
    for _ in range(levels):
        value = {"a": value, "b": value}
    return pickle.dumps(value, 2)


RING: dict[str, object] = {}
RING["ring"] = RING
LONG = {f"{'k' * 3000}{number}": pickle.BINGET + b"\0" for number in range(500)}
CONTENTS: dict[str, tuple[bytes, str]] = {
    "a list": (b"\x80\2].", "holds no dict of tensors"),
    "a tensor": (b"\x80\2" + tensor() + b".", "holds no dict of tensors"),
    "dicts on 2^40 paths": (shared(40), "all names together are"),
    "more numbers than a model has": (pickle.dumps({"a": [[0] * 50_000] * 30}), "more values, or tensors, than"),
    "a dict in itself": (pickle.dumps(RING, 2), "nested more than 64 deep"),
    "a thousand lists in each other": (b"\x80\2}" + text("a") + b"]" * 1000 + b"a" * 999 + b"s.", "more than 64 deep"),
    "names that add up": (b"\x80\2" + dict_of({"a": dict_of({str(n): b"K\1" for n in range(99)}) + b"q\0", **LONG})
                          + b".", "all names together are"),
    "a name of 5,000 letters": (pickled({"k" * 5000: tensor()}), "is too long"),
    "a name in two places": (pickled({"a.b": tensor(), "a": dict_of({"b": tensor()})}), r"a\.b comes twice"),
    "a number twice": (pickled({"a.b": b"K\1", "a": dict_of({"b": b"K\2"})}), r"a\.b comes twice"),
    "nothing": (b"", "ends at byte 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", CONTENTS)
def test_unsound_contents_are_a_model_error_at_once(tmp_path: Path, what: str) -> None:
    data, complaint = CONTENTS[what]
    started = time.process_time()
    with pytest.raises(ModelError, match=complaint):
        header_of(zipped(data), tmp_path / "hostile.pt")
    assert time.process_time() - started < 8


def patched(data: bytes, magic: bytes, at: int, new: bytes, *, which: int = -1) -> bytes:
    """The file with other bytes in a record: by default in that of the last entry."""
    places = [place for place in range(len(data)) if data.startswith(magic, place)]
    start = places[which] + at
    return data[:start] + new + data[start + len(new) :]


SOUND = zipped(pickled({"a": tensor()}))
MORE = zipped(pickled({"a": tensor()}), {"data/0": bytes(16), "data/1": bytes(16)})
torch.save({"a": torch.ones(4)}, saved := io.BytesIO())
REAL, END_64, LOCATOR_64 = saved.getvalue(), b"PK\x06\x06", b"PK\x06\x07"
ZIPS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "it has 0 bytes"),
    "no zip": (bytes(1000), "no end record; it may be cut short"),
    "an empty zip": (zipped(b"")[-22:-22] + END + bytes(18), "a directory of 0 entries"),
    "a comment": (SOUND[:-2] + b"\1\0!", "bytes follow its end record"),
    "bytes after it": (SOUND + bytes(99), "bytes follow its end record"),
    "bytes before it": (b"PK\3\4" + bytes(96) + SOUND, "directory does not reach up to its end"),
    "compressed": (zipped(pickled({"a": tensor()}), compression=zipfile.ZIP_DEFLATED), "is compressed"),
    "packed by nothing to less": (patched(SOUND, CENTRAL, 20, b"\x08"), "is compressed"),
    "encrypted": (patched(SOUND, CENTRAL, 8, b"\1"), "is encrypted"),
    "flags of a patch": (patched(SOUND, CENTRAL, 8, b"\x20"), "has the flags 0x20"),
    "on the second disk": (patched(SOUND, CENTRAL, 34, b"\1"), "speaks of other disks"),
    "an entry with a comment": (patched(SOUND, CENTRAL, 32, b"\1"), "has comments"),
    "one of two disks": (patched(SOUND, END, 4, b"\1"), "one of several parts"),
    "fewer entries than there are": (patched(SOUND, END, 8, b"\2\0\2\0"), "goes on after its last entry"),
    "more entries than there are": (patched(SOUND, END, 8, b"\4\0\4\0"), "ends too early"),
    "a directory elsewhere": (patched(SOUND, END, 16, b"\0"), "does not reach up to its end"),
    "a directory of something else": (patched(SOUND, CENTRAL, 0, b"PKPK"), "directory is damaged"),
    "an entry that is shorter": (patched(patched(SOUND, CENTRAL, 20, b"\x0f"), CENTRAL, 24, b"\x0f"), "another size"),
    "an entry that is longer": (patched(patched(SOUND, CENTRAL, 20, b"\x11"), CENTRAL, 24, b"\x11"), "another size"),
    "another size in the header": (patched(SOUND, LOCAL, 22, b"\x11"), "another size or checksum"),
    "another checksum in the header": (patched(SOUND, LOCAL, 14, b"\x11"), "another size or checksum"),
    "another name in the header": (patched(SOUND, LOCAL, 30, b"n"), "another name in its header"),
    "other flags in the header": (patched(SOUND, LOCAL, 6, b"\x08"), "no header where the directory says"),
    "no header": (patched(SOUND, LOCAL, 0, b"PKPK"), "no header where the directory says"),
    "two entries at one place": (
        patched(MORE, CENTRAL, 42, struct.pack("<I", SOUND.rfind(LOCAL))), "overlaps"),
    "a header outside": (patched(SOUND, CENTRAL, 42, b"\xff\xff\xff\x7f"), "belong to no entry"),
    "a size that is missing": (patched(SOUND, CENTRAL, 20, b"\xff" * 8), "size or the place of an entry is missing"),
    "a gap": (patched(SOUND, LOCAL, 28, b"\x00\x01"), "overlaps"),
    "a name that is not UTF-8": (patched(SOUND, CENTRAL, 46, b"\xff"), "is not UTF-8"),
    "another pickle": (SOUND.replace(b"FloatStorage", b"ShortStorage"), "damaged: its checksum is another"),
    "half a long end": (REAL[-42:], "does not reach up to its end"),
    "a long end elsewhere": (patched(REAL, LOCATOR_64, 8, b"\0"), "parts of its end record do not fit"),
    "a long end on two disks": (patched(REAL, LOCATOR_64, 16, b"\2"), "parts of its end record do not fit"),
    "a long end of something else": (patched(REAL, END_64, 0, b"PKPK"), "parts of its end record do not fit"),
    "a long end that is longer": (patched(REAL, END_64, 4, b"\xff"), "parts of its end record do not fit"),
    "two ends that differ": (patched(REAL, END_64, 24, b"\1"), "contradict each other"),
    "big-endian": (zipped(pickled({"a": tensor()}), {"data/0": bytes(16), "byteorder": b"big"}), "big-endian"),
    "a long byte order": (zipped(pickled({}), {"byteorder": b"little" * 99}), "at most 16 are read"),
}  # fmt: skip


@pytest.mark.parametrize("what", ZIPS)
def test_an_unsound_zip_is_a_model_error(tmp_path: Path, what: str) -> None:
    assert header_of(SOUND, tmp_path / "sound.pt").tensors
    data, complaint = ZIPS[what]
    with pytest.raises(ModelError, match=complaint):
        header_of(data, tmp_path / "hostile.pt")


@pytest.mark.parametrize(
    "name", ["../data/0", "data/./0", "/data/0", "data\\0", "DATA/0", "data/\x1b[2J", "a" * 2000, ""]
)
def test_names_that_readers_could_confuse_are_refused(tmp_path: Path, name: str) -> None:
    data = zipped(pickled({"a": tensor()}), {"data/0": bytes(16), name: bytes(16)})
    with pytest.raises(ModelError, match=r"is not inside its one folder|comes twice"):
        header_of(data, tmp_path / "hostile.pt")


def test_entries_of_several_folders_are_refused(tmp_path: Path) -> None:
    data = patched(patched(SOUND, CENTRAL, 46, b"o"), LOCAL, 30, b"o")
    with pytest.raises(ModelError, match="the entry 'oodel/data/0' is not inside its one folder"):
        header_of(data, tmp_path / "hostile.pt")


def test_a_zip_behind_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "behind.pt"
    path.write_bytes(b"GIF89a" * 10)
    with zipfile.ZipFile(path, "a") as archive, zipfile.ZipFile(io.BytesIO(SOUND)) as sound:
        for name in sound.namelist():
            archive.writestr(name, sound.read(name))
    with pytest.raises(ModelError, match="60 bytes lie before its first entry"):
        header(path)


def test_what_is_read_elsewhere_is_held_against_its_header(tmp_path: Path) -> None:
    path = tmp_path / "elsewhere.pt"
    for at, new, complaint in ((28, b"\4", "another length"), (30, b"n", "another name"), (14, b"\0", "another size")):
        path.write_bytes(patched(SOUND, LOCAL, at, new, which=0))
        with FileSource(path) as source, pytest.raises(ModelError, match=complaint):
            read(Ranges(source))


def test_sizes_may_be_written_long(tmp_path: Path) -> None:
    path = tmp_path / "long.pt"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (("data.pkl", pickled({"a": tensor()})), ("version", b"3"), ("data/0", bytes(16))):
            with archive.open(f"model/{name}", "w", force_zip64=True) as entry:
                entry.write(data)
    (found,) = header(path).tensors
    assert path.read_bytes()[found.offset - 20 : found.offset - 16] == b"\1\0\x10\0", "the long sizes"
    assert raw_in(path, found) == bytes(16)


def test_other_files_of_torch_say_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2), path)
    with pytest.raises(ModelError, match=r"names torch\.nn\.modules\.linear\.Linear; nothing of it was run"):
        header(path)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.script(torch.nn.Linear(2, 2)).save(path)
    with pytest.raises(ModelError, match="is a TorchScript program"):
        header(path)
    with path.open("wb") as file:
        numpy.savez(file, numpy.ones(3))
    with pytest.raises(ModelError, match=r"is a zip file, but none that torch\.save wrote"):
        header(path)
    torch.save({"a": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ModelError, match="no end record"):
        header(path)


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file that torch saved."""
    path = tmp_path_factory.mktemp("real") / "real.pt"
    weight = torch.arange(6.0).reshape(2, 3)
    torch.save({"weight": weight, "tied": weight.t(), "bias": torch.ones(2, dtype=torch.float8_e5m2), "step": 3}, path)
    return path.read_bytes()


def test_a_file_that_is_cut_short_is_a_model_error(tmp_path: Path, real: bytes) -> None:
    path = tmp_path / "cut.pt"
    for size in range(len(real)):
        path.write_bytes(real[:size])
        with pytest.raises(ModelError, match=r"end record|bytes"):
            header(path)


@given(data=st.data())
def test_a_damaged_file_is_sound_or_a_model_error(real: bytes, scratch: Path, data: st.DataObject) -> None:
    damaged = bytearray(real)
    for place in data.draw(st.lists(st.integers(0, len(real) - 1), min_size=1, max_size=3)):
        damaged[place] = data.draw(st.integers(0, 255))
    scratch.write_bytes(damaged)
    for kind in (lambda source: source, Ranges):
        with FileSource(scratch) as source, suppress(ModelError):
            for found in read(kind(source)).tensors:
                assert found.end <= len(real)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scratch") / "damaged.pt"


FOUR = struct.pack("<4f", 0.0, 1.0, 2.0, 3.0)
PICKLE = pickled({"a": tensor(), "b": tensor(offset=1, shape=(3, 1), strides=(1, 3)), "n": integer(7)})


@given(
    places=st.lists(st.integers(2, len(PICKLE) - 1), min_size=1, max_size=2),
    change=st.sampled_from([b"\0", b"\1", b"\2", b"\3", b"0", b"a", b"\x85", b"q\0", b"h\0", b"N", b"K\1", b"", b")"]),
)
def test_what_is_read_of_a_strange_pickle_torch_reads_alike(scratch: Path, places: list[int], change: bytes) -> None:
    strange = PICKLE
    for place in places:
        strange = strange[:place] + change + strange[place + 1 :]
    scratch.write_bytes(zipped(strange, {"data/0": FOUR}))
    try:
        ours = {one.name: (one.shape, raw_in(scratch, one)) for one in header(scratch).tensors}
    except ModelError:
        return
    try:
        theirs = torch.load(scratch, weights_only=True)
    except Exception:  # noqa: BLE001 - torch raises many kinds
        return
    flat = {str(key): value for key, value in theirs.items() if isinstance(value, torch.Tensor)}
    if len(flat) == len(ours):  # else some are in containers
        assert ours == {name: (tuple(value.shape), raw(value)) for name, value in flat.items()}


@pytest.mark.slow
def test_as_many_entries_as_are_read_take_no_time(tmp_path: Path) -> None:
    storages = {f"data/{number}": b"" for number in range(MAX_ENTRIES - 2)}
    path = tmp_path / "many.pt"
    path.write_bytes(zipped(pickled({}), storages))
    started = time.process_time()
    assert header(path).tensors == ()
    assert time.process_time() - started < (8 if sys.gettrace() is None else 40)
    path.write_bytes(zipped(pickled({}), {**storages, "data/more": b""}))
    with pytest.raises(ModelError, match="a directory of 40,001 entries"):
        header(path)
