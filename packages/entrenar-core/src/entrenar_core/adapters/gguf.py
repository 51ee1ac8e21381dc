"""An adapter as llama.cpp's GGUF: the tensors of the base model with `.lora_a` and `.lora_b` behind their names.

llama.cpp multiplies B · A by alpha / r, with one alpha for the file and the r of the shapes. The alpha that is written
is right for most modules; where it is not, the rest of the scale is folded into B. B's rows lie as those of the weight
do in a GGUF: for llama, the halves that are turned together lie next to each other.

Source: convert_lora_to_gguf.py and src/llama-adapter.cpp of https://github.com/ggml-org/llama.cpp.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from entrenar_core.adapters.adapter import Adapter, Pair, require_scales
from entrenar_core.adapters.gguf_base import GgufBase
from entrenar_core.adapters.peft_form import config_of
from entrenar_core.adapters.principal import PRINCIPAL, require_mergeable
from entrenar_core.conversion.casting import Rounding
from entrenar_core.conversion.content import Change, as_it_is, cast
from entrenar_core.conversion.gguf_names import Renamed
from entrenar_core.errors import ModelError
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.gguf_values import Kind, Value, f32, text, u32
from entrenar_core.formats.writing import Outgoing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CONFIG, MODULE_PREFIX = "entrenar.adapter.config", "entrenar.adapter.prefix"
"""Keys of ours, which llama.cpp passes over: adapter_config.json, and what the names of modules begin with."""
ALPHA, KIND, INVOCATION = "adapter.lora.alpha", "adapter.type", "adapter.alora.invocation_tokens"
EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"
_KEPT = ("F32", "F16", "BF16")
_SAME = 1e-6
_MERGE = "merge it into its base instead: entrenar-lora merge … --to gguf"


@dataclass(frozen=True, slots=True)
class GgufAdapter:
    """What is written. `folded` counts modules into whose B a part of the scale went, `cast` tensors whose dtype
    changed, which `rounding` is told of as they are written.
    """

    metadata: dict[str, Value]
    outgoing: tuple[Outgoing, ...]
    folded: int
    cast: int
    rounding: Rounding
    notes: tuple[str, ...]


def gguf_of(adapter: Adapter, base: GgufBase, dtype: Dtype | None = None) -> GgufAdapter:
    """An adapter on its way to a GGUF.

    Args:
        base: the model that it is for.
        dtype: of all matrices; as they are stored, if not given.

    Raises:
        UsageError: it does not say its alpha.
        ModelError: the format cannot say what it does, or it is for another base.
    """
    _require_sayable(adapter)
    notes = _without_whole(adapter, base)
    named = [_Named.of(adapter, pair, base) for pair in adapter.pairs]
    alpha = _alpha(adapter.pairs)
    rounding = Rounding()
    writer = _Writer(adapter, dtype, rounding)
    outgoing = [tensor for one in named for tensor in writer.pair(one, alpha)]
    if writer.folded:
        notes.append(
            f"llama.cpp has one alpha for all modules: a part of the scale is multiplied into B of {writer.folded} of "
            f"{len(named)}"
        )
    if adapter.settings.rslora:
        notes.append(f"llama.cpp divides alpha by the rank: it is written as {alpha:.6g} for rsLoRA's scale")
    metadata = _metadata(adapter, base, alpha)
    return GgufAdapter(metadata, tuple(outgoing), writer.folded, writer.cast, rounding, tuple(notes))


@dataclass(frozen=True, slots=True)
class _Named:
    """A pair, the tensor of the base that it changes there, and what a GGUF does to that tensor's rows."""

    pair: Pair
    name: str
    change: Change | None

    @classmethod
    def of(cls, adapter: Adapter, pair: Pair, base: GgufBase) -> "_Named":
        found = base.named(pair.module)
        if base.weights is not None:
            base.weights.tensor(pair.module, shape=pair.shape)
        if found is None:
            raise ModelError(
                f"llama.cpp has no tensor for {pair.module} in a {base.family.name}, which {adapter.name} changes",
                "give the model that it was trained on as --base" if base.weights is None else _MERGE,
            )
        _require_applied(adapter, pair, base, found)
        turned = found.changed.layout == "transposed"  # which torch's order of A and B already is
        change = None if turned else found.changed.written(pair.module, (pair.up.shape[0], pair.up.shape[1]))
        return cls(pair, found.name, change)


class _Writer:
    """Makes the tensors of pairs, and counts what was changed of them."""

    def __init__(self, adapter: Adapter, dtype: Dtype | None, rounding: Rounding) -> None:
        self.adapter, self.dtype, self.rounding = adapter, dtype, rounding
        self.folded = self.cast = 0

    def pair(self, one: _Named, alpha: float) -> Iterator[Outgoing]:
        pair, changes = one.pair, [] if one.change is None else [one.change]
        assert pair.scale is not None, "scales are required before"
        factor = pair.scale * pair.rank / alpha
        folds = abs(factor - 1) > _SAME
        if folds:
            self.folded += 1
            changes.append(Change(lambda values: values * _like(values, factor), pair.up.shape))
        turned = [Change(lambda values: values.T, pair.down.shape[::-1])] if pair.embedding else []
        yield self.tensor(pair.down.name, f"{one.name}.lora_a", turned, exact=True)
        yield self.tensor(pair.up.name, f"{one.name}.lora_b", changes, exact=not folds)

    def tensor(self, stored: str, name: str, changes: Sequence[Change], *, exact: bool) -> Outgoing:
        """A tensor with changes to its values, which keep its dtype where they are `exact`."""
        tensor = self.adapter.model.tensors[stored]
        kept = tensor.dtype if exact and tensor.dtype.name in _KEPT else DTYPES["F32"]
        dtype = self.dtype or kept
        if dtype != tensor.dtype:
            self.cast += 1
        elif not changes:
            return as_it_is(self.adapter.model, tensor, name)
        change = _all(changes) if changes else None
        return cast(self.adapter.model, tensor, dtype, self.rounding, name=name, change=change)


def _all(changes: Sequence[Change]) -> Change:
    def apply(values: "NDArray[np.floating]") -> "NDArray[np.floating]":
        for change in changes:
            values = change.apply(values)
        return values

    return Change(apply, changes[-1].shape)


def _like(values: "NDArray[np.floating]", factor: float) -> "np.floating":
    return values.dtype.type(factor)


def _alpha(pairs: Sequence[Pair]) -> float:
    """The alpha that is right for most modules, where it is divided by the rank."""
    counts = Counter(round((pair.scale or 0.0) * pair.rank, 9) for pair in pairs)
    return counts.most_common(1)[0][0]


def _require_sayable(adapter: Adapter) -> None:
    """Refuses what llama.cpp's adapters cannot hold."""
    require_scales(adapter)
    name, settings = adapter.name, adapter.settings
    if settings.dora:
        raise ModelError(f"{name} is DoRA, whose lengths of rows llama.cpp's adapters do not have", _MERGE)
    if any(pair.up_bias is not None for pair in adapter.pairs):
        raise ModelError(f"{name} has biases, which llama.cpp's adapters do not have", _MERGE)
    if settings.init.startswith(PRINCIPAL):
        raise ModelError(
            f"{name} began with `init_lora_weights: {settings.init}`, as a part of the base's weights that llama.cpp "
            "does not take out",
            _MERGE,
        )
    said = {key: value for key, value in settings.said.items() if key != "alora_invocation_tokens"}
    require_mergeable(replace(settings, said=said), name)


def _without_whole(adapter: Adapter, base: GgufBase) -> list[str]:
    """What is told of whole tensors: peft saves embeddings and heads beside matrices that change them, and where they
    are the base's they say nothing new.

    Raises:
        ModelError: they are others, or it cannot be told.
    """
    import numpy as np

    for name, tensor in adapter.whole.items():
        module = name.removesuffix(".weight")
        known = base.weights is not None and base.weights.base.is_here and module in base.weights.modules
        if base.weights is None or not known or not np.array_equal(
            adapter.values(tensor), base.weights.values(module, shape=tensor.shape)
        ):  # fmt: skip
            raise ModelError(f"{adapter.name} replaces {name} as a whole, which llama.cpp's adapters cannot", _MERGE)
    return [f"{', '.join(adapter.whole)} are as in the base: left out"] if adapter.whole else []


def _require_applied(adapter: Adapter, pair: Pair, base: GgufBase, found: Renamed) -> None:
    """Refuses a change of a tensor that llama.cpp has, and would not add or stop at."""
    if found.changed.layout == "scaled" and found.changed.number != 1:
        raise ModelError(f"{pair.module}: the queries of this {base.family.name} are scaled in a GGUF", _MERGE)
    if found.name == HEAD and base.tied:
        raise ModelError(
            f"{adapter.name} changes {pair.module}, which in its base is the embeddings: a GGUF has no such tensor",
            _MERGE,
        )
    if not pair.embedding:
        return
    if found.name != EMBEDDINGS:
        raise ModelError(f"llama.cpp adds no change to {pair.module}, which {adapter.name} changes", _MERGE)
    if base.tied:
        raise ModelError(
            f"{adapter.name} changes {pair.module}, which is the head of its base too: llama.cpp cannot apply that",
            _MERGE,
        )


def _metadata(adapter: Adapter, base: GgufBase, alpha: float) -> dict[str, Value]:
    family, sizes = base.family.architecture, base.sizes
    counts = {
        "block_count": sizes.num_layers,
        "attention.head_count": sizes.num_heads,
        "attention.head_count_kv": sizes.num_kv_heads,
    }
    tokens = adapter.settings.said.get("alora_invocation_tokens")
    invoked = {INVOCATION: Value(Kind.ARRAY, tuple(map(int, tokens)), Kind.U32)} if tokens else {}
    return {
        "general.architecture": text(family),
        "general.type": text("adapter"),
        KIND: text("lora"),
        ALPHA: f32(alpha),
        **invoked,
        **{f"{family}.{key}": u32(count) for key, count in counts.items() if count},
        CONFIG: text(json.dumps(config_of(adapter, base.weights))),
        MODULE_PREFIX: text(_prefix(adapter, base)),
    }


def _prefix(adapter: Adapter, base: GgufBase) -> str:
    """What the names of its modules begin with, before those of the body; a head stands before no body."""
    modules = [pair.module for pair in adapter.pairs]
    inside = [name for name in modules if any(part.isdecimal() for part in name.split("."))] or modules
    return next((one for one in base.layout.prefixes if all(name.startswith(one) for name in inside)), "")
