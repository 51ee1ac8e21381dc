"""The bytes and values of a stored tensor, a block at a time: what casts and copies read."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from entrenar_core.errors import ModelError
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entrenar_core.stored_model import StoredModel

BLOCK_BYTES = 4_000_000


def raw_blocks(model: "StoredModel", tensor: StoredTensor, block_bytes: int = BLOCK_BYTES) -> Iterator[memoryview]:
    """The bytes of a tensor, row by row, as views of one buffer."""
    if tensor.inline:
        yield memoryview(model.inline(tensor))
        return
    if tensor.strides is not None:
        yield _gathered(model, tensor)
        return
    buffer = memoryview(bytearray(min(block_bytes, tensor.size_bytes)))
    source = model.sources[tensor.file]
    if not isinstance(source, FileSource):
        raise ModelError(f"the values of {model.reference} are not here", "fetch it first; only its header was read")
    for start in range(0, tensor.size_bytes, block_bytes):
        block = buffer[: min(block_bytes, tensor.size_bytes - start)]
        source.read_into(tensor.offset + start, block)
        yield block


def value_blocks(model: "StoredModel", tensor: StoredTensor) -> "Iterator[NDArray[np.floating]]":
    """The values of a tensor, row by row, as floats that hold them exactly.

    Raises:
        ModelError: the type of its values is not known.
    """
    import numpy as np

    from entrenar_core.formats.decoding import decodable, decode

    if not tensor.values:
        return
    if not decodable(tensor.dtype):
        raise ModelError(
            f"tensor {tensor.name} is of the type {tensor.dtype}, whose values are not known",
            "convert the file with the program that wrote it",
        )
    if tensor.dtype.head_bytes:  # one scale for all of it
        whole = b"".join(bytes(block) for block in raw_blocks(model, tensor))
        scale = float(np.frombuffer(whole, "<f4", 1)[0])
        yield decode(np.frombuffer(whole, np.uint8)[tensor.dtype.head_bytes :], tensor.dtype, scale=scale)
        return
    block_bytes = BLOCK_BYTES // tensor.dtype.block_bytes * tensor.dtype.block_bytes
    left = tensor.values
    for block in raw_blocks(model, tensor, block_bytes):
        values = decode(np.frombuffer(block, np.uint8), tensor.dtype)[:left]  # the last block may be padded
        left -= len(values)
        yield values


def _gathered(model: "StoredModel", tensor: StoredTensor) -> memoryview:
    """Values that lie in another order, put row by row."""
    import numpy as np

    assert tensor.strides is not None
    size = tensor.dtype.block_bytes
    span = sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)) + 1
    source = model.sources[tensor.file]
    flat = np.frombuffer(source.read(tensor.offset, span * size), np.dtype((np.void, size)))
    strides = tuple(stride * size for stride in tensor.strides)
    gathered = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, tensor.shape, strides))
    return gathered.reshape(-1).view(np.uint8).data
