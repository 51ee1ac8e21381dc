"""Numbers in fewer bits: vectors of a cache as arrays that numpy and safetensors can hold, and back.

Shapes: N vectors, K numbers of each.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from entrenar_core.teachers.cache.settings import Precision
from entrenar_core.teachers.cache.shards import Arrays

_BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
_LEAST = torch.finfo(torch.float32).tiny


def packed(name: str, values_NK: Tensor, precision: Precision) -> dict[str, np.ndarray]:
    """Vectors under a name, on the CPU; in 8 bits each with the scale that makes its largest number 127."""
    values_NK = values_NK.detach().cpu()
    if precision == "int8":
        scale_N1 = (values_NK.float().abs().amax(-1, keepdim=True) / 127).clamp_min(_LEAST)
        whole_NK = (values_NK.float() / scale_N1).round().to(torch.int8)
        return {name: whole_NK.numpy(), f"{name}.scale": scale_N1.squeeze(-1).numpy()}
    if precision == "bfloat16":  # which numpy has not
        return {name: values_NK.to(torch.bfloat16).view(torch.uint16).numpy()}
    return {name: values_NK.to(getattr(torch, precision)).numpy()}


def unpacked(name: str, kept: Arrays, precision: Precision, device: torch.device | str) -> Tensor:
    """The vectors of that name again, (N, K)."""
    values_NK = torch.from_numpy(kept[name]).to(device)
    if precision == "bfloat16":
        return values_NK.view(torch.bfloat16)
    if precision == "int8":
        return values_NK.float() * torch.from_numpy(kept[f"{name}.scale"]).to(device).unsqueeze(-1)
    return values_NK


def vector_bytes(width: int, precision: Precision) -> int:
    """What a vector of so many numbers takes."""
    return width * _BYTES[precision] + (4 if precision == "int8" else 0)
