"""The weights of an artifact: exactly the files that were chosen, and none that happen to lie beside them.

A weight is read when it is asked for, so that a model takes no more memory while it is loaded than it does afterwards,
but for the few weights that are being read.
"""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.quiet import explaining

_AGAIN = "the file is cut short or broken: fetch or export it again"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A tensor in a safetensors file. `weight[...]` reads it, as transformers asks for it, into memory of its own:
    whoever replaces the file later does not change the model.
    """

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        size = math.prod(self.shape) * self.dtype.itemsize
        raw = np.fromfile(self.file, dtype=np.uint8, count=size, offset=self.start)
        if len(raw) != size:
            raise ValueError(f"{self.file} became shorter while it was read")
        return torch.from_numpy(raw).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True, slots=True)
class PickledWeight:
    """A tensor in a PyTorch file, of which memory is a map until it is read."""

    mapped: Tensor

    @property
    def dtype(self) -> torch.dtype:
        return self.mapped.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.mapped.shape)

    def __getitem__(self, _all: EllipsisType) -> Tensor:
        return self.mapped.clone()


Weight = StoredWeight | PickledWeight


def open_weights(artifact: ModelArtifact) -> dict[str, Weight]:
    """Every tensor of a safetensors or PyTorch artifact by name, to be read on the CPU by `weight[...]`.

    Raises:
        ModelError: a file is broken, holds something other than tensors of real numbers, or has a name that another
            has too.
    """
    opened = _pickled if artifact.format is WeightFormat.PYTORCH else _safetensors
    weights: dict[str, Weight] = {}
    for file in artifact.weight_files:
        tensors = opened(file)
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ModelError(f"{twice[0]} is in several weight files of {artifact.reference}", _AGAIN)
        weights |= tensors
    whole = [name for name, weight in weights.items() if name.endswith("weight") and not weight.dtype.is_floating_point]
    if whole:
        raise ModelError(
            f"{whole[0]} of {artifact.reference} holds whole numbers ({weights[whole[0]].dtype}): it is quantised in a "
            "way that only its own library reads",
            "take the model at 16 or 32 bits, or as GGUF",
        )
    return weights


def read_weights(artifact: ModelArtifact) -> dict[str, Tensor]:
    """All of them in memory; raises as `open_weights`."""
    return {name: weight[...] for name, weight in open_weights(artifact).items()}


def _safetensors(file: Path) -> Mapping[str, Weight]:
    with explaining("weights", file, _AGAIN):
        with safe_open(file, "pt"):  # which checks that the header and the file are sound and belong together
            pass
        with file.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(size))
        found: dict[str, Weight] = {}
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _DTYPES:
                raise ModelError(f"{file}: {name} is of the type {entry['dtype']}", "take the model at 16 or 32 bits")
            start = 8 + size + entry["data_offsets"][0]
            found[name] = StoredWeight(file, _DTYPES[entry["dtype"]], tuple(entry["shape"]), start)
    return found


def _pickled(file: Path) -> Mapping[str, Weight]:
    """Reads a pickle without running it. A few bytes of it can still ask for any amount of memory, by compression or
    by a tensor that repeats one number, so both are refused.
    """
    with explaining("weights", file, _AGAIN):
        if not zipfile.is_zipfile(file):
            raise ModelError(f"{file} is of PyTorch before 1.6, or broken", "load and save it with a newer torch.save")
        with zipfile.ZipFile(file) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise ModelError(f"{file} is compressed, which torch.save never does", "take the model in safetensors")
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ModelError(f"{file} holds something other than named tensors", "save the model's state_dict alone")
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ModelError(f"{file}: {name} claims more numbers than are stored", "take the model in safetensors")
    return {str(name): PickledWeight(tensor) for name, tensor in tensors.items()}
