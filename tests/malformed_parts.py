"""What malformed files are made of: builders that write sound files, but for what they are told otherwise."""

import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Fill = Callable[[Path], object]
Content = bytes | Callable[[], bytes]

ESCAPES = "\x1b[2J\x1b]0;owned\x07"
"""Clears a screen and renames its window."""


@dataclass(frozen=True, slots=True)
class Case:
    """A malformed model in a folder of its own.

    `fill` writes it there, and `model` is what of it is named on the command line: the folder where it is empty. `says`
    is a pattern of what is said of it. `odd`: `info` reads it, and only `validate --strict` finds something.
    """

    fill: Fill
    says: str
    model: str = ""
    odd: bool = False


def file(name: str, content: Content, says: str, *, odd: bool = False) -> Case:
    """A single file."""

    def fill(folder: Path) -> None:
        (folder / name).write_bytes(content() if callable(content) else content)

    return Case(fill, says, name, odd)


def sparse(name: str, head: bytes, size: int, says: str, *, odd: bool = False) -> Case:
    """A single file that starts with `head` and is `size` bytes long, of which the others take no room on a disk."""

    def fill(folder: Path) -> None:
        write_sparse(folder / name, head, size)

    return Case(fill, says, name, odd)


def write_sparse(path: Path, head: bytes, size: int) -> None:
    """Writes `head`, and zeros up to `size`."""
    with path.open("wb") as target:
        target.write(head)
        target.truncate(size)


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8), **more: Any) -> dict[str, Any]:
    """A tensor in a safetensors header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


def safetensors(
    header: bytes | str | Mapping[str, Any] | None = None, data: bytes = bytes(8), *, length: int | None = None
) -> bytes:
    """A file with two floats; a header that is given as bytes or text is written as it is."""
    header = {"w": entry()} if header is None else header
    if isinstance(header, Mapping):
        header = json.dumps(header)
        header += " " * (-len(header) % 8)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def text(value: str | bytes) -> bytes:
    """A text as GGUF writes it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, raw: bytes) -> bytes:
    """A key of GGUF's metadata and its value."""
    return text(key) + struct.pack("<I", kind) + raw


def array(kind: int, length: int, raw: bytes = b"") -> bytes:
    """The value of an array."""
    return struct.pack("<IQ", kind, length) + raw


def row(name: str | bytes = "w", shape: Sequence[int] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    """A tensor in GGUF's table; its shape is in ggml's order."""
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


LLAMA = pair("general.architecture", 8, text("llama"))


def gguf(
    pairs: Sequence[bytes] = (LLAMA,),
    rows: Sequence[bytes] | None = None,
    data: bytes = bytes(32),
    *,
    version: int = 3,
    num_rows: int | None = None,
    num_pairs: int | None = None,
) -> bytes:
    """A file with eight floats."""
    rows = (row(),) if rows is None else rows
    counts = (len(rows) if num_rows is None else num_rows, len(pairs) if num_pairs is None else num_pairs)
    head = b"GGUF" + struct.pack("<I2Q", version, *counts) + b"".join((*pairs, *rows))
    return head + bytes(-len(head) % 32) + data


APR_HEADER = struct.Struct("<4s2BHIQIQQI20s")
APR_FIELDS = ("magic", "major", "minor", "flags", "count", "at", "size", "index_at", "data_at", "sum", "zeros")
APR_METADATA: Mapping[str, Any] = {
    "model_type": "", "license": None, "data_source": None, "data_license": None, "total_size": 16, "param_count": 4,
}  # fmt: skip


def apr_row(
    name: bytes = b"w", shape: Sequence[int] = (4,), *, code: int = 0, offset: int = 0, size: int = 16
) -> bytes:
    """A tensor in APR's index."""
    head = struct.pack("<H", len(name)) + name + struct.pack("<2B", code, len(shape))
    return head + struct.pack(f"<{len(shape)}Q2Q", *shape, offset, size)


def apr(
    metadata: Mapping[str, Any] | bytes = APR_METADATA,
    rows: Sequence[bytes] = (apr_row(),),
    data: bytes = bytes(64),
    *,
    resum: bool = True,
    **fields: Any,
) -> bytes:
    """A file with four floats; `fields` are those of its header, and `sum` its checksum."""
    raw = metadata if isinstance(metadata, bytes) else json.dumps(metadata).encode()
    index = b"".join(rows)
    index_at = 64 + len(raw) + -len(raw) % 64
    data_at = index_at + len(index) + -len(index) % 64
    known = (b"APR\0", 2, 0, 0x400, len(rows), 64, len(raw), index_at, data_at, 0, bytes(20))
    told = dict(zip(APR_FIELDS, known, strict=True)) | fields
    head = APR_HEADER.pack(*told.values())
    if "sum" not in fields:
        told["sum"] = zlib.crc32(head[44:], zlib.crc32(head[:40]))
        head = APR_HEADER.pack(*told.values())
    body = head + raw + bytes(-len(raw) % 64) + index + bytes(-len(index) % 64) + data
    return body + (zlib.crc32(body) if resum else 0).to_bytes(4, "little")


def apr_json(tensor: Any = None, *, name: str = "w", **parts: Any) -> bytes:
    """The readable form with one tensor of two floats."""
    tensor = {"shape": [2], "dtype": "f32", "data": [1.0, 2.0]} if tensor is None else tensor
    known = {"version": "1.0", "metadata": APR_METADATA, "tensors": {name: tensor}}
    return json.dumps(known | parts).encode()


def nested(depth: int, opening: str = "[", closing: str = "]") -> str:
    """Brackets in brackets."""
    return opening * depth + closing * depth
