"""Which type each tensor of a model is quantised to: llama.cpp's mixes, rule by rule.

Tensors that matter more than others get more bits: the head, the values of attention, the way down of the MLP, and of
these the first and the last layers. A type whose blocks do not divide a row gives way to one whose blocks do.

Rules count tensors of a kind in the order in which llama.cpp visits them, layer by layer and by name. Its conditions on
names that no family here has (state spaces, vision, audio) are left out; those for Falcon and for experts are for a
GGUF of another program that is quantised again. Source: llama-quant.cpp of https://github.com/ggml-org/llama.cpp.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from entrenar_core.errors import UsageError
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.quantization.mixes import Mix

Part = Literal["head", "embedding", "values", "keys", "attention_output", "down", "other"]


@dataclass(frozen=True, slots=True)
class MixedModel:
    """What of a model its types depend on.

    `architecture` is GGUF's name of it, `tensors` the shapes, in torch's order, by the names that GGUF has for them.
    """

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    tensors: Mapping[str, tuple[int, ...]]
    experts: int = 0

    @property
    def tied(self) -> bool:
        """Whether the embedding is the head too."""
        return "output.weight" not in self.tensors

    @property
    def grouped(self) -> bool:
        """Whether four queries and more share keys and values, which are so small then that more bits cost little."""
        return bool(self.kv_heads) and self.heads // self.kv_heads >= 4

    @property
    def seventy_billion(self) -> bool:
        """What llama.cpp takes for a model of 70 B weights."""
        llama = self.architecture == "llama" and self.heads != self.kv_heads
        return self.layers == 80 and (llama or self.architecture == "qwen2")


def in_order(names: Iterable[str]) -> list[str]:
    """Names of tensors in the order of llama.cpp's files: those of no layer, then layer by layer, each by name."""
    return sorted(names, key=lambda name: (_layer(name), name))


def dtypes_of(model: MixedModel, mix: Mix, *, importance: bool = False) -> dict[str, Dtype]:
    """The type of every tensor, in the order of `in_order`.

    Args:
        importance: whether there is an importance matrix, with which some layers need no more bits, others do.

    Raises:
        UsageError: a tensor of the mix needs an importance matrix, and there is none.
    """
    chosen = dict.fromkeys(in_order(model.tensors), DTYPES["F32"])
    for name, place in _places(model, mix, importance, tuple(chosen)):
        row = model.tensors[name][-1]
        chosen[name] = _dividing(_wanted(place, row), row) if mix.quantised else mix.base
        if not importance and needs_importance(name, chosen[name], mix):
            raise UsageError(
                f"{mix.name} needs an importance matrix: without one, {chosen[name]} makes nonsense of {name}",
                "give one, or take q2_k, which needs none",
            )
    return chosen


def quantisable(name: str, shape: tuple[int, ...]) -> bool:
    """Whether llama.cpp quantises this tensor: matrices of weights, but no small ones whose every number counts."""
    matrix = len(shape) > 1 and any(length > 1 for length in shape[:-1])
    return matrix and name.endswith("weight") and not any(part in name for part in _KEPT)


def needs_importance(name: str, dtype: Dtype, mix: Mix) -> bool:
    """Whether llama.cpp refuses to write this tensor so without importances of its columns."""
    return mix.name == "q2_k_s" and dtype.name == "Q2_K" and name not in (*_EMBEDDINGS, _HEAD)


_KEPT = ("_norm.weight", "ffn_gate_inp.weight", "position_embd.weight", "token_types.weight", "attn_rel_b.weight")
_HEAD, _EMBEDDINGS = "output.weight", ("token_embd.weight", "per_layer_token_embd.weight")
_PARTS: tuple[tuple[str, Part], ...] = (
    ("attn_qkv.weight", "values"),
    ("attn_kv_b.weight", "values"),
    ("attn_v.weight", "values"),
    ("attn_k.weight", "keys"),
    ("attn_q.weight", "other"),
    ("attn_output.weight", "attention_output"),
    ("ffn_up", "other"),
    ("ffn_gate", "other"),
    ("ffn_down", "down"),
)


def _part(name: str) -> Part:
    if name == _HEAD:
        return "head"
    return "embedding" if name in _EMBEDDINGS else next((part for piece, part in _PARTS if piece in name), "other")


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)", name)
    return int(found[1]) if found else -1


@dataclass(frozen=True, slots=True)
class _Place:
    """A tensor among those of its kind: the one after `index` others, of `count`."""

    model: MixedModel
    mix: Mix
    importance: bool
    part: Part
    index: int
    count: int

    @property
    def falcon(self) -> bool:
        return self.model.architecture == "falcon"

    @property
    def eight_experts(self) -> bool:
        return self.model.experts == 8

    def first(self, part: int) -> bool:
        """Whether it is in the first eighth, or whatever part, of the layers."""
        return self.index < self.count // part

    @property
    def precious(self) -> bool:
        """In the first or last eighth of the layers, or every third between."""
        eighth = self.count // 8
        return self.first(8) or self.index >= 7 * self.count // 8 or (self.index - eighth) % 3 == 2


def _places(model: MixedModel, mix: Mix, importance: bool, names: Sequence[str]) -> Iterator[tuple[str, _Place]]:
    """The tensors that are quantised, each with its place among those of its kind."""
    counts = {"values": sum(_part(name) == "values" for name in names), "down": model.layers}
    seen: Counter[Part] = Counter()
    for name in names:
        if quantisable(name, model.tensors[name]):
            part = _part(name)
            # Experts of a layer lie in no order, so layers are not counted.
            index = _layer(name) if part == "down" and model.experts > 1 else seen[part]
            seen[part] += 1
            yield name, _Place(model, mix, importance, part, index, counts.get(part, 0))


def _wanted(place: _Place, row: int) -> Dtype:
    """The type by the rules alone, whether its blocks divide the row or not."""
    base = place.mix.base
    if place.part == "head" or (place.part == "embedding" and place.model.tied):
        if place.falcon or row % base.block:
            return DTYPES["Q8_0"]
        return base if base.name == "Q8_0" else DTYPES["Q6_K"]
    found = _BY_PART[place.part](place) if place.part in _BY_PART else None
    return DTYPES[found] if found else base


_Rules = Mapping[str, Callable[[_Place], "str | Literal[False] | None"]]
"""By the name of a mix, the type that a tensor gets; nothing for the base type."""

_VALUES: _Rules = {
    "q2_k": lambda at: "Q4_K" if at.model.grouped else "Q3_K",
    "q2_k_s": lambda at: at.model.grouped and "Q4_K",
    "q3_k_m": lambda at: "Q5_K" if at.index < 2 else "Q4_K",
    "q3_k_l": lambda _: "Q5_K",
    "q4_k_s": lambda at: at.index < 4 and "Q5_K",
    "q4_k_m": lambda at: at.precious and "Q6_K",
    "q5_k_m": lambda at: at.precious and "Q6_K",
    "iq4_nl": lambda at: at.model.grouped and "Q5_K",
    "iq4_xs": lambda at: at.model.grouped and "Q5_K",
}
_DOWN: _Rules = {
    "q4_0": lambda at: at.importance and at.first(8) and "Q4_1",
    "q5_0": lambda at: at.importance and at.first(8) and "Q5_1",
    "q2_k": lambda _: "Q3_K",
    "q2_k_s": lambda at: at.first(8) and "Q4_K",
    "q3_k_m": lambda at: "Q5_K" if at.first(16) else "Q4_K",
    "q3_k_l": lambda _: "Q5_K",
    "q4_k_s": lambda at: at.first(8) and "Q5_K",
    "q4_k_m": lambda at: at.precious and "Q6_K",
    "q5_k_m": lambda at: at.precious and "Q6_K",
    "iq4_nl": lambda at: not at.importance and at.first(8) and "Q5_K",
    "iq4_xs": lambda at: not at.importance and at.first(8) and "Q5_K",
}
_DOWN_OF_FALCON: _Rules = {
    **_DOWN,
    "q3_k_m": lambda at: "Q5_K" if at.first(16) else at.precious and "Q4_K",
    "q3_k_l": lambda _: "Q4_K",
    "q4_k_s": lambda _: None,
    "q4_k_m": lambda at: "Q6_K" if at.first(16) else at.precious and "Q5_K",
}
_OUTPUT = {"q2_k": "Q3_K", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K"}
_OUTPUT_OF_EIGHT = dict.fromkeys(("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs"), "Q5_K")
_OUTPUT_OF_FALCON = {"q3_k_l": "Q4_K"}


def _by(rules: _Rules, place: _Place) -> str | None:
    rule = rules.get(place.mix.name)
    return (rule(place) if rule else None) or None


def _values(place: _Place) -> str | None:
    if place.eight_experts:
        return "Q8_0"
    found = _by(_VALUES, place) or place.mix.base.name
    return "Q5_K" if place.model.seventy_billion and found in ("Q3_K", "Q4_K") else found


def _keys(place: _Place) -> str | None:
    return "Q8_0" if place.eight_experts else None


def _down(place: _Place) -> str | None:
    return _by(_DOWN_OF_FALCON if place.falcon else _DOWN, place)


def _attention_output(place: _Place) -> str | None:
    if place.falcon:
        return _OUTPUT_OF_FALCON.get(place.mix.name)
    return (_OUTPUT_OF_EIGHT if place.eight_experts else _OUTPUT).get(place.mix.name)


_BY_PART: Mapping[Part, Callable[[_Place], str | None]] = {
    "values": _values,
    "keys": _keys,
    "attention_output": _attention_output,
    "down": _down,
}
_INSTEAD = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
"""What a type of large blocks gives way to."""


def _dividing(dtype: Dtype, row: int) -> Dtype:
    """This type, or one near it whose blocks divide the row."""
    if row % dtype.block:
        dtype = DTYPES[_INSTEAD.get(dtype.name, dtype.name)]
    return DTYPES["F16"] if row % dtype.block else dtype
