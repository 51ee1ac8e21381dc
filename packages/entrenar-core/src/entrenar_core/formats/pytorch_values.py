"""What the pickle of a PyTorch file speaks of, as plain records: storages, and tensors that are views of them.

Source: torch/_utils.py, torch/_tensor.py and torch/storage.py of torch 2.13.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.pickles import Constructor, Unacceptable

TORCH_NAMES: Mapping[str, tuple[str, str | None]] = {
    "F64": ("float64", "DoubleStorage"),
    "F32": ("float32", "FloatStorage"),
    "F16": ("float16", "HalfStorage"),
    "BF16": ("bfloat16", "BFloat16Storage"),
    "F8_E4M3": ("float8_e4m3fn", None),
    "F8_E5M2": ("float8_e5m2", None),
    "F8_E4M3FNUZ": ("float8_e4m3fnuz", None),
    "F8_E5M2FNUZ": ("float8_e5m2fnuz", None),
    "F8_E8M0": ("float8_e8m0fnu", None),
    "F4": ("float4_e2m1fn_x2", None),
    "I64": ("int64", "LongStorage"),
    "I32": ("int32", "IntStorage"),
    "I16": ("int16", "ShortStorage"),
    "I8": ("int8", "CharStorage"),
    "U64": ("uint64", None),
    "U32": ("uint32", None),
    "U16": ("uint16", None),
    "U8": ("uint8", "ByteStorage"),
    "BOOL": ("bool", "BoolStorage"),
    "C64": ("complex64", "ComplexFloatStorage"),
    "C128": ("complex128", "ComplexDoubleStorage"),
}
"""What torch calls our dtypes, and the class of their storages; later ones are in storages of bytes.

One of torch's F4 is two of ours, which share a byte.
"""
_LONGEST_DEVICE = 32


@dataclass(frozen=True, slots=True)
class StorageType:
    """A class of storages; one of bytes has no dtype."""

    dtype: Dtype | None


@dataclass(frozen=True, slots=True)
class TensorType:
    """A class of tensors that are nothing but tensors."""


@dataclass(frozen=True, slots=True)
class Untold:
    """A value that is of no interest."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The entry `data/key` of the zip, which has `length` values, or bytes where it has no dtype."""

    key: str
    dtype: Dtype | None
    length: int

    @property
    def size_bytes(self) -> int:
        return self.length * (1 if self.dtype is None else self.dtype.block_bytes)


@dataclass(slots=True)
class View:
    """A tensor as the pickle has it: nothing of offset, shape and strides is checked.

    `changed`: its values are the conjugates or the negatives of what is stored.
    """

    storage: Storage
    dtype: Dtype
    offset: object
    shape: tuple[object, ...]
    strides: tuple[object, ...]
    changed: bool


def _view(arguments: tuple[object, ...], dtype: Dtype, flags: object) -> View:
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise Unacceptable
    if not isinstance(flags, dict) or len(flags) > 2:  # `conj` and `neg`
        raise Unacceptable
    return View(storage, dtype, offset, shape, strides, any(flags.values()))


def _rebuild_v2(arguments: tuple[object, ...]) -> View:
    """Storage, offset, shape, strides, requires_grad, hooks, and flags where one is on."""
    if len(arguments) not in (6, 7) or not isinstance(arguments[0], Storage) or arguments[0].dtype is None:
        raise Unacceptable
    return _view(arguments, arguments[0].dtype, arguments[6] if len(arguments) > 6 else {})


def _rebuild_v3(arguments: tuple[object, ...]) -> View:
    """As v2, of a storage of bytes, with a dtype before the flags."""
    if len(arguments) not in (7, 8) or not isinstance(arguments[0], Storage) or arguments[0].dtype is not None:
        raise Unacceptable
    if not isinstance(arguments[6], Dtype):
        raise Unacceptable
    return _view(arguments, arguments[6], arguments[7] if len(arguments) > 7 else {})


def _parameter(arguments: tuple[object, ...]) -> View:
    """A tensor, requires_grad, hooks; and attributes, where there are some."""
    if len(arguments) not in (3, 4) or not isinstance(arguments[0], View):
        raise Unacceptable
    return arguments[0]


def _with_attributes(arguments: tuple[object, ...]) -> View:
    """What rebuilds it, a class, the arguments of the former, attributes."""
    if len(arguments) != 4 or not isinstance(arguments[1], TensorType) or not isinstance(arguments[2], tuple):
        raise Unacceptable
    if arguments[0] is _V2:  # and not this one again: nothing nests
        return _rebuild_v2(arguments[2])
    if arguments[0] is _V3:
        return _rebuild_v3(arguments[2])
    raise Unacceptable


def _size(arguments: tuple[object, ...]) -> tuple[object, ...]:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise Unacceptable
    return arguments[0]


def _device(arguments: tuple[object, ...]) -> str:
    kind, index = (*arguments, None, None)[:2]
    if not isinstance(kind, str) or len(kind) > _LONGEST_DEVICE or not isinstance(index, int | None):
        raise Unacceptable
    return kind if index is None else f"{kind}:{index}"


def _of_none(name: str, make: Callable[[], object]) -> Constructor:
    def build(arguments: tuple[object, ...]) -> object:
        if arguments:
            raise Unacceptable
        return make()

    return Constructor(name, build)


def _of_one(name: str, kind: type) -> Constructor:
    """A copy of its one argument in torch. To copy it would take time, and to share it would let later instructions
    change both, so that what is in it is not told.
    """

    def build(arguments: tuple[object, ...]) -> object:
        if len(arguments) != 1 or not isinstance(arguments[0], kind):
            raise Unacceptable
        return Untold()

    return Constructor(name, build)


def _encoded(arguments: tuple[object, ...]) -> bytes:
    """Bytes, which protocol 2 has as a string."""
    if len(arguments) != 2 or not isinstance(arguments[0], str) or arguments[1] != "latin1":
        raise Unacceptable
    try:
        return arguments[0].encode("latin1")
    except UnicodeEncodeError as error:
        raise Unacceptable from error


_CONTAINERS: Mapping[str, Constructor] = {
    constructor.name: constructor
    for constructor in (
        _of_none("collections.OrderedDict", dict),
        _of_one("collections.Counter", dict),
        _of_one("builtins.set", list),
        _of_one("builtins.frozenset", list),
        _of_none("builtins.bytes", bytes),
        Constructor("_codecs.encode", _encoded),
    )
}
_V2 = Constructor("torch._utils._rebuild_tensor_v2", _rebuild_v2)
_V3 = Constructor("torch._utils._rebuild_tensor_v3", _rebuild_v3)
NAMES: Mapping[str, object] = {
    **_CONTAINERS,
    **{f"torch.{name}": DTYPES[dtype] for dtype, (name, _) in TORCH_NAMES.items()},
    **{f"torch.{storage}": StorageType(DTYPES[dtype]) for dtype, (_, storage) in TORCH_NAMES.items() if storage},
    "torch.storage.UntypedStorage": StorageType(None),
    "torch.Tensor": TensorType(),
    "torch.nn.parameter.Parameter": TensorType(),
    **{
        constructor.name: constructor
        for constructor in (
            _V2,
            _V3,
            Constructor("torch._utils._rebuild_parameter", _parameter),
            Constructor("torch._utils._rebuild_parameter_with_state", _parameter),
            Constructor("torch._tensor._rebuild_from_type_v2", _with_attributes),
            Constructor("torch.Size", _size),
            Constructor("torch.device", _device),
        )
    },
}
"""What a pickle may name, and what stands for it here."""
