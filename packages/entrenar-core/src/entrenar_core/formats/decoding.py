"""The bytes of a dtype to the numbers that they stand for: every dtype of `DTYPES`.

Values that share a byte lie in it from its lowest bits up: the first of two in the low nibble, four of six bits each as
one little-endian number of three bytes. Sources: for F4 torch's Float4_e2m1fn_x2.h and onnx.proto3 (which says the same
of I4 and U4); nobody writes F6 down in a file, and the OCP Microscaling specification 1.0, which defines its values,
leaves its order open. FP8 as in P. Micikevicius et al., FP8 Formats for Deep Learning, 2022, the FNUZ kinds as in
B. Noune et al., 8-bit Numerical Formats for Deep Neural Networks, 2022. Blocks of ggml are decoded by `gguf`.

A block of APR_Q4 is a half, the scale, and 32 nibbles of q + 8: value 2i in the low nibble of byte i, 2i + 1 in its
high one. APR_Q8 starts with one float, the scale of all its bytes.
"""

from typing import TYPE_CHECKING, Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES, GGML_BLOCKS, Dtype

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What numpy has itself, and what holds its values exactly. A complex number is its two parts.
_PLAIN = {
    "F64": ("<f8", "<f8"),
    "F32": ("<f4", "<f4"),
    "I64": ("<i8", "<i8"),
    "I32": ("<i4", "<f8"),
    "I16": ("<i2", "<f4"),
    "I8": ("<i1", "<f4"),
    "U64": ("<u8", "<u8"),
    "U32": ("<u4", "<f8"),
    "U16": ("<u2", "<f4"),
    "U8": ("<u1", "<f4"),
    "C64": ("<f4", "<f4"),
    "C128": ("<f8", "<f8"),
}
# Bits of the exponent and of the mantissa, the bias, and the codes that are no finite number.
_SMALL_FLOATS: dict[str, tuple[int, int, int, dict[int, float]]] = {
    "F8_E4M3": (4, 3, 7, {0x7F: float("nan"), 0xFF: float("nan")}),
    "F8_E5M2": (
        *(5, 2, 15),
        {0x7C: float("inf"), 0xFC: -float("inf")} | dict.fromkeys((0x7D, 0x7E, 0x7F, 0xFD, 0xFE, 0xFF), float("nan")),
    ),
    "F8_E4M3FNUZ": (4, 3, 8, {0x80: float("nan")}),
    "F8_E5M2FNUZ": (5, 2, 16, {0x80: float("nan")}),
    "F6_E2M3": (2, 3, 1, {}),
    "F6_E3M2": (3, 2, 3, {}),
    "F4": (2, 1, 1, {}),
}
_NOT_DECODED = ("Q8_1", "Q8_K")  # ggml computes with these, and stores no tensor so
_GROUP_VALUES = 65_536  # of what `gguf` decodes at once: sixteen rows, whose numbers stay in a cache


def decodable(dtype: Dtype) -> bool:
    """Whether `decode` knows its values: not those of a type that only its file knows, nor what ggml never stores."""
    return dtype.name in DTYPES and dtype.name not in _NOT_DECODED


def numbers_per_value(dtype: Dtype) -> int:
    """How many numbers a value of a tensor is: the two parts of a complex one, else one."""
    return 2 if dtype.kind == "complex" else 1


def decode(
    raw: "NDArray[np.uint8]", dtype: Dtype, *, scale: float | None = None, room: "NDArray[np.float32] | None" = None
) -> "NDArray[Any]":
    """The numbers that whole blocks of bytes stand for, in one dimension, in a type that holds each exactly.

    That is float64 for F64, C128, I32 and U32, int64 and uint64 for I64 and U64, else float32. It may be a view of
    `raw`. Complex numbers are pairs: real part, imaginary part. A BOOL is 1 unless its byte is 0.

    Args:
        scale: of APR_Q8, where `raw` starts after it.
        room: is written over by BF16 and F16, if there is enough of it: who decodes block after block spares himself
            new memory for each.

    Raises:
        ModelError: the dtype is not `decodable`.
    """
    import numpy as np

    if not decodable(dtype):
        raise ModelError(f"values of the type {dtype} are not known", "convert the file with the program that wrote it")
    if dtype.name in ("BF16", "F16"):
        return _half(raw, dtype, room)
    if dtype.name in _PLAIN:
        stored, exact = _PLAIN[dtype.name]
        plain: NDArray[Any] = raw.view(stored).astype(exact, copy=False)
        return plain
    if dtype.name == "BOOL":
        return np.not_equal(raw, 0).astype(np.float32)
    if dtype.name.startswith("APR"):
        return _apr_q4(raw) if dtype.name == "APR_Q4" else _apr_q8(raw, scale)
    if dtype.kind == "quantised":
        return _ggml(raw, dtype)
    return _small(raw, dtype)


def _half(raw: "NDArray[np.uint8]", dtype: Dtype, room: "NDArray[np.float32] | None") -> "NDArray[np.float32]":
    """Numbers of 16 bits; a BF16 is the upper half of a float32."""
    import numpy as np

    size = len(raw) // 2
    values = np.empty(size, "<f4") if room is None or len(room) < size else room[:size]
    if dtype.name == "F16":
        np.copyto(values, raw.view("<f2"))
    else:
        bits = values.view("<u4")
        np.copyto(bits, raw.view("<u2"))
        np.left_shift(bits, 16, out=bits)
    return values


def _small(raw: "NDArray[np.uint8]", dtype: Dtype) -> "NDArray[np.float32]":
    """Numbers of eight bits and fewer, by the table of their codes."""
    if dtype.name.startswith("F6"):
        return _codes(dtype.name)[_six_bits(raw)]
    if dtype.block == 1:
        return _codes(dtype.name)[raw]
    pairs = _codes(dtype.name)[_nibbles()].view("<u8").reshape(-1)  # two floats go as one number, which is faster
    return pairs[raw].view("<f4")


def _codes(name: str) -> "NDArray[np.float32]":
    """What each code of a small dtype stands for."""
    import numpy as np

    if name == "F8_E8M0":  # an exponent alone
        return np.append(np.ldexp(np.float32(1), np.arange(-127, 128)), np.nan).astype(np.float32)
    if name in ("I4", "U4"):
        codes = np.arange(16)
        return (codes - 16 * (codes > 7) * (name == "I4")).astype(np.float32)
    exponent_bits, mantissa_bits, bias, special = _SMALL_FLOATS[name]
    codes = np.arange(1 << (1 + exponent_bits + mantissa_bits))
    mantissa = codes & ((1 << mantissa_bits) - 1)
    exponent = (codes >> mantissa_bits) & ((1 << exponent_bits) - 1)
    leading = np.where(exponent > 0, 1 << mantissa_bits, 0)  # a subnormal number has none
    sign = np.where(codes >> (exponent_bits + mantissa_bits), -1.0, 1.0)
    values = sign * np.ldexp(mantissa + leading, np.maximum(exponent, 1) - bias - mantissa_bits)
    values[list(special)] = list(special.values())
    return np.asarray(values, np.float32)


def _nibbles() -> "NDArray[np.uint8]":
    """The two nibbles of every byte, low before high; of shape (256, 2)."""
    import numpy as np

    every = np.arange(256, dtype=np.uint8)
    return np.stack([every & 15, every >> 4], axis=1)


def _six_bits(raw: "NDArray[np.uint8]") -> "NDArray[np.uint8]":
    """The four codes of every three bytes."""
    import numpy as np

    first, second, third = raw.reshape(-1, 3).T
    shifted = (first, (first >> 6) | (second << 2), (second >> 4) | (third << 4), third >> 2)
    codes: NDArray[np.uint8] = np.stack(shifted, axis=1).reshape(-1) & np.uint8(63)
    return codes


def _apr_q4(raw: "NDArray[np.uint8]") -> "NDArray[np.float32]":
    import numpy as np

    blocks = raw.reshape(-1, DTYPES["APR_Q4"].block_bytes)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float32)
    levels = _nibbles()[blocks[:, 2:]].reshape(len(blocks), 32).astype(np.float32) - 8
    with np.errstate(invalid="ignore"):  # an infinite scale times 0
        return (levels * scales).reshape(-1)


def _apr_q8(raw: "NDArray[np.uint8]", scale: float | None) -> "NDArray[np.float32]":
    import numpy as np

    head = DTYPES["APR_Q8"].head_bytes
    if scale is None:
        scale, raw = float(raw[:head].copy().view("<f4")[0]), raw[head:]
    with np.errstate(invalid="ignore", over="ignore"):
        return raw.view("<i1").astype(np.float32) * np.float32(scale)


def _ggml(raw: "NDArray[np.uint8]", dtype: Dtype) -> "NDArray[np.float32]":
    import numpy as np
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    kind = GGMLQuantizationType(next(code for code, (name, *_) in GGML_BLOCKS.items() if name == dtype.name))
    blocks = raw.reshape(-1, dtype.block_bytes)
    row = max(_GROUP_VALUES // 16 // dtype.block, 1)  # blocks that lie in a row, as far as `gguf` is concerned
    whole = len(blocks) // row * row
    with np.errstate(all="ignore"):  # scales that are not finite
        parts = [
            dequantize(part.reshape(-1, width * dtype.block_bytes), kind).reshape(-1)
            for part, width in ((blocks[:whole], row), (blocks[whole:], 1))
            if len(part)
        ]
    return np.concatenate([np.empty(0, np.float32), *parts]) if len(parts) != 1 else parts[0]
