"""Directions and products of vectors, with gradients that stay finite where there is no direction.

Shapes: N, M vectors, H width; `...` any sizes.
"""

import torch
from torch import Tensor

SHORTEST = 1e-12
"""What is shorter has no direction. The inverse cubed, which a gradient holds, is still a number in fp32."""


def unit(vectors_H: Tensor) -> Tensor:
    """x / ‖x‖ over the last dimension, (..., H); zeros without a gradient where ‖x‖ is at most `SHORTEST`."""
    return vectors_H * inverse_root(vectors_H.square().sum(-1, keepdim=True), SHORTEST**2)


def inverse_root(squares: Tensor, floor: float | Tensor) -> Tensor:
    """1 / √x; zero, with a gradient of zero, where x is at most `floor`."""
    # the root is taken of an infinity there: a value of zero would be multiplied by the infinite slope of 1/√0
    return torch.where(squares > floor, squares, torch.inf).rsqrt()


def product(one_NH: Tensor, other_HM: Tensor) -> Tensor:
    """The product of matrices, or of stacks of them, in their own precision: autocast would round it to half."""
    with torch.autocast(one_NH.device.type, enabled=False):
        return one_NH @ other_HM
