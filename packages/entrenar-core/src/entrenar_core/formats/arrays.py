"""A stored tensor as an array of numpy: mapped from its file where numpy knows its dtype, decoded where it does not.

Nothing is read before values are looked at, and a mapped array takes no memory of its own. Files must stay as they are
while an array of theirs is in use: to touch what was cut off is a crash that no program can catch.
"""

from typing import TYPE_CHECKING, Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from entrenar_core.stored_model import StoredModel

NUMPY_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "C64": "<c8", "C128": "<c16", "BOOL": "?",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "u1",
}  # fmt: skip
"""The dtypes that numpy has itself, with its names for them."""


def array_of(model: "StoredModel", tensor: StoredTensor) -> "NDArray[Any]":
    """The values of a tensor in its shape, read-only.

    They are a view of the file for the dtypes of `NUMPY_DTYPES`, whatever order they lie in, and a decoded copy in
    float32 for others, such as BF16, FP8 and blocks of quantised weights.

    Raises:
        ModelError: the model is on the Hub, or the dtype cannot be decoded.
    """
    import numpy as np

    if tensor.dtype.name not in NUMPY_DTYPES:
        return _decoded(model, tensor)
    dtype = np.dtype(NUMPY_DTYPES[tensor.dtype.name])
    if tensor.inline:
        return np.frombuffer(model.inline(tensor), dtype).reshape(tensor.shape)
    source = model.sources[tensor.file]
    if not isinstance(source, FileSource):
        raise ModelError(f"the values of {model.reference} are not here", "fetch it first; only its header was read")
    if not tensor.values:
        return np.frombuffer(b"", dtype).reshape(tensor.shape)
    mapped = np.memmap(source.path, np.uint8, "r")
    strides = tensor.strides and tuple(stride * dtype.itemsize for stride in tensor.strides)
    found: NDArray[Any] = np.ndarray(tensor.shape, dtype, mapped, tensor.offset, strides)
    return found


def _decoded(model: "StoredModel", tensor: StoredTensor) -> "NDArray[Any]":
    import numpy as np

    from entrenar_core.formats.blocks import value_blocks

    blocks = [block.reshape(-1) for block in value_blocks(model, tensor)]
    values = np.concatenate(blocks) if blocks else np.empty(0, np.float32)
    values.flags.writeable = False
    return values.reshape(tensor.shape)
