"""The mixes of types that a model is quantised to, by the names that users write.

A mix is named after its base type; `choosing` says which tensors get another one. Source: `llama_ftype` in llama.h and
the options of llama-quantize, https://github.com/ggml-org/llama.cpp.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from entrenar_core.errors import UsageError
from entrenar_core.formats.dtypes import DTYPES, Dtype


@dataclass(frozen=True, slots=True)
class Mix:
    """A way to quantise a model.

    `file_type` is what `general.file_type` says of it, `bits` how many a weight takes on average where Llama 3.1 8B is
    quantised so, scales and tensors of other types included.
    """

    name: str
    file_type: int
    base: Dtype
    bits: float
    description: str

    @property
    def quantised(self) -> bool:
        """Whether it puts weights into blocks, not only rounds them."""
        return self.base.kind == "quantised"

    def __str__(self) -> str:
        return f"{self.description}; {self.bits:.3g} bits per weight"


_ALL = (
    Mix("f32", 0, DTYPES["F32"], 32.0, "as exact as weights are trained"),
    Mix("f16", 1, DTYPES["F16"], 16.0, "half precision: small numbers exactly, nothing beyond 65,504"),
    Mix("bf16", 32, DTYPES["BF16"], 16.0, "what most models are published in"),
    Mix("q8_0", 7, DTYPES["Q8_0"], 8.50, "hardly a difference, and fast to make"),
    Mix("q4_0", 2, DTYPES["Q4_0"], 4.64, "fast everywhere; q4_k_s has the same size and is better"),
    Mix("q4_1", 3, DTYPES["Q4_1"], 5.10, "q4_0 with an offset in each block"),
    Mix("q5_0", 8, DTYPES["Q5_0"], 5.57, "fast everywhere; q5_k_s has the same size and is better"),
    Mix("q5_1", 9, DTYPES["Q5_1"], 6.04, "q5_0 with an offset in each block"),
    Mix("q2_k", 10, DTYPES["Q2_K"], 3.16, "very small, and clearly worse"),
    Mix("q2_k_s", 21, DTYPES["Q2_K"], 2.97, "smaller still; needs an importance matrix"),
    Mix("q3_k_s", 11, DTYPES["Q3_K"], 3.64, "small, and noticeably worse"),
    Mix("q3_k_m", 12, DTYPES["Q3_K"], 4.00, "q3_k_s with more bits for values and the way down"),
    Mix("q3_k_l", 13, DTYPES["Q3_K"], 4.30, "q3_k_m with still more bits for them"),
    Mix("q4_k_s", 14, DTYPES["Q4_K"], 4.67, "q4_k_m with fewer bits for values and the way down"),
    Mix("q4_k_m", 15, DTYPES["Q4_K"], 4.89, "a good balance of size and quality"),
    Mix("q5_k_s", 16, DTYPES["Q5_K"], 5.57, "q5_k_m with fewer bits for values and the way down"),
    Mix("q5_k_m", 17, DTYPES["Q5_K"], 5.70, "a small loss"),
    Mix("q6_k", 18, DTYPES["Q6_K"], 6.56, "a very small loss"),
    Mix("iq4_nl", 25, DTYPES["IQ4_NL"], 4.68, "levels that are not evenly spaced, in blocks of 32; slow to make"),
    Mix("iq4_xs", 30, DTYPES["IQ4_XS"], 4.46, "levels that are not evenly spaced, in blocks of 256; slow to make"),
)
MIXES: Mapping[str, Mix] = {mix.name: mix for mix in _ALL}
"""Every mix by its name."""
ALIASES: Mapping[str, str] = {
    "fp32": "f32",
    "fp16": "f16",
    "q3_k": "q3_k_m",
    "q4_k": "q4_k_m",
    "q5_k": "q5_k_m",
}
"""Other spellings of their names."""


def mix_named(name: str) -> Mix:
    """The mix of a name, in small letters or large ones.

    Raises:
        UsageError: there is none of this name.
    """
    spelled = name.strip().lower().replace("-", "_")
    found = MIXES.get(ALIASES.get(spelled, spelled))
    if found is not None:
        return found
    near = difflib.get_close_matches(spelled, [*MIXES, *ALIASES], n=1)
    raise UsageError(
        f"{name!r} is not a type to quantise to",
        f"did you mean {near[0]}?" if near else f"the types are {', '.join(MIXES)}",
    )
