"""Malformed files of the formats that hold programs: PyTorch's pickles in zips, and ONNX's graphs."""

import io
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from malformed_parts import ESCAPES, Case, file, write_sparse
from onnx_bytes import message, varint, wrapped
from torch_files import (
    CENTRAL,
    END,
    LOCAL,
    START,
    called,
    dict_of,
    named,
    pickled,
    storage,
    tensor,
    text,
    zipped,
)

_pt = partial(file, "pytorch_model.bin")


def _of(value: bytes) -> bytes:
    """A file whose state dict is this one tensor."""
    return zipped(pickled({"w": value}))


def _program(code: bytes) -> bytes:
    return zipped(START + code + pickle.STOP)


SOUND_PYTORCH = zipped(pickled({"w": tensor()}))


def _doubled(depth: int) -> bytes:
    """A tuple that holds another twice, which holds another twice, and so on: two to the power of `depth` in all."""
    code = pickle.EMPTY_TUPLE + pickle.BINPUT + b"\0"
    for level in range(depth):
        code += pickle.BINGET + bytes((level,)) + pickle.TUPLE2 + pickle.BINPUT + bytes((level + 1,))
    return code


def _patched(archive: bytes, magic: bytes, place: int, code: str, value: int, *, last: bool = False) -> bytes:
    """A zip with another number at a place of its first (or last) record of a kind."""
    changed = bytearray(archive)
    at = archive.rindex(magic) if last else archive.index(magic)
    struct.pack_into("<" + code, changed, at + place, value)
    return bytes(changed)


def _two_directories() -> bytes:
    """Two zips, the second with places that count from the start of the first: both read alone."""
    other = bytearray(zipped(pickled({"other": tensor()})))
    place = other.find(CENTRAL)
    while place >= 0:
        (header,) = struct.unpack_from("<I", other, place + 42)
        struct.pack_into("<I", other, place + 42, header + len(SOUND_PYTORCH))
        place = other.find(CENTRAL, place + 1)
    end = other.rindex(END)
    (directory,) = struct.unpack_from("<I", other, end + 16)
    struct.pack_into("<I", other, end + 16, directory + len(SOUND_PYTORCH))
    return SOUND_PYTORCH + bytes(other)


def _with_entry(name: str, data: bytes = b"") -> bytes:
    return zipped(pickled({"w": tensor()}), {"data/0": bytes(16), name: data})


def _zip(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return buffer.getvalue()


def _bomb() -> bytes:
    """Ten megabytes of zeros that are ten kilobytes."""
    return zipped(pickled({"w": tensor(storage(length=2_500_000))}), {"data/0": bytes(10_000_000)},
                  compression=zipfile.ZIP_DEFLATED)  # fmt: skip


PYTORCH: Mapping[str, Case] = {
    "torch-pickle-bare": _pt(pickled({}), "a bare pickle"),
    "torch-before-1-6": _pt(b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19." + bytes(99), "older than"),
    "torch-cut-short": _pt(SOUND_PYTORCH[:-40], "no end record; it may be cut short"),
    "torch-another-zip": _pt(_zip("folder/readme"), "none that torch.save wrote"),
    "torch-script": _pt(_with_entry("constants.pkl"), "a TorchScript program"),
    "torch-deflated-bomb": _pt(_bomb, "is compressed"),
    "torch-two-directories": _pt(_two_directories(), "bytes lie before its first entry"),
    "torch-comment": _pt(_patched(SOUND_PYTORCH, END, 20, "H", 4, last=True) + b"PK\x05\x06", "bytes follow its end record"),
    "torch-several-disks": _pt(_patched(SOUND_PYTORCH, END, 4, "H", 1, last=True), "one of several parts"),
    "torch-65535-entries": _pt(_patched(_patched(SOUND_PYTORCH, END, 8, "H", 0xFFFF), END, 10, "H", 0xFFFF), "directory"),
    "torch-directory-at-2-32": _pt(_patched(SOUND_PYTORCH, END, 16, "I", 2**32 - 1), "does not reach up to its end"),
    "torch-encrypted": _pt(_patched(SOUND_PYTORCH, CENTRAL, 8, "H", 1), "encrypted"),
    "torch-headers-differ": _pt(_patched(SOUND_PYTORCH, LOCAL, 22, "I", 7), "another size or checksum in its header"),
    "torch-damaged": _pt(SOUND_PYTORCH.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9"), "damaged: its checksum"),
    "torch-one-place-twice": _pt(_patched(SOUND_PYTORCH, CENTRAL, 42, "I", 0, last=True), "overlap|another name|header"),
    "torch-entry-that-leads-out": _pt(_zip("model/data.pkl", "model/version", "../../outside"), "is not inside its one folder"),
    "torch-entry-of-escapes": _pt(_with_entry(ESCAPES), "is not inside its one folder"),
    "torch-entry-twice-but-for-case": _pt(_with_entry("DATA.PKL"), "comes twice"),
    "torch-runs-a-command": _pt(_of(called(named("os", "system"), text("touch owned"))), r"names os\.system"),
    "torch-runs-code": _pt(_of(called(named("builtins", "eval"), text("1/0"))), r"names builtins\.eval"),
    "torch-name-of-escapes": _pt(_of(named("os\x1b[2J", "system")), "names os"),
    "torch-pickle-cut-short": _pt(zipped(pickled({"w": tensor()})[:-2]), "before it is complete"),
    "torch-protocol-0": _pt(zipped(b"(lp0\n."), "none of the protocols"),
    "torch-unknown-instruction": _pt(_program(b"\xff"), "the instruction 0xff"),
    "torch-text-of-4-gb": _pt(_program(pickle.BINUNICODE + b"\xff\xff\xff\xff"), "before it is complete"),
    "torch-frame-of-2-64": _pt(_program(pickle.FRAME + b"\xff" * 8), "a frame that is longer"),
    "torch-keys-of-nested-tuples": _pt(
        _program(pickle.EMPTY_DICT + _doubled(60) + pickle.NONE + pickle.SETITEM), "a key that is no name"),
    "torch-values-of-nested-tuples": _pt(_of(_doubled(40)), "all names together are"),
    "torch-list-in-itself": _pt(
        zipped(START + pickle.EMPTY_DICT + text("w") + pickle.EMPTY_LIST + pickle.BINPUT + b"\0" + pickle.BINGET
               + b"\0" + pickle.APPEND + pickle.SETITEM + pickle.STOP), "nested more than"),
    "torch-no-dict": _pt(_program(pickle.EMPTY_LIST), "holds no dict"),
    "torch-name-twice": _pt(_program(dict_of({}) + text("w") + pickle.NONE + pickle.SETITEM
                                     + text("w") + pickle.NONE + pickle.SETITEM), "the same key twice"),
    "torch-big-endian": _pt(_with_entry("byteorder", b"big"), "big-endian"),
    "torch-no-storage": _pt(_of(tensor(storage("7"))), "storage '7' .* is not there"),
    "torch-storage-outside": _pt(_of(tensor(storage("../../../etc/passwd"))), "is not there"),
    "torch-storage-cut-short": _pt(_of(tensor(storage(length=5))), "of 20 bytes has 16"),
    "torch-tensor-of-10-12": _pt(_of(tensor(shape=(10**12,), strides=(0,))), "does not lie inside its storage"),
    "torch-tensor-beyond": _pt(_of(tensor(offset=1)), "does not lie inside its storage"),
    "torch-shape-negative": _pt(_of(tensor(shape=(-4,))), "impossible dimensions"),
    "torch-stride-of-2-63": _pt(_of(tensor(shape=(1,), strides=(2**63,))), "impossible strides"),
    "torch-odd-name-of-escapes": _pt(zipped(pickled({ESCAPES: tensor()})), "steer terminals", odd=True),
    "torch-odd-no-tensors": _pt(zipped(pickled({}), {}), "holds no tensors", odd=True),
    "torch-odd-value-nan": _pt(zipped(pickled({"w": tensor()}), {"data/0": struct.pack("<4f", 1, 2, float("nan"), 3)}),
                               "tensor w has 1 NaN", odd=True),
}  # fmt: skip

_ox = partial(file, "model.onnx")


def _number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def _onnx(*, name: bytes = b"w", shape: tuple[int, ...] = (2,), kind: int = 1, raw: bytes | None = bytes(8),
          more: bytes = b"") -> bytes:  # fmt: skip
    """A model with one tensor of two floats."""
    dims = b"".join(_number(1, size) for size in shape)
    return wrapped(dims + _number(2, kind) + message(8, name) + (b"" if raw is None else message(9, raw)) + more)


def _beside(**entries: str) -> bytes:
    """A model that keeps its tensor in another file."""
    pairs = (message(13, message(1, key.encode()) + message(2, value.encode())) for key, value in entries.items())
    return _onnx(raw=None, more=b"".join(pairs) + _number(14, 1))


def _graphs(depth: int, name: bytes = b"") -> bytes:
    graph = b""
    for _ in range(depth):
        graph = message(1, message(4, name) + message(5, message(6, graph)))
    return b"\x08\x08" + message(7, graph)


def _fill_beside(size: int) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "model.onnx").write_bytes(_beside(location="w.bin", offset="4", length="8"))
        (folder / "w.bin").write_bytes(bytes(size))

    return fill


def _linked_beside(folder: Path) -> None:
    (folder / "model.onnx").write_bytes(_beside(location="w.bin", offset="0", length="8"))
    (folder / "w.bin").symlink_to("../outside/stolen.safetensors")


def _sparse_numbers(folder: Path) -> None:
    """Two whole numbers are announced, and a gigabyte of them is there."""
    length = 10**9
    start = _number(1, 2) + _number(2, 7) + message(8, b"w") + b"\x3a" + varint(length)
    graph = b"\x2a" + varint(len(start) + length) + start
    head = b"\x08\x08\x3a" + varint(len(graph) + length) + graph
    write_sparse(folder / "model.onnx", head, len(head) + length)


SOUND_ONNX = _onnx()
ONNX: Mapping[str, Case] = {
    "onnx-cut-short": _ox(_onnx()[:-5], "19 bytes are announced, and 14 are there: 5 bytes are missing"),
    "onnx-no-graph": _ox(_number(1, 8) + message(2, b"me and nobody else"), "0 graphs"),
    "onnx-two-graphs": _ox(_onnx() + message(7, b""), "2 graphs"),
    "onnx-number-without-end": _ox(b"\x08\x08" + b"\x88" + b"\xff" * 100_000, "a number of more than 64 bits"),
    "onnx-field-of-2-60": _ox(b"\x08\x08\x3a" + varint(2**60) + bytes(9), "bytes are announced"),
    "onnx-field-zero": _ox(b"\x08\x08" + bytes(1000), "a field without a number"),
    "onnx-field-of-no-kind": _ox(b"\x08\x08\x3b" + bytes(9), "a field of the unknown kind"),
    "onnx-graphs-nested": _ox(_graphs(2000), "nested more than 32 deep"),
    "onnx-graphs-under-long-names": _ox(_graphs(30, b"x" * 4000), "or under long names"),
    "onnx-name-of-a-megabyte": _ox(lambda: _onnx(name=b"x" * 1_000_000), "a name of 1,000,000 bytes"),
    "onnx-tensor-twice": _ox(_onnx()[:2] + message(7, _onnx()[4:] * 2), "the tensor w comes twice"),
    "onnx-type-99": _ox(_onnx(kind=99), "unknown type 99"),
    "onnx-shape-negative": _ox(_onnx(shape=(-2,)), "a tensor of the shape"),
    "onnx-shape-of-100": _ox(_onnx(shape=(1,) * 100), "a tensor of the shape|more than 64"),
    "onnx-shape-that-wraps-around": _ox(_onnx(shape=(2**33, 2**33)), "has the shape"),
    "onnx-bytes-of-another-shape": _ox(_onnx(shape=(3,)), "takes 12 bytes, and has 8"),
    "onnx-values-twice": _ox(_onnx(more=message(4, bytes(8))), "says its values twice"),
    "onnx-values-of-another-type": _ox(_onnx(raw=None, more=message(7, b"\1\2")), "has values of another"),
    "onnx-numbers-without-end": _ox(lambda: _onnx(kind=7, raw=None, more=message(7, b"\xff" * 2_000_000)), "number"),
    "onnx-a-gigabyte-of-numbers-sparse": Case(_sparse_numbers, "in 1,000,000,000 bytes", "model.onnx"),
    "onnx-part-of-a-tensor": _ox(_onnx(more=message(3, _number(1, 1))), "is a part of a larger one"),
    "onnx-in-etc-passwd": _ox(_beside(location="/etc/passwd", offset="0", length="8"), "is no file of its folder"),
    "onnx-in-the-folder-above": _ox(_beside(location="../outside/stolen.safetensors"), "is no file of its folder"),
    "onnx-in-memory": _ox(_beside(location="*/_ORT_MEM_ADDR_/*", offset="0"), "is no file of its folder"),
    "onnx-in-a-file-of-escapes": _ox(_beside(location=ESCAPES), "does not exist"),
    "onnx-in-itself": _ox(_beside(location="model.onnx", offset="999", length="8"), "ends .* bytes before tensor w"),
    "onnx-in-a-folder": Case(
        lambda folder: ((folder / "model.onnx").write_bytes(_beside(location=".")), None)[1],
        "is no plain file", "model.onnx"),
    "onnx-in-no-file": _ox(_beside(location="gone.bin"), "gone.bin does not exist"),
    "onnx-in-a-link-that-leads-out": Case(_linked_beside, "lies outside of its folder", "model.onnx"),
    "onnx-beside-cut-short": Case(_fill_beside(9), "ends 3 bytes before tensor w does", "model.onnx"),
    "onnx-offset-negative": _ox(_beside(location="w.bin", offset="-8"), "has the offset '-8'"),
    "onnx-length-of-another-shape": _ox(_beside(location="w.bin", length="9"), "takes 8 bytes, and 9 are in"),
    "onnx-odd-name-of-escapes": _ox(_onnx(name=ESCAPES.encode()), "steer terminals", odd=True),
    "onnx-odd-name-that-leads-out": _ox(_onnx(name=b"../../w"), "leads out of a folder", odd=True),
    "onnx-odd-name-not-utf-8": _ox(_onnx(name=b"\xff\xfe", raw=struct.pack("<2f", float("nan"), 1)), "2 NaN|1 NaN", odd=True),
    "onnx-odd-training": _ox(_onnx() + message(20, b""), "what it is trained by", odd=True),
    "onnx-odd-text": _ox(_onnx() + message(6, ESCAPES.encode() * 10_000), "of which 65,536 were read", odd=True),
}  # fmt: skip
