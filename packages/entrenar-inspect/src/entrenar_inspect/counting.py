"""How many weights the tensors of a model stand for: packed ones count as what they unpack to, tied ones once."""

from collections.abc import Mapping
from typing import Any

from entrenar_core.architectures.detection import Detection
from entrenar_core.architectures.layouts import anywhere
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

Tensors = Mapping[str, StoredTensor]
_FOURS = ("weight.absmax", "absmax", "weight_scale_2")  # beside these, a byte holds two weights
_WORD_BITS = 32


def weights_of(model: StoredModel, detection: Detection | None) -> Mapping[str, int]:
    """The number of weights of each tensor that has any, by its name."""
    aside = _aside(model.tensors, detection)
    bits = _bits(model.config)
    counted: dict[str, int] = {}
    places = set()
    for name, tensor in model.tensors.items():
        place = (tensor.file, tensor.offset, tensor.size_bytes, tensor.inline and name)
        if name in aside or (place in places and tensor.size_bytes):
            continue
        places.add(place)
        packed = _packed(name, tensor, model.tensors, bits)
        if packed > 1 or tensor.dtype.kind in ("float", "quantised", "complex") or tensor.dtype.name == "I8":
            counted[name] = tensor.values * packed
    return counted


def _aside(tensors: Tensors, detection: Detection | None) -> frozenset[str]:
    """What is no weight: buffers, and what belongs to quantised weights."""
    if detection is not None:
        return frozenset((*detection.companions, *detection.buffers))
    known = anywhere()
    endings = tuple(f".{name}" for name in (*known.companions, *known.buffers))
    return frozenset(name for name in tensors if name.endswith(endings))


def _packed(name: str, tensor: StoredTensor, tensors: Tensors, bits: int | None) -> int:
    """How many weights one stored value holds."""
    module, _, last = name.rpartition(".")
    kind = tensor.dtype.name
    if kind == "U8" and any(f"{module}.{four}" in tensors for four in _FOURS):
        return 2
    if last == "qweight" and kind == "I32":
        return _words(tensor, module, tensors) or (_WORD_BITS // bits if bits else 1)
    if last == "weight_packed" and kind in ("I32", "U8"):
        return (_WORD_BITS if kind == "I32" else 8) // (bits or 4)
    return 1


def _words(tensor: StoredTensor, module: str, tensors: Tensors) -> int | None:
    """Of GPTQ and AWQ: how many weights a word has follows from the shapes beside it."""
    inputs, scales = tensors.get(f"{module}.g_idx"), tensors.get(f"{module}.scales")
    if inputs is not None and len(tensor.shape) == 2 and tensor.shape[0]:
        return inputs.values // tensor.shape[0]
    if scales is not None and len(tensor.shape) == len(scales.shape) == 2 and tensor.shape[1]:
        return scales.shape[1] // tensor.shape[1]
    return None


def _bits(config: Mapping[str, Any] | None) -> int | None:
    """What the configuration says that a quantised weight has."""
    told = (config or {}).get("quantization_config")
    bits = told.get("bits") if isinstance(told, Mapping) else None
    return bits if isinstance(bits, int) and 0 < bits <= 8 else None
