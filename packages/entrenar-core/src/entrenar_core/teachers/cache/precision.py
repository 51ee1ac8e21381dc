"""Numbers in fewer bits: vectors of a cache as arrays that numpy and safetensors can hold, and back.

Shapes: N vectors, K numbers of each, G groups of g of them.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from entrenar_core.teachers.cache.settings import Precision
from entrenar_core.teachers.cache.shards import Arrays

_BYTES: Mapping[Precision, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}
GROUP = 32
"""Numbers that share a scale in 8 bits: a few channels of hidden states are far larger than all others."""
_LEAST = torch.finfo(torch.float32).tiny


def packed(name: str, values_NK: Tensor, precision: Precision) -> dict[str, np.ndarray]:
    """Vectors under a name, on the CPU; in 8 bits with a scale for each `GROUP` of numbers, in bfloat16, that makes the
    largest of them about 127.
    """
    values_NK = values_NK.detach().cpu()
    if precision == "int8":
        groups_NGg = _grouped(values_NK.float())
        scale_NG1 = (groups_NGg.abs().amax(-1, keepdim=True) / 127).clamp_min(_LEAST).to(torch.bfloat16)
        whole_NGg = (groups_NGg / scale_NG1.float()).round().clamp(-127, 127).to(torch.int8)
        whole_NK = whole_NGg.flatten(1)[:, : values_NK.shape[1]].contiguous()
        return {name: whole_NK.numpy(), f"{name}.scale": scale_NG1.squeeze(-1).view(torch.uint16).numpy()}
    if precision == "bfloat16":  # which numpy has not
        return {name: values_NK.to(torch.bfloat16).view(torch.uint16).numpy()}
    return {name: values_NK.to(getattr(torch, precision)).numpy()}


def unpacked(name: str, kept: Arrays, precision: Precision, device: torch.device | str) -> Tensor:
    """The vectors of that name again, (N, K)."""
    values_NK = torch.from_numpy(kept[name]).to(device)
    if precision == "bfloat16":
        return values_NK.view(torch.bfloat16)
    if precision == "int8":
        scale_NG = torch.from_numpy(kept[f"{name}.scale"]).to(device).view(torch.bfloat16).float()
        return (_grouped(values_NK.float()) * scale_NG.unsqueeze(-1)).flatten(1)[:, : values_NK.shape[1]]
    return values_NK


def _grouped(values_NK: Tensor) -> Tensor:
    """(N, K / GROUP, GROUP); the last group is filled up with zeros."""
    filled_NK: Tensor = pad(values_NK, (0, -values_NK.shape[1] % GROUP))
    return filled_NK.view(len(filled_NK), filled_NK.shape[1] // GROUP, GROUP)


def vector_bytes(width: int, precision: Precision) -> int:
    """What a vector of so many numbers takes."""
    return width * _BYTES[precision] + (2 * -(-width // GROUP) if precision == "int8" else 0)
