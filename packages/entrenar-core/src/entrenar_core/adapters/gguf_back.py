"""llama.cpp's adapter read back: the names and the order of rows that its tensors have in peft."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from entrenar_core.adapters.gguf import ALPHA, CONFIG, EMBEDDINGS, INVOCATION, KIND, MODULE_PREFIX
from entrenar_core.adapters.gguf_base import GgufBase, base_of_adapter, names_back
from entrenar_core.adapters.peft_form import pair_names, written_config
from entrenar_core.adapters.settings import settings_of
from entrenar_core.conversion.casting import Rounding
from entrenar_core.conversion.content import Change, as_it_is, cast, changed_values
from entrenar_core.conversion.gguf_names import Renamed
from entrenar_core.errors import EntrenarError, ModelError
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

_A, _B = ".lora_a", ".lora_b"
_KEPT = ("F32", "F16", "BF16")
_SAME = 1e-6
_AGAIN = "convert the adapter again"


@dataclass(frozen=True, slots=True)
class PeftAdapter:
    """What is written: `config` is its adapter_config.json."""

    config: dict[str, Any]
    outgoing: tuple[Outgoing, ...]
    cast: int
    rounding: Rounding
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Pair:
    """A and B of a tensor of the base, and what that is called in transformers."""

    module: str
    renamed: Renamed
    down: StoredTensor
    up: StoredTensor
    embedding: bool

    @property
    def rank(self) -> int:
        return self.up.shape[-1]


def is_adapter(model: StoredModel) -> bool:
    """Whether a GGUF holds an adapter."""
    return model.metadata.get("general.type") == "adapter"


def peft_of(model: StoredModel, base: GgufBase | None = None, dtype: Dtype | None = None) -> PeftAdapter:
    """A GGUF's adapter on its way to peft.

    Args:
        base: the model that it is for; needed where the file does not say the heads, and their rows lie otherwise.
        dtype: of all matrices; as they are stored, if not given, and F32 of blocks.

    Raises:
        ModelError: the file is no LoRA adapter, its tensors do not belong together, or the base is not known.
    """
    if not is_adapter(model) or model.metadata.get(KIND) != "lora":
        raise ModelError(f"{model.reference} is a GGUF without a LoRA adapter", "name the adapter's own file")
    own = base_of_adapter(model)
    if base is not None and base.family.architecture != own.family.architecture:
        raise ModelError(
            f"{model.reference} is an adapter for a {own.family.architecture}, and --base is a "
            f"{base.family.architecture}",
            "give the model that it is for",
        )
    known = own if base is None else replace(base, sizes=replace(base.sizes, num_layers=max(
        base.sizes.num_layers or 0, own.sizes.num_layers or 0)))  # fmt: skip
    pairs = list(_pairs(model, known))
    alpha = _alpha(model)
    rounding, written = Rounding(), list[Outgoing]()
    for pair in pairs:
        written += _outgoing(model, pair, dtype, rounding)
    config, notes = _config(model, pairs, alpha, base)
    left = [name for name in model.tensors if not name.endswith((_A, _B))]
    if left:
        notes.append(f"llama.cpp does nothing with {len(left)} tensors such as {left[0]}: left out")
    changed = sum(
        tensor.dtype != stored.dtype
        for pair, (down, up) in zip(pairs, zip(written[::2], written[1::2], strict=True), strict=True)
        for tensor, stored in ((down, pair.down), (up, pair.up))
    )
    return PeftAdapter(config, tuple(written), changed, rounding, tuple(notes))


def _alpha(model: StoredModel) -> float | None:
    """None where the file says none, so that llama.cpp multiplies by nothing."""
    alpha = model.metadata.get(ALPHA, 0.0)
    if not isinstance(alpha, int | float) or not 0 <= alpha < 1e9:
        raise ModelError(f"{model.reference}: its alpha is {alpha!r}", _AGAIN)
    return float(alpha) or None


def _pairs(model: StoredModel, base: GgufBase) -> Iterator[_Pair]:
    downs, ups = ([name.removesuffix(end) for name in model.tensors if name.endswith(end)] for end in (_A, _B))
    alone = next((name for name in (*downs, *ups) if name not in downs or name not in ups), None)
    if alone is not None or not downs:
        which = f"half of {alone}" if alone is not None else f"no tensor that ends with {_A}"
        raise ModelError(f"{model.reference} has {which}", _AGAIN)
    back = names_back(base, downs)
    nameless = next((name for name in downs if name not in back), None)
    if nameless is not None:
        raise ModelError(f"{model.reference} has {nameless}, which has no name in transformers", _AGAIN)
    for name in downs:
        module = _called(model, base, back[name].name.removesuffix(".weight"))
        pair = _Pair(module, back[name], model.tensors[name + _A], model.tensors[name + _B], name == EMBEDDINGS)
        _require_product(model, pair)
        yield pair


def _called(model: StoredModel, base: GgufBase, module: str) -> str:
    """With the prefix that the file says, or the base's own files have, where these leave it out."""
    usual, prefix = base.layout.prefixes[0], model.metadata.get(MODULE_PREFIX)
    inner = module.removeprefix(usual)
    if isinstance(prefix, str):
        return prefix + inner if module.startswith(usual) else module
    return inner if base.weights is not None and inner in base.weights.modules else module


def _require_product(model: StoredModel, pair: _Pair) -> None:
    down, up = pair.down.shape, pair.up.shape
    if len(down) != 2 or len(up) != 2 or 0 in (*down, *up) or down[1 if pair.embedding else 0] != up[1]:
        raise ModelError(f"{model.reference}: the matrices of {pair.module} are {down} and {up}: no product", _AGAIN)


def _outgoing(model: StoredModel, pair: _Pair, dtype: Dtype | None, rounding: Rounding) -> Iterator[Outgoing]:
    down, up = pair_names(pair.module, embedding=pair.embedding)
    turned = Change(lambda values: values.T, pair.down.shape[::-1]) if pair.embedding else None
    yield _one(model, pair.down, down, turned, dtype, rounding)
    yield _one(model, pair.up, up, _undone(model, pair), dtype, rounding)


def _undone(model: StoredModel, pair: _Pair) -> Change | None:
    layout = pair.renamed.changed.layout
    if layout in (None, "transposed", "scaled"):
        return None
    if not pair.renamed.changed.number:
        raise ModelError(
            f"{model.reference} does not say how many heads its base has, by which the rows of {pair.module} are "
            "ordered",
            "give the base model: --base",
        )
    return pair.renamed.undone((pair.up.shape[0], pair.up.shape[1]))


def _one(
    model: StoredModel, tensor: StoredTensor, name: str, change: Change | None, dtype: Dtype | None, rounding: Rounding
) -> Outgoing:
    import numpy as np

    if not np.isfinite(changed_values(model, tensor, None)).all():
        raise ModelError(f"{model.reference}: tensor {tensor.name} holds values that are not finite", _AGAIN)
    wanted = dtype or (tensor.dtype if tensor.dtype.name in _KEPT else DTYPES["F32"])
    if change is None and wanted == tensor.dtype:
        return as_it_is(model, tensor, name)
    return cast(model, tensor, wanted, rounding, name=name, change=change)


def _config(
    model: StoredModel, pairs: list[_Pair], alpha: float | None, base: GgufBase | None
) -> tuple[dict[str, Any], list[str]]:
    """The configuration that the file holds, where it says the same scales; else one of plain LoRA."""
    ranks = {pair.module: pair.rank for pair in pairs}
    said = _said(model)
    if said is not None and alpha is not None and _agrees(said, ranks, alpha):
        return dict(said), []
    notes = []
    if alpha is None and len(set(ranks.values())) > 1:
        raise ModelError(f"{model.reference} says no alpha, and its modules have several ranks", _AGAIN)
    if alpha is None:
        alpha = float(next(iter(ranks.values())))
        notes.append(f"the file says no alpha, which for llama.cpp is a scale of 1: written as alpha {alpha:g}")
    name = said.get("base_model_name_or_path") if said is not None else None
    config = written_config(ranks, alpha, None if base is None else base.weights, name=name)
    if said is not None:
        config |= {key: said[key] for key in ("task_type", "target_modules", "fan_in_fan_out") if key in said}
        notes.append("a part of the scale was folded into B: its configuration is one of plain LoRA")
    tokens = model.metadata.get(INVOCATION)
    if isinstance(tokens, tuple):
        config["alora_invocation_tokens"] = list(tokens)
    return config, notes


def _said(model: StoredModel) -> Mapping[str, Any] | None:
    try:
        found = json.loads(str(model.metadata.get(CONFIG, "null")))
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _agrees(said: Mapping[str, Any], ranks: Mapping[str, int], alpha: float) -> bool:
    try:
        settings = settings_of(said, "adapter_config.json")
    except EntrenarError:
        return False
    for module, rank in ranks.items():
        scale = settings.scale(module, rank)
        if settings.rank_of(module) != rank or scale is None or abs(scale * rank / alpha - 1) > _SAME:
            return False
    return True
