"""How positions are turned and stretched, as a GGUF says it of what transformers' configurations do.

llama.cpp keeps the outcome of some rules, a factor for each frequency, in tensors of their own.

Source: transformers' modeling_rope_utils for the rules; convert_hf_to_gguf.py of llama.cpp for what it keeps of them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from entrenar_core.conversion.gguf_config import ABOVE_ZERO
from entrenar_core.conversion.gguf_families import GgufFamily
from entrenar_core.conversion.gguf_rope import FACTORS, LONG, SHORT, llama3_factors
from entrenar_core.errors import ModelError
from entrenar_core.formats.gguf_values import Value, f32, text, u32

_OTHERWISE = "take another format for it: safetensors or onnx"
_THETA, _LOCAL_THETA, _FULL_THETA = 10_000.0, 10_000.0, 1_000_000.0
_, _IS_ABOVE_ZERO = ABOVE_ZERO
_ORIGINAL = "original_max_position_embeddings"
# Of YaRN, what llama.cpp computes by itself; another value of these, and it would compute something else.
_YARN = {"attention_factor": None, "mscale": None, "mscale_all_dim": None, "truncate": True}


@dataclass(frozen=True, slots=True)
class Turning:
    """Keys below the architecture's name, tensors of factors, and what is to be said."""

    metadata: Mapping[str, Value] = field(default_factory=dict)
    factors: Mapping[str, Sequence[float]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def turning(family: GgufFamily, config: Mapping[str, Any], head_dim: int, max_positions: int) -> Turning:
    """How a model of the family turns queries and keys.

    Raises:
        ModelError: llama.cpp has no such rule.
    """
    if not family.family.rotates:
        return Turning()
    rope = _rope(family, config)
    theta = _number(rope, "rope_theta", _FULL_THETA if family.local_theta else _THETA)
    share = _number({**config, **rope}, "partial_rotary_factor", 1.0)
    if share > 1 or (share < 1 and not family.part_turned):
        what = f"its heads are turned by a part of {share:g} (`partial_rotary_factor`)"
        raise ModelError(f"{what}, which llama.cpp does not do in a {family.name}", _OTHERWISE)
    turned = int(head_dim * share)
    found = {"rope.freq_base": f32(theta), "rope.dimension_count": u32(turned)}
    if family.local_theta:
        found["rope.freq_base_swa"] = f32(_local_theta(config))
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if kind not in _RULES:
        raise ModelError(f"its positions are stretched by the rule {kind}, which llama.cpp does not have", _OTHERWISE)
    original = {key: config[key] for key in (_ORIGINAL,) if config.get(key) is not None}
    rule = _RULES[kind](_Rope({**original, **rope}, theta, turned, max_positions))
    return Turning({**found, **rule.metadata}, rule.factors, rule.notes)


@dataclass(frozen=True, slots=True)
class _Rope:
    """What a configuration says of positions, with the base, the turned places of a head, and the longest text."""

    said: Mapping[str, Any]
    theta: float
    turned: int
    max_positions: int


def _rope(family: GgufFamily, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of layers that see all positions, wherever a version of transformers keeps them."""
    found: dict[str, Any] = {}
    for key in ("rope_parameters", "rope_scaling"):  # of both, the older spelling is what transformers takes
        said = config.get(key) or {}
        if isinstance(said, Mapping) and family.local_theta:
            said = said.get("full_attention", said)
        if not isinstance(said, Mapping):
            raise ModelError(f"`{key}` of config.json is no object", "correct it")
        found |= said
    older = {"rope_theta": config["rope_theta"]} if config.get("rope_theta") is not None else {}
    return {**older, **found}


def _local_theta(config: Mapping[str, Any]) -> float:
    said = config.get("rope_parameters")
    sliding = said.get("sliding_attention") if isinstance(said, Mapping) else None
    if isinstance(sliding, Mapping):
        rule = sliding.get("rope_type") or "default"
        if rule != "default":
            raise ModelError(
                f"positions of its sliding layers are stretched by the rule {rule}, which llama.cpp does not do",
                _OTHERWISE,
            )
        return _number(sliding, "rope_theta", _LOCAL_THETA)
    return _number(config, "rope_local_base_freq", _LOCAL_THETA)


def _number(settings: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = settings.get(key)
    value = default if value is None else value
    if value is not None and _IS_ABOVE_ZERO(value):
        return float(value)
    raise ModelError(f"config.json has no number above zero for `{key}` of its positions", "correct it")


def _numbers(settings: Mapping[str, Any], key: str, count: int) -> list[float]:
    values = settings.get(key)
    if isinstance(values, Sequence) and len(values) == count and all(map(_IS_ABOVE_ZERO, values)):
        return [float(value) for value in values]
    raise ModelError(f"config.json has not {count} numbers above zero for `{key}` of its positions", "correct it")


def _default(_: _Rope) -> Turning:
    return Turning()


def _linear(rope: _Rope) -> Turning:
    return Turning({"rope.scaling.type": text("linear"), "rope.scaling.factor": f32(_number(rope.said, "factor"))})


def _dynamic(rope: _Rope) -> Turning:
    note = "llama.cpp does not stretch positions dynamically: texts of more than"
    return Turning(notes=(f"{note} {rope.max_positions:,} tokens get other answers",))


def _yarn(rope: _Rope) -> Turning:
    said = rope.said
    for key, value in _YARN.items():
        if said.get(key, value) != value:
            what = f"its positions are stretched by YaRN with `{key}: {said[key]}`"
            raise ModelError(f"{what}, which llama.cpp does not have", _OTHERWISE)
    factor = _number(said, "factor")
    original = int(_number(said, _ORIGINAL, rope.max_positions / factor))
    betas = {f"rope.scaling.yarn_{key}": f32(_number(said, key)) for key in ("beta_fast", "beta_slow") if said.get(key)}
    return Turning(
        {
            "rope.scaling.type": text("yarn"),
            "rope.scaling.factor": f32(factor),
            "rope.scaling.original_context_length": u32(original),
            **betas,
        }
    )


def _llama3(rope: _Rope) -> Turning:
    rule = {key: _number(rope.said, key) for key in ("factor", "low_freq_factor", "high_freq_factor", _ORIGINAL)}
    return Turning(factors={FACTORS: llama3_factors(rope.theta, rope.turned // 2, rule)})


def _longrope(rope: _Rope) -> Turning:
    original = int(_number(rope.said, _ORIGINAL))
    if original < 2:
        raise ModelError(f"config.json says that texts had {original:,} tokens once (`{_ORIGINAL}`)", "correct it")
    stretch = _number(rope.said, "factor", rope.max_positions / original)
    usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    half = rope.turned // 2
    factors = {name: _numbers(rope.said, key, half) for name, key in ((LONG, "long_factor"), (SHORT, "short_factor"))}
    note = f"llama.cpp takes the factors for long texts wherever its context is above {original:,} tokens (`-c`)"
    return Turning(
        {
            "rope.scaling.type": text("longrope"),
            "rope.scaling.original_context_length": u32(original),
            "rope.scaling.attn_factor": f32(_number(rope.said, "attention_factor", usual)),
        },
        factors,
        (note,),
    )


_RULES = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "yarn": _yarn,
    "llama3": _llama3,
    "longrope": _longrope,
    "su": _longrope,
}
