"""Which format a file is in, by its first bytes: its name says what somebody believed."""

import struct

from entrenar_core.errors import ModelError
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.sources import Source
from entrenar_core.units import size as humane

_LOOKED_AT_BYTES = 512
_LFS = b"version https://git-lfs.github.com/spec/"
_OTHERS = (
    (_LFS, "a pointer of Git LFS and not the file itself", "fetch the file: `git lfs pull`, or with `hf download`"),
    (b"APRN", "an APR file of version 1", "write it anew with a program that writes version 2"),
    (b"\x1f\x8b", "compressed by gzip", "unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd", "unpack it first"),
    (b"\x93NUMPY", "an array of numpy", "write it as safetensors first"),
    (b"\x89HDF", "an HDF5 file", "write it as safetensors first"),
    (b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9", "a PyTorch file older than version 1.6", "load and save it with torch"),
)


def sniff(source: Source) -> WeightFormat:
    """The format of a file.

    Raises:
        ModelError: it is none that is known; the error says what it is instead, where that shows.
    """
    first = source.read(0, min(_LOOKED_AT_BYTES, source.size_bytes))
    found = _binary(first, source.size_bytes) or _text(first)
    if found is not None:
        return found
    what, hint = _instead(first, source)
    raise ModelError(f"{source.name} is {what}", hint)


def _binary(first: bytes, size_bytes: int) -> WeightFormat | None:
    if first.startswith(b"GGUF"):
        return WeightFormat.GGUF
    if first.startswith(b"APR\0"):
        return WeightFormat.APR
    if first.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return WeightFormat.PYTORCH
    if len(first) > 8 and first[8:16].lstrip()[:1] == b"{":
        return WeightFormat.SAFETENSORS
    if first[:2] in (b"\x08\x01", *(bytes((8, version)) for version in range(2, 64))) and size_bytes > 8:
        return WeightFormat.ONNX  # the first field of a graph, its version
    return None


def _text(first: bytes) -> WeightFormat | None:
    return WeightFormat.APR_JSON if first.lstrip()[:1] == b"{" else None


def _instead(first: bytes, source: Source) -> tuple[str, str]:
    """What a file is that is no model, and what to do then."""
    if not first:
        return "empty", "fetch or export it again"
    for magic, what, hint in _OTHERS:
        if first.startswith(magic):
            return what + _lfs_size(first), hint
    if first.lstrip()[:9].lower() in (b"<!doctype", b"<html") or first.lstrip()[:5].lower() == b"<html":
        return "a page of the web, not a model", "the download went wrong: it may need a login"
    if first[:1] == b"\x80" or first.startswith((b"(", b"]", b"}")):
        return "a bare pickle", "load and save it with torch, or take a model in safetensors"
    if len(first) >= 8 and struct.unpack("<Q", first[:8])[0] <= source.size_bytes:
        return "cut short or no model", "safetensors, GGUF, APR, ONNX and PyTorch's zip files are read"
    return "in no format of weights that is known", "safetensors, GGUF, APR, ONNX and PyTorch's zip files are read"


def _lfs_size(first: bytes) -> str:
    """How large the file is that an LFS pointer stands for."""
    for line in first.splitlines():
        if first.startswith(_LFS) and line.startswith(b"size ") and line[5:].isdigit():
            return f" of {humane(int(line[5:]))}"
    return ""
