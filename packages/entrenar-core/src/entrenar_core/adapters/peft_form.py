"""An adapter as peft saves it: what its tensors are called, and an adapter_config.json where its files have none."""

from collections.abc import Iterator, Sequence
from typing import Any

from entrenar_core.adapters.adapter import Adapter, Pair, require_scales
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.peft_names import PREFIX
from entrenar_core.errors import ModelError
from entrenar_core.formats.tensors import StoredTensor

_METHOD = "LORA"


def named_tensors(adapter: Adapter) -> Iterator[tuple[str, StoredTensor]]:
    """Its tensors by the names that peft gives them when it saves; whole ones have kept theirs."""
    for pair in adapter.pairs:
        yield from named_pair(pair)
    for tensor in adapter.whole.values():
        yield tensor.name, tensor


def named_pair(pair: Pair) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of one module."""
    down, up = pair_names(pair.module, embedding=pair.embedding)
    yield down, pair.down
    yield up, pair.up
    if pair.up_bias is not None:
        yield f"{PREFIX}{pair.module}.lora_B.bias", pair.up_bias
    if pair.magnitude is not None:
        yield f"{PREFIX}{pair.module}.lora_magnitude_vector", pair.magnitude


def pair_names(module: str, *, embedding: bool = False) -> tuple[str, str]:
    """What A and B of a module are called."""
    if embedding:
        return f"{PREFIX}{module}.lora_embedding_A", f"{PREFIX}{module}.lora_embedding_B"
    return f"{PREFIX}{module}.lora_A.weight", f"{PREFIX}{module}.lora_B.weight"


def config_of(adapter: Adapter, base: BaseWeights | None = None) -> dict[str, Any]:
    """The adapter_config.json of an adapter: its own, or one that says what is known of it.

    Args:
        base: the model that it is for, by which modules are named shorter.

    Raises:
        UsageError: it does not say its alpha.
    """
    require_scales(adapter)
    if adapter.settings.said:
        return _completed(adapter)
    ranks = {pair.module: pair.rank for pair in adapter.pairs}
    config = written_config(ranks, adapter.settings.alpha or 0.0, base, name=adapter.settings.base)
    settings = adapter.settings
    whole = {name.rpartition(".")[0].rpartition(".")[2] for name in adapter.whole if name.endswith(".weight")}
    return {
        **config,
        "use_rslora": settings.rslora,
        "use_dora": settings.dora,
        "lora_bias": any(pair.up_bias is not None for pair in adapter.pairs),
        "modules_to_save": sorted(whole) or None,
    }


def _completed(adapter: Adapter) -> dict[str, Any]:
    """Its own, with what it leaves open as it is known from its tensors and the command line."""
    said, counts = dict(adapter.settings.said), [pair.rank for pair in adapter.pairs]
    if said.get("r") is None:
        said["r"] = max(set(counts), key=counts.count)
        others = {pair.module: pair.rank for pair in adapter.pairs if pair.rank != said["r"]}
        said["rank_pattern"] = {**others, **(said.get("rank_pattern") or {})}
    if said.get("lora_alpha") is None:
        said["lora_alpha"] = adapter.settings.alpha
    return said | {"use_rslora": adapter.settings.rslora}


def written_config(
    ranks: dict[str, int], alpha: float, base: BaseWeights | None = None, *, name: str | None = None
) -> dict[str, Any]:
    """An adapter_config.json of plain LoRA.

    Args:
        ranks: of each module that it changes.
        base: the model that it is for.
        name: what the base is called, where no base is given.
    """
    counts = sorted(ranks.values())
    usual = max(set(counts), key=lambda rank: (counts.count(rank), rank))
    return {
        "peft_type": _METHOD,
        "task_type": None,
        "base_model_name_or_path": name if base is None else str(base.base.reference),
        "inference_mode": True,
        "r": usual,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": 0.0,
        "rank_pattern": {module: rank for module, rank in ranks.items() if rank != usual},
        "alpha_pattern": {},
        "target_modules": sorted(_targets(list(ranks), base)),
        "modules_to_save": None,
        "bias": "none",
        "fan_in_fan_out": base is not None and any(map(base.is_transposed, ranks)),
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
    }


def _targets(modules: Sequence[str], base: BaseWeights | None) -> Sequence[str]:
    """The last parts of the modules' names, where the base has no other module that is called so; else their names."""
    if base is None:
        return modules
    last = {module.rpartition(".")[2] for module in modules}
    meant = {base.tensor(module).name for module in modules}
    called = {stored for name, stored in base.modules.items() if name.rpartition(".")[2] in last}
    return sorted(last) if called == meant else modules


def require_finite(adapter: Adapter) -> None:
    """Refuses an adapter with values that are no numbers.

    Raises:
        ModelError: it has such.
    """
    for pair in adapter.pairs:
        for tensor in (pair.down, pair.up, pair.magnitude, pair.up_bias):
            if tensor is not None:
                adapter.values(tensor)


def require_distinct(names: Sequence[str], where: str) -> None:
    """Refuses tensors of one name.

    Raises:
        ModelError: two have the same.
    """
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice is not None:
        raise ModelError(f"{where} has two tensors that peft calls {twice}", "save it again with peft")
