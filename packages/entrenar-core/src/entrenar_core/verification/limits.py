"""How far a GGUF may be from the model that it was made of, by what its weights are stored as.

A limit is there to find files that are wrong, not types that lose much. What an honest file loses differs more from
model to model than from type to type: Q4_0 costs LLaMA 3 8B a KL divergence of 0.07 nats, SmolLM2 135M 0.32, and a
model of 29,000 random weights, of which each changes all that follows, 0.55. So the table says what a large trained
model loses, two to three times over, and a file that is beyond it is judged by its own original: that gets Gaussian
noise of the size of the type's errors, and reads the same again. Noise costs SmolLM2 0.32, too, and the random model
0.44; queries in the wrong order cost SmolLM2 2.8 at Q4_0 and 3.2 in 32 bits. So a file is wrong where it loses more
than `MARGIN` times what noise does.

What no limit finds is a mistake that costs less than the type: the keys of one layer of SmolLM2 in the wrong order
(0.10) are found in 32 bits and drown in what Q5_0 costs; another epsilon of its norms (0.000004) is found in no type.

Sources: for KL and perplexity the scoreboard of LLaMA 3 8B in llama.cpp's tools/perplexity/README.md, without an
importance matrix (KL: Q8_0 0.0014, Q6_K 0.0055, Q5_K_M 0.011, Q5_0 0.022, Q4_K_M 0.031, Q4_0 0.072, Q3_K_M 0.10,
Q3_K_S 0.23, Q2_K 0.45; F16 beside BF16 0.00003). SmolLM2, all matrices of one type, over 100 positions: F32 0.000004,
F16 0.000008, BF16 0.0002, Q8_0 0.0045, Q6_K 0.014, Q5_0 0.10, Q4_K 0.072, Q4_0 0.32, Q3_K 0.49, Q2_K 1.9. Vectors of
MiniLM, the smallest cosine of 16: F32 0.999998, F16 0.999997, BF16 0.99997, Q8_0 0.9987, Q5_0 0.980, Q4_0 0.924
(noise: 0.921).
"""

from collections.abc import Mapping
from dataclasses import dataclass

from entrenar_core.errors import UsageError

MARGIN = 2.0
"""How many times as much as noise of the type's size a file may lose."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a file of a type may differ by.

    `kl` is the mean KL(original ‖ GGUF) in nats, `perplexity` by how much that of the text may differ, as a share
    of the original's, `cosine` the smallest between vectors, and `difference` the largest |Δ log p| in nats, of a
    type that is exact enough to promise one. `error` is the noise: the root mean square error of the type's weights
    as a share of that of the weights, measured on Gaussian ones, with what llama.cpp loses since it rounds what it
    multiplies them by.
    """

    kl: float
    perplexity: float
    cosine: float
    error: float
    difference: float | None = None


_Q5 = {"perplexity": 0.05, "cosine": 0.98}
_Q4_K = {"perplexity": 0.1, "cosine": 0.95, "error": 0.072}
_Q4 = {"perplexity": 0.15, "cosine": 0.92}
_IQ4 = {"perplexity": 0.1, "cosine": 0.94, "error": 0.077}
_Q3 = {"cosine": 0.8, "error": 0.152}
_Q2 = {"perplexity": 1.0, "cosine": 0.5, "error": 0.3}

LIMITS: Mapping[str, Limits] = {
    "f32": Limits(kl=0.001, perplexity=0.005, cosine=0.9999, error=0.0001, difference=0.02),
    "f16": Limits(kl=0.001, perplexity=0.01, cosine=0.9999, error=0.0005),
    "bf16": Limits(kl=0.002, perplexity=0.02, cosine=0.9998, error=0.003),
    "q8_0": Limits(kl=0.005, perplexity=0.05, cosine=0.998, error=0.008),
    "q6_k": Limits(kl=0.015, perplexity=0.05, cosine=0.99, error=0.02),
    "q5_k_m": Limits(kl=0.03, error=0.037, **_Q5),
    "q5_k_s": Limits(kl=0.05, error=0.037, **_Q5),
    "q5_1": Limits(kl=0.05, error=0.039, **_Q5),
    "q5_0": Limits(kl=0.06, error=0.044, **_Q5),
    "q4_k_m": Limits(kl=0.08, **_Q4_K),
    "q4_k_s": Limits(kl=0.1, **_Q4_K),
    "iq4_nl": Limits(kl=0.1, **_IQ4),
    "iq4_xs": Limits(kl=0.1, **_IQ4),
    "q4_1": Limits(kl=0.2, error=0.079, **_Q4),
    "q4_0": Limits(kl=0.2, error=0.087, **_Q4),
    "q3_k_l": Limits(kl=0.25, perplexity=0.25, **_Q3),
    "q3_k_m": Limits(kl=0.3, perplexity=0.25, **_Q3),
    "q3_k_s": Limits(kl=0.6, perplexity=0.6, **_Q3),
    "q2_k": Limits(kl=1.0, **_Q2),
    "q2_k_s": Limits(kl=1.0, **_Q2),
}
"""By the name of the type, or of the mix of types; of a mix, the error is that of the type that most weights have."""


def limits_of(mix: str) -> Limits:
    """The limits of a type.

    Raises:
        UsageError: it is not in the table.
    """
    if mix.lower() not in LIMITS:
        raise UsageError(f"how far a GGUF of the type {mix} may differ is not known", f"known are {', '.join(LIMITS)}")
    return LIMITS[mix.lower()]
