"""PyTorch files made by hand, so that they can say what torch would not write."""

import io
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.formats.pytorch import read
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.formats.tensors import Header, StoredTensor

if TYPE_CHECKING:
    import torch

START = pickle.PROTO + b"\2"
LOCAL, CENTRAL, END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


def header(path: Path) -> Header:
    with FileSource(path) as source:
        return read(source)


def header_of(data: bytes, path: Path) -> Header:
    path.write_bytes(data)
    return header(path)


def raw(tensor: "torch.Tensor") -> bytes:
    """The bytes of a tensor, row by row."""
    import torch

    if not tensor.numel():
        return b""
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).numpy().tobytes()


def raw_in(path: Path, tensor: StoredTensor) -> bytes:
    """The bytes of a tensor, gathered from where the header says that they are."""
    import numpy

    if tensor.strides is None:
        return path.read_bytes()[tensor.offset : tensor.end]
    size = tensor.dtype.block_bytes
    flat = numpy.frombuffer(path.read_bytes()[tensor.offset :], numpy.uint8)
    strides = (*(size * stride for stride in tensor.strides), 1)
    return numpy.lib.stride_tricks.as_strided(flat, (*tensor.shape, size), strides).tobytes()


class Ranges:
    """A file as a server gives it, and what was asked for."""

    def __init__(self, source: Source) -> None:
        self.source, self.name, self.size_bytes = source, source.name, source.size_bytes
        self.asked: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        self.asked.append((offset, size))
        return self.source.read(offset, size)

    def close(self) -> None:
        self.source.close()


def text(value: str) -> bytes:
    return pickle.BINUNICODE + struct.pack("<I", len(value.encode())) + value.encode()


def integer(value: int) -> bytes:
    return pickle.LONG1 + bytes((size := value.bit_length() // 8 + 1,)) + value.to_bytes(size, "little", signed=True)


def named(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def tuple_of(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def called(function: bytes, *arguments: bytes) -> bytes:
    return function + tuple_of(*arguments) + pickle.REDUCE


def dict_of(items: Mapping[str, bytes]) -> bytes:
    pairs = b"".join(text(key) + value for key, value in items.items())
    return pickle.EMPTY_DICT + pickle.MARK + pairs + pickle.SETITEMS


def pickled(items: Mapping[str, bytes]) -> bytes:
    return START + dict_of(items) + pickle.STOP


def storage(key: str = "0", kind: str = "FloatStorage", length: int = 4) -> bytes:
    module = "torch.storage" if kind == "UntypedStorage" else "torch"
    return tuple_of(text("storage"), named(module, kind), text(key), text("cpu"), integer(length)) + pickle.BINPERSID


def tensor(
    stored: bytes | None = None,
    *,
    offset: int = 0,
    shape: Sequence[int] = (4,),
    strides: Sequence[int] = (1,),
    more: tuple[bytes, ...] = (),
) -> bytes:
    """A view of four floats, unless told otherwise."""
    sizes = (tuple_of(*map(integer, numbers)) for numbers in (shape, strides))
    hooks = called(named("collections", "OrderedDict"))
    arguments = (stored or storage(), integer(offset), *sizes, pickle.NEWFALSE, hooks, *more)
    return called(named("torch._utils", "_rebuild_tensor_v2"), *arguments)


def zipped(
    pickle_bytes: bytes, entries: Mapping[str, bytes] | None = None, *, compression: int = zipfile.ZIP_STORED
) -> bytes:
    """A zip as torch lays it out, with 16 bytes of storage unless told otherwise."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr("model/data.pkl", pickle_bytes)
        archive.writestr("model/version", b"3\n")
        for name, data in (entries if entries is not None else {"data/0": bytes(16)}).items():
            archive.writestr(f"model/{name}", data)
    return buffer.getvalue()
