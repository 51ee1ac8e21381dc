"""The weights of an artifact in memory: exactly the files that were chosen, and none that happen to lie beside them."""

import zipfile
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from entrenar_core.artifact import ModelArtifact
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.models.quiet import explaining

_AGAIN = "the file is cut short or broken: fetch or export it again"


def read_weights(artifact: ModelArtifact) -> dict[str, Tensor]:
    """Every tensor of a safetensors or PyTorch artifact by name, on the CPU.

    Raises:
        ModelError: a file is broken, holds something other than tensors of real numbers, or has a name that another
            has too.
    """
    read = _pickled if artifact.format is WeightFormat.PYTORCH else _safetensors
    weights: dict[str, Tensor] = {}
    for file in artifact.weight_files:
        tensors = read(file)
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ModelError(f"{twice[0]} is in several weight files of {artifact.reference}", _AGAIN)
        weights |= tensors
    whole = [name for name, tensor in weights.items() if name.endswith("weight") and not tensor.is_floating_point()]
    if whole:
        raise ModelError(
            f"{whole[0]} of {artifact.reference} holds whole numbers ({weights[whole[0]].dtype}): it is quantised in a "
            "way that only its own library reads",
            "take the model at 16 or 32 bits, or as GGUF",
        )
    return weights


def _safetensors(file: Path) -> dict[str, Tensor]:
    with explaining("weights", file, _AGAIN), safe_open(file, "pt") as tensors:
        # Copied out of the memory map: whoever replaces the file must not change the model.
        return {name: tensors.get_tensor(name).clone() for name in tensors.keys()}  # noqa: SIM118 - no mapping


def _pickled(file: Path) -> dict[str, Tensor]:
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
    return {str(name): tensor.clone() for name, tensor in tensors.items()}
