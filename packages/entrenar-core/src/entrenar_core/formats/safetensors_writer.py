"""Writes a safetensors file: the header first, since all sizes are known, then the bytes, each tensor's at its place.

Where much is copied, the header is padded until the data lies in its pages as it did before: see `copying`. Source: the
format's description in https://github.com/huggingface/safetensors.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from entrenar_core.errors import ModelError
from entrenar_core.formats.copying import PAGE_BYTES, put
from entrenar_core.formats.filling import Placed, fill
from entrenar_core.formats.safetensors import DTYPE_NAMES, METADATA
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.writing import Outgoing

WRITES = DTYPE_NAMES
_ALIGNMENT = 8
_MUCH_BYTES = 1 << 24  # what is copied at once for the header to be padded to a page


def write(path: Path, tensors: Sequence[Outgoing], metadata: Mapping[str, str]) -> None:
    """Writes the tensors in their order.

    Raises:
        OSError: the file cannot be written.
        ModelError: a source ends too early, or a tensor has a name that the format keeps for itself.
    """
    runs = list(_runs(tensors))
    head = header(tensors, metadata, _start(runs))
    placed: list[Placed] = []
    at = len(head)
    for run in runs:
        placed.append(Placed(run, at))
        at += placed[-1].size_bytes
    with path.open("wb", buffering=0) as file:
        put(file.fileno(), memoryview(head), 0)
        fill(file.fileno(), placed)


def _start(runs: Sequence[Sequence[Outgoing]]) -> int | None:
    """Where in a page the data should start; None where nothing is gained by it."""
    origin = runs[0][0].origin if runs and sum(tensor.size_bytes for tensor in runs[0]) >= _MUCH_BYTES else None
    return None if origin is None or origin[1] % _ALIGNMENT else origin[1] % PAGE_BYTES


def header(tensors: Sequence[Outgoing], metadata: Mapping[str, str], start: int | None = None) -> bytes:
    """The length of the header and the header, padded by spaces so that the data is aligned.

    Args:
        start: where in a page of the file the data is to start.

    Raises:
        ModelError: a tensor has the name that metadata has in a header.
    """
    if any(tensor.name == METADATA for tensor in tensors):
        raise ModelError(
            f"a tensor is called {METADATA}, as the metadata of a safetensors file is",
            "give it another name where the model was made, or take another --to",
        )
    entries: dict[str, object] = {METADATA: dict(metadata)} if metadata else {}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.size_bytes
        entries[tensor.name] = {
            "dtype": tensor.dtype.name, "shape": list(tensor.shape), "data_offsets": [offset, end],
        }  # fmt: skip
        offset = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    over = 8 + len(text)
    text += b" " * (-over % _ALIGNMENT if start is None else (start - over) % PAGE_BYTES)
    return len(text).to_bytes(8, "little") + text


def _runs(tensors: Iterable[Outgoing]) -> Iterator[tuple[Outgoing, ...]]:
    """The tensors in their order, those together that lie one behind another already."""
    run: list[Outgoing] = []
    end: tuple[FileSource, int] | None = None
    for tensor in tensors:
        if run and (tensor.origin is None or tensor.origin != end):
            yield tuple(run)
            run = []
        run.append(tensor)
        end = tensor.origin and (tensor.origin[0], tensor.origin[1] + tensor.size_bytes)
    if run:
        yield tuple(run)
