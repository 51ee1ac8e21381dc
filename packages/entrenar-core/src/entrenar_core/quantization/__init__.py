"""Weights to the types of llama.cpp: which type each tensor of a model gets, and the bytes of its rows."""

from typing import TYPE_CHECKING

from entrenar_core.lazily import importing

if TYPE_CHECKING:
    from entrenar_core.quantization.choosing import MixedModel, dtypes_of, in_order, needs_importance
    from entrenar_core.quantization.encoding import decode_into, encode_blocks, require_writable, writable_here
    from entrenar_core.quantization.mixes import MIXES, Mix, mix_named

__all__ = [
    "MIXES",
    "Mix",
    "MixedModel",
    "decode_into",
    "dtypes_of",
    "encode_blocks",
    "in_order",
    "mix_named",
    "needs_importance",
    "require_writable",
    "writable_here",
]

_HOMES = {
    **dict.fromkeys(("MixedModel", "dtypes_of", "in_order", "needs_importance"), "choosing"),
    **dict.fromkeys(("decode_into", "encode_blocks", "require_writable", "writable_here"), "encoding"),
    **dict.fromkeys(("MIXES", "Mix", "mix_named"), "mixes"),
}
__getattr__ = importing(__name__, _HOMES)
