"""Reads llama.cpp's files of importance matrices, a GGUF or the older form, and writes the GGUF.

In the GGUF, `NAME.in_sum2` has the sums of squares of the tensor NAME and `NAME.counts` over how many tokens; of the
older form, numbers are 32 bits each, little-endian: how many entries; of each the length of its name, the name, over
how many chunks, how many values, the values; then, in younger files, how many chunks in all, the length of the name of
a text, and that. Nothing that a file says is believed: lengths are held against the bytes that are left.

Source: llama.cpp's tools/imatrix/imatrix.cpp and common/imatrix-loader.cpp.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.gguf import GgufHeader, read_header
from entrenar_core.formats.gguf_values import text, texts, u32
from entrenar_core.formats.names import shown
from entrenar_core.formats.sources import Cursor, FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.importance.matrix import ImportanceMatrix, Inputs
from entrenar_core.units import size as humane

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SUMS, _COUNTS = ".in_sum2", ".counts"
_TYPE, _DATASETS = "general.type", "imatrix.datasets"
_CHUNK_COUNT, _CHUNK_SIZE = "imatrix.chunk_count", "imatrix.chunk_size"
# The largest models with experts have about one gigabyte; zeros that take no room on a disk would be without end.
_MAX_BYTES = 1 << 31
_MAX_NAME_BYTES, _MIN_ENTRY_BYTES = 65_535, 16
_COUNT_LIMIT = 1 << 63
_HINT = "name a file that llama.cpp's imatrix tool wrote, or compute one from a text"
Fail = Callable[[str], ModelError]


def read_importance(path: Path) -> ImportanceMatrix:
    """Reads a file of either form.

    Raises:
        NotFoundError: there is no such file.
        ModelError: it cannot be read or is no importance matrix, lengths in it do not add up, or a value is negative or
            no number.
    """

    def fail(what: str) -> ModelError:
        return ModelError(f"{path} is not a sound importance matrix: {what}", _HINT)

    with FileSource(path) as source:
        if source.size_bytes >= 4 and source.read(0, 4) == b"GGUF":
            return _of_gguf(source, read_header(path, arrays=True), fail)
        return _of_older(Cursor(source, fail), fail)


def _of_gguf(source: FileSource, header: GgufHeader, fail: Fail) -> ImportanceMatrix:
    kind = header.metadata.get(_TYPE)
    if kind != "imatrix":
        raise fail(f"{_TYPE} is {shown(repr(kind))}, not 'imatrix'")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    names = dict.fromkeys(
        name.removesuffix(suffix) for suffix in (_SUMS, _COUNTS) for name in tensors if name.endswith(suffix)
    )
    if not names:
        raise fail("it has no sums of any tensor")
    wanted = sum(tensors[name + _SUMS].size_bytes for name in names if name + _SUMS in tensors)
    if wanted > _MAX_BYTES:
        raise fail(f"its sums take {humane(wanted)}, and at most {humane(_MAX_BYTES)} are read")
    inputs = {name: _stored(source, tensors, name, fail) for name in names}
    datasets = header.metadata.get(_DATASETS)
    return ImportanceMatrix(
        inputs,
        _whole(header.metadata.get(_CHUNK_COUNT)),
        _whole(header.metadata.get(_CHUNK_SIZE)),
        tuple(map(str, datasets)) if isinstance(datasets, tuple) else (),
    )


def _whole(value: object) -> int:
    return value if type(value) is int and 0 < value < 1 << 32 else 0


def _stored(source: FileSource, tensors: Mapping[str, StoredTensor], name: str, fail: Fail) -> Inputs:
    import numpy as np

    sums, counts = (tensors.get(name + suffix) for suffix in (_SUMS, _COUNTS))
    if sums is None or counts is None:
        raise fail(f"{shown(name)} has {'counts and no sums' if sums is None else 'sums and no counts'}")
    if {sums.dtype.name, counts.dtype.name} != {"F32"}:
        raise fail(f"the sums and counts of {shown(name)} are not in F32")
    if not counts.values or not sums.values or sums.values % counts.values:
        raise fail(f"{shown(name)} has {sums.values:,} sums for {counts.values:,} counts")
    sums_MI = _numbers(source.read(sums.offset, sums.size_bytes)).reshape(counts.values, -1)
    counts_M = np.rint(_numbers(source.read(counts.offset, counts.size_bytes)))
    _require_sound(sums_MI, f"a sum of {shown(name)}", fail)
    _require_sound(counts_M, f"a count of {shown(name)}", fail)
    if counts_M.max() >= _COUNT_LIMIT:
        raise fail(f"a count of {shown(name)} is {counts_M.max():g}")
    return Inputs(sums_MI, counts_M.astype(np.int64))


def _numbers(data: bytes) -> "NDArray[np.float32]":
    import numpy as np

    return np.frombuffer(data, "<f4")


def _require_sound(values: "NDArray[np.float32]", what: str, fail: Fail) -> None:
    import numpy as np

    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        raise fail(f"{what} is {values[wrong][0]:g}")


def _of_older(cursor: Cursor, fail: Fail) -> ImportanceMatrix:
    entries = cursor.number("i") if cursor.left >= 4 else 0
    if entries < 1 or entries * _MIN_ENTRY_BYTES > cursor.left:
        raise fail("it is neither a GGUF nor the older form of file")
    inputs: dict[str, Inputs] = {}
    read = 0
    for number in range(1, entries + 1):
        name = _text(cursor, f"the name of entry {number}", fail)
        if not name or name in inputs:
            raise fail(f"entry {number} has {f'the name {shown(name)} of another' if name else 'no name'}")
        calls, values = cursor.number("i"), cursor.number("i")
        read += 4 * max(values, 0)
        if calls < 0 or values < 1 or read > _MAX_BYTES:
            raise fail(f"{shown(name)} has {values:,} values of {calls:,} chunks")
        inputs[name] = _entry(_numbers(cursor.take(4 * values)), calls, name, fail)
    if cursor.left < 4:
        return ImportanceMatrix(inputs, 0, 0)
    chunks = max(cursor.number("i"), 0)
    dataset = _text(cursor, "the name of its text", fail) if cursor.left >= 4 else ""
    return ImportanceMatrix(inputs, chunks, 0, (dataset,) if dataset else ())


def _entry(sums_I: "NDArray[np.float32]", calls: int, name: str, fail: Fail) -> Inputs:
    import numpy as np

    _require_sound(sums_I, f"a value of {shown(name)}", fail)
    return Inputs(sums_I[None], np.asarray([max(calls, 1)]))  # those of no chunk are taken as they are


def _text(cursor: Cursor, what: str, fail: Fail) -> str:
    size = cursor.number("i")
    if not 0 <= size <= _MAX_NAME_BYTES:
        raise fail(f"{what} has {size:,} bytes")
    try:
        return cursor.take(size).decode()
    except UnicodeDecodeError as error:
        raise fail(f"{what} is not UTF-8") from error


def write_importance(path: Path, matrix: ImportanceMatrix, *, force: bool = False) -> None:
    """Writes the GGUF that llama.cpp's imatrix and quantize tools read.

    Raises:
        OutputError: there is a file of this name, and `force` is not set; or it cannot be written.
        ModelError: the name of a tensor is too long for GGUF.
    """
    from entrenar_core.conversion.files import replacing
    from entrenar_core.formats.gguf_writer import write

    metadata = {
        _TYPE: text("imatrix"),
        _DATASETS: texts(matrix.datasets),
        _CHUNK_COUNT: u32(matrix.chunk_count),
        _CHUNK_SIZE: u32(matrix.chunk_size),
    }
    tensors = [
        _outgoing(name + suffix, values)
        for name in sorted(matrix.inputs)
        for suffix, values in (
            (_SUMS, matrix.inputs[name].sums_MI),
            (_COUNTS, matrix.inputs[name].counts_M[:, None]),
        )
    ]
    with replacing(path, folder=False, force=force) as work:
        write(work, tensors, metadata)


def _outgoing(name: str, values: "NDArray[np.float32] | NDArray[np.int64]") -> Outgoing:
    data = values.astype("<f4").tobytes()
    return Outgoing(name, DTYPES["F32"], values.shape, lambda: (data,))
