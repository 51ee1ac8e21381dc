"""Which tensors of an APR file are quantised, and to which of the two types of blocks that the format has.

As in llama.cpp's mixes, embeddings and head get more bits. Source: the dtypes of APR version 2.
"""

from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.quantization.mixes import Mix

APR_BASES = ("Q4_K", "Q6_K")
"""The types of blocks that ggml has too."""
_KEPT = ("norm", "ln_", "position", "token_type", "rotary")
_LOOKED_UP = ("embed", "wte", "lm_head")


def apr_blocks(name: str, shape: tuple[int, ...], mix: Mix) -> Dtype | None:
    """The type of a tensor by its name in transformers; None for one that stays as it is."""
    inner = name.lower()
    blocks = DTYPES["Q6_K"] if any(part in inner for part in _LOOKED_UP) else mix.base
    matrix = len(shape) == 2 and inner.endswith("weight") and not any(part in inner for part in _KEPT)
    return blocks if matrix and shape[-1] % blocks.block == 0 else None
