"""Writes a state dict as torch.save does, without torch: a zip of a pickle and of the values, a storage each.

The pickle comes first, since all shapes are known. Values follow as they come, aligned so that torch can map them into
memory; the checksum of an entry goes into its header once the entry is written.

Source: torch/serialization.py of torch 2.13, caffe2/serialize/inline_container.cc, and those of `zips` and `pickles`.
"""

import pickle
import struct
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import accumulate
from operator import mul
from pathlib import Path
from typing import BinaryIO

from entrenar_core.errors import ModelError
from entrenar_core.formats import zips
from entrenar_core.formats.pytorch import BYTE_ORDER, PICKLE, VERSIONS
from entrenar_core.formats.pytorch_values import TORCH_NAMES
from entrenar_core.formats.writing import Outgoing
from entrenar_core.formats.zips import FULL_16, FULL_32

WRITES = tuple(TORCH_NAMES)
_FOLDER, _VERSION = "archive", b"3\n"
_ALIGNMENT = 64
_PADDING_FIELD = 0x4246  # FB: what torch pads with as well
_NEEDED, _NEEDED_64 = 20, 45
_MIDNIGHT, _FIRST_DAY = 0, 33  # always the first day that a zip knows: the same tensors give the same file
_CHECKSUM_AT = 14


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> None:
    """Writes the tensors in their order. Metadata stand as strings beside them in the state dict.

    Raises:
        OSError: the file cannot be written.
        ModelError: a source ends too early, a name comes twice or is no text, or a dtype does not fill whole bytes.
    """
    with path.open("wb") as file:
        archive = ZipWriter(file)
        archive.put(PICKLE, [described := describe(tensors, metadata)], len(described))
        archive.put(BYTE_ORDER, [b"little"], 6)
        for key, tensor in enumerate(tensors):
            archive.put(f"data/{key}", tensor.chunks(), tensor.size_bytes)
        archive.put(VERSIONS[0], [_VERSION], len(_VERSION))
        archive.close()


class ZipWriter:
    """Writes entries that lie in the file as they are, aligned, in the folder of torch's own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.directory: list[bytes] = []

    def put(self, name: str, chunks: Iterable[bytes | memoryview], size_bytes: int) -> None:
        """Writes an entry of so many bytes."""
        header = self.open(name, size_bytes)
        checksum = written = 0
        for chunk in chunks:
            checksum = zlib.crc32(chunk, checksum)
            written += self.file.write(chunk)
        assert written == size_bytes, f"{name}: {written:,} bytes instead of {size_bytes:,}"
        self.finish(name, size_bytes, header, checksum)

    def open(self, name: str, size_bytes: int) -> int:
        """Writes the header of an entry; returns where it stands."""
        place, full = self.file.tell(), f"{_FOLDER}/{name}".encode()
        extra = _wide(size_bytes, size_bytes)
        padding = -(place + zips.LOCAL.size + len(full) + len(extra) + 4) % _ALIGNMENT
        extra += struct.pack("<2H", _PADDING_FIELD, padding) + bytes(padding)
        needed, size = _needed(extra), min(size_bytes, FULL_32)
        lengths = len(full), len(extra)
        self.file.write(
            zips.LOCAL.pack(zips.LOCAL_MAGIC, needed, 0, 0, _MIDNIGHT, _FIRST_DAY, 0, size, size, *lengths)
            + full
            + extra
        )
        return place

    def finish(self, name: str, size_bytes: int, header: int, checksum: int) -> None:
        """Sets the checksum of the entry that ends here, and notes it for the directory."""
        end, full = self.file.tell(), f"{_FOLDER}/{name}".encode()
        self.file.seek(header + _CHECKSUM_AT)
        self.file.write(struct.pack("<I", checksum))
        self.file.seek(end)
        extra = _wide(size_bytes, size_bytes, header)
        needed, size, place = _needed(extra), min(size_bytes, FULL_32), min(header, FULL_32)
        fields = needed, needed, 0, 0, _MIDNIGHT, _FIRST_DAY, checksum, size, size, len(full), len(extra), 0, 0, 0, 0
        self.directory.append(zips.CENTRAL.pack(zips.CENTRAL_MAGIC, *fields, place) + full + extra)

    def close(self) -> None:
        """Writes the directory. Its end record has both lengths, as torch's has, however short the file is."""
        start, count, directory = self.file.tell(), len(self.directory), b"".join(self.directory)
        wide = count, count, len(directory), start
        end = start + len(directory)
        short = min(count, FULL_16), min(count, FULL_16), min(len(directory), FULL_32), min(start, FULL_32)
        self.file.write(
            directory
            + zips.END_64.pack(zips.END_64_MAGIC, zips.END_64.size - 12, _NEEDED_64, _NEEDED_64, 0, 0, *wide)
            + zips.LOCATOR_64.pack(zips.LOCATOR_64_MAGIC, 0, end, 1)
            + zips.END.pack(zips.END_MAGIC, 0, 0, *short, 0)
        )


def _wide(*numbers: int) -> bytes:
    """The field of zip64, with those numbers that need it."""
    long = [number for number in numbers if number >= FULL_32]
    return struct.pack(f"<2H{len(long)}Q", zips.ZIP64_FIELD, 8 * len(long), *long) if long else b""


def _needed(extra: bytes) -> int:
    """The version of zip that reads an entry with these fields."""
    return _NEEDED_64 if extra.startswith(struct.pack("<H", zips.ZIP64_FIELD)) else _NEEDED


def describe(tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> bytes:
    """The pickle of a dict of tensors, the storage of each named by its number, and of strings.

    Raises:
        ModelError: a name comes twice, or a name or string is no text.
    """
    for name, times in Counter([*metadata, *(tensor.name for tensor in tensors)]).items():
        if times > 1:
            raise ModelError(f"{name} comes {times} times, and a state dict has a name once", "rename the others")
    items = [_text(key) + _text(value) for key, value in metadata.items()]
    items += [_text(tensor.name) + _tensor(key, tensor) for key, tensor in enumerate(tensors)]
    return b"".join((pickle.PROTO, b"\2", pickle.EMPTY_DICT, pickle.MARK, *items, pickle.SETITEMS, pickle.STOP))


def _tensor(key: int, tensor: Outgoing) -> bytes:
    """As torch has it: of a storage of its dtype where there is such a class, else of one of bytes."""
    shape, (dtype, storage) = _counted_by_torch(tensor), TORCH_NAMES[tensor.dtype.name]
    kind = _global("torch", storage) if storage else _global("torch.storage", "UntypedStorage")
    length = tensor.size_bytes // tensor.dtype.block_bytes if storage else tensor.size_bytes
    stored = _tuple(_text("storage"), kind, _text(str(key)), _text("cpu"), _integer(length)) + pickle.BINPERSID
    inner = (max(length, 1) for length in reversed(shape[1:]))
    strides = tuple(accumulate(inner, mul, initial=1))[::-1] if shape else ()
    hooks = _global("collections", "OrderedDict") + pickle.EMPTY_TUPLE + pickle.REDUCE
    view = stored, _integer(0), _integers(shape), _integers(strides), pickle.NEWFALSE, hooks
    if storage:
        return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(*view) + pickle.REDUCE
    return _global("torch._utils", "_rebuild_tensor_v3") + _tuple(*view, _global("torch", dtype)) + pickle.REDUCE


def _counted_by_torch(tensor: Outgoing) -> tuple[int, ...]:
    """The shape, where what shares a byte counts as one."""
    pack = tensor.dtype.block
    if pack == 1:
        return tensor.shape
    if tensor.shape[-1] % pack:
        raise ModelError(
            f"tensor {tensor.name} of {tensor.dtype} has rows of {tensor.shape[-1]}, and torch keeps {pack} in a byte",
            "cast it: --dtype F16",
        )
    return (*tensor.shape[:-1], tensor.shape[-1] // pack)


def _global(module: str, name: str) -> bytes:
    return pickle.GLOBAL + f"{module}\n{name}\n".encode()


def _tuple(*items: bytes) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _integers(numbers: Sequence[int]) -> bytes:
    return _tuple(*map(_integer, numbers))


def _integer(number: int) -> bytes:
    if number < 2**31:
        return pickle.BININT + struct.pack("<i", number)
    return pickle.LONG1 + b"\x09" + number.to_bytes(9, "little")


def _text(text: str) -> bytes:
    try:
        raw = text.encode()
    except UnicodeEncodeError as error:
        raise ModelError(f"{text!a} is no text that a PyTorch file can hold", "rename it") from error
    return pickle.BINUNICODE + struct.pack("<I", len(raw)) + raw
