"""How a number is stored: every dtype that the formats know, by one name, with its bits.

Plain dtypes are spelled as safetensors spells them, blocks of quantised weights as ggml does. A size follows from a
shape alone, which is how every reader checks what a file announces. Sources: the safetensors format; ggml.c,
`type_traits`; onnx.proto3, `TensorProto.DataType`; APR version 2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["float", "integer", "boolean", "complex", "quantised"]


@dataclass(frozen=True, slots=True)
class Dtype:
    """Values are stored in blocks of `block` values that take `block_bytes`; a plain dtype has blocks of one.

    `along_rows`: a block lies inside a row, which must be a multiple of it; else only all values together must be, or
    not even these where the last block is `padded`. `head_bytes` come once before the blocks of a tensor that has any.
    """

    name: str
    kind: Kind
    block: int
    block_bytes: int
    along_rows: bool = False
    head_bytes: int = 0
    padded: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def bits(self) -> float:
        """Of one value, with its share of what its block keeps beside it."""
        return 8 * self.block_bytes / self.block

    def size_bytes(self, shape: Sequence[int]) -> int | None:
        """Of a tensor of this shape; None where its values do not fill whole blocks."""
        values = math.prod(shape)
        cut = shape[-1] if self.along_rows and shape else values
        if cut % self.block and not self.padded:
            return None
        return (self.head_bytes if values else 0) + -(-values // self.block) * self.block_bytes


_PLAIN: tuple[tuple[str, Kind, int, int], ...] = (
    ("F64", "float", 1, 8),
    ("F32", "float", 1, 4),
    ("F16", "float", 1, 2),
    ("BF16", "float", 1, 2),
    ("F8_E4M3", "float", 1, 1),
    ("F8_E5M2", "float", 1, 1),
    ("F8_E4M3FNUZ", "float", 1, 1),
    ("F8_E5M2FNUZ", "float", 1, 1),
    ("F8_E8M0", "float", 1, 1),
    ("F6_E2M3", "float", 4, 3),
    ("F6_E3M2", "float", 4, 3),
    ("F4", "float", 2, 1),
    ("I64", "integer", 1, 8),
    ("I32", "integer", 1, 4),
    ("I16", "integer", 1, 2),
    ("I8", "integer", 1, 1),
    ("U64", "integer", 1, 8),
    ("U32", "integer", 1, 4),
    ("U16", "integer", 1, 2),
    ("U8", "integer", 1, 1),
    ("I4", "integer", 2, 1),
    ("U4", "integer", 2, 1),
    ("BOOL", "boolean", 1, 1),
    ("C64", "complex", 1, 8),
    ("C128", "complex", 1, 16),
)
# ggml's number: name, weights in a block, bytes of a block.
GGML_BLOCKS = {
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}
_APR = (
    Dtype("APR_Q4", "quantised", 32, 18, padded=True),  # a half of the largest / 7, then 32 nibbles
    Dtype("APR_Q8", "quantised", 1, 1, head_bytes=4),  # one float of the largest / 127, then a byte each
)

DTYPES: Mapping[str, Dtype] = {
    **{name: Dtype(name, kind, block, size) for name, kind, block, size in _PLAIN},
    **{name: Dtype(name, "quantised", block, size, along_rows=True) for name, block, size in GGML_BLOCKS.values()},
    **{dtype.name: dtype for dtype in _APR},
}
"""Every dtype by its name."""
