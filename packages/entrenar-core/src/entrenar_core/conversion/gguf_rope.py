"""How a GGUF stretches its positions, as transformers' configurations say it.

llama.cpp keeps the outcome, a factor for each frequency, where transformers keeps the rule that it follows from; so the
rule is looked for that gives these factors, and where none does, the model is refused rather than made wrong.

Source: `rope_parameters` in transformers' modeling_rope_utils, and convert_hf_to_gguf.py of llama.cpp.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from entrenar_core.conversion.gguf_config import ABOVE_ZERO, SIZE, told
from entrenar_core.errors import ModelError

FACTORS, LONG, SHORT = "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_TYPES = ("linear", "yarn")
_CLOSE = 1e-4


def rope_of(metadata: Mapping[str, Any], factors: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
    """The `rope_parameters` of a model, with its theta; None where its positions are not stretched.

    Args:
        factors: the values of its tensors of factors, by name.

    Raises:
        ModelError: transformers has no rule for them; or a value is none that could stretch positions.
    """
    name = metadata.get("general.architecture")
    theta = float(told(metadata, f"{name}.rope.freq_base", ABOVE_ZERO) or 10_000.0)
    original = told(metadata, f"{name}.rope.scaling.original_context_length", SIZE)
    if FACTORS in factors:
        return {"rope_theta": theta, **_llama3(_sound(FACTORS, factors), theta)}
    if LONG in factors and SHORT in factors:
        both = {"long_factor": _sound(LONG, factors), "short_factor": _sound(SHORT, factors)}
        return {
            "rope_theta": theta,
            "rope_type": "longrope",
            **both,
            **_known("original_max_position_embeddings", original),
        }
    kind = metadata.get(f"{name}.rope.scaling.type")
    factor = told(metadata, f"{name}.rope.scaling.factor", ABOVE_ZERO) if kind in _TYPES else None
    if factor is not None:
        return {"rope_theta": theta, "rope_type": kind, "factor": float(factor),
                **_known("original_max_position_embeddings", original)}  # fmt: skip
    return None


def _sound(name: str, factors: Mapping[str, Sequence[float]]) -> list[float]:
    """The values of a tensor of factors: a tensor may have any shape, and hold anything."""
    found = factors[name]
    what, fits = ABOVE_ZERO
    if isinstance(found, Sequence) and found and all(map(fits, found)):
        return list(found)
    raise ModelError(f"{name} is no list of factors, each a {what}", "convert the original model instead")


def _llama3(factors: Sequence[float], theta: float) -> dict[str, Any]:
    """The rule of Llama 3.1: short waves stay, long ones are stretched, those between partly."""
    rule = {"factor": float(max(factors)), **_LLAMA3}
    expected = llama3_factors(theta, len(factors), rule)
    if any(abs(found - wanted) > _CLOSE * wanted for found, wanted in zip(factors, expected, strict=True)):
        raise ModelError(
            f"{FACTORS} stretches positions by a rule that transformers has no name for",
            "convert the original model instead",
        )
    return {"rope_type": "llama3", **rule}


def llama3_factors(theta: float, count: int, rule: Mapping[str, float]) -> list[float]:
    """The factor of each of `count` frequencies, by the `factor`, `low_freq_factor`, `high_freq_factor` and
    `original_max_position_embeddings` of a rule.
    """
    return [_stretch(2 * math.pi * theta ** (place / count), rule) for place in range(count)]


def _stretch(wave: float, rule: Mapping[str, float]) -> float:
    factor, original = rule["factor"], rule["original_max_position_embeddings"]
    low, high = rule["low_freq_factor"], rule["high_freq_factor"]
    if wave < original / high:
        return 1.0
    if wave > original / low:
        return factor
    smooth = (original / wave - low) / (high - low)
    return 1 / ((1 - smooth) / factor + smooth)


def _known(key: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {key: value}
