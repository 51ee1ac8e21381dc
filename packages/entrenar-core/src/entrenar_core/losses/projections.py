"""From the student's width to the teacher's, so that their hidden states can be compared.

A projection trains with the student and is no part of it: it is not saved with its weights.
"""

from typing import Literal

from torch import nn

Projection = Literal["none", "linear", "mlp"]


def make_projection(kind: Projection, width_in: int, width_out: int) -> nn.Module:
    """A module from (..., `width_in`) to (..., `width_out`), initialised from torch's global generator.

    `linear` is W x + b, as in Romero et al. 2015 and Jiao et al. 2020; `mlp` is W₂ GELU(W₁ x + b₁) + b₂, as wide
    inside as its output. Weights start orthogonal and biases at zero, so that a linear projection to a greater or
    equal width begins by keeping lengths and angles (Saxe et al. 2014). `none` is the identity.

    Raises:
        ValueError: `kind` is unknown, a width is not positive, or widths differ under `none`.
    """
    if width_in < 1 or width_out < 1:
        raise ValueError(f"widths must be positive, got {width_in} and {width_out}")
    if kind == "none":
        if width_in != width_out:
            raise ValueError(f"hidden states of widths {width_in} and {width_out} need a projection: linear or mlp")
        return nn.Identity()
    if kind == "linear":
        return _orthogonal(width_in, width_out)
    if kind == "mlp":
        return nn.Sequential(_orthogonal(width_in, width_out), nn.GELU(), _orthogonal(width_out, width_out))
    raise ValueError(f"a projection must be none, linear or mlp, got {kind!r}")


def _orthogonal(width_in: int, width_out: int) -> nn.Linear:
    layer = nn.Linear(width_in, width_out)
    nn.init.orthogonal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
