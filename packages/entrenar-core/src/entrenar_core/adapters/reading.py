"""An adapter from its files: what they say of it, and the matrices of each module.

Without a configuration beside it, ranks are those of the shapes; an alpha is never guessed.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from entrenar_core.adapters.adapter import Adapter, Pair
from entrenar_core.adapters.peft_names import Part, sorted_tensors
from entrenar_core.adapters.settings import MOST, AdapterSettings, settings_of
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.references import HubReference, Reference
from entrenar_core.stored_model import ADAPTERS, StoredModel, open_model

LABELS = "label_names"
"""In the metadata of an adapter's file: the classes of its head, for which peft has no place."""
CONFIG_KEY = "adapter_config"
"""Where a file of tensors alone says what adapter_config.json would."""


def open_adapter(
    reference: Reference,
    *,
    alpha: float | None = None,
    rslora: bool = False,
    file: str | None = None,
    allow_pickle: bool = False,
) -> Adapter:
    """Opens a LoRA adapter: a folder as peft saves it, or a file of its tensors.

    Args:
        alpha: of an adapter whose files do not say it.
        rslora: whether the scale of such an adapter is α / √r.
        file: which file to take where there are several.
        allow_pickle: whether a PyTorch file is read. Nothing in it is run.

    Raises:
        NotFoundError: there is no such file or folder.
        UsageError: `alpha` or `rslora` contradicts its files.
        ModelError: it is no LoRA adapter, its settings are broken, or its tensors do not belong together.
    """
    model = open_model(reference, file=file or _own_file(reference), allow_pickle=allow_pickle)
    try:
        if not model.is_here:
            raise ModelError(f"the values of {reference} are not here", f"fetch it: `hf download {reference}`")
        return adapter_of(model, alpha=alpha, rslora=rslora)
    except BaseException:
        model.close()
        raise


def _own_file(reference: Reference) -> str | None:
    """The weights of the adapter in a folder that may hold those of models, too."""
    if isinstance(reference, HubReference):
        return None
    folder = reference.locate()
    return next((name for name in ADAPTERS if (folder / name).is_file()), None) if folder.is_dir() else None


def adapter_of(model: StoredModel, *, alpha: float | None = None, rslora: bool = False) -> Adapter:
    """The same of a model that is open already; raises as `open_adapter`."""
    if model.format is WeightFormat.GGUF:
        if model.metadata.get("general.type") != "adapter":
            raise ModelError(f"{model.reference} is a model and no adapter", "name the folder that peft saved")
        raise ModelError(
            f"{model.reference} is an adapter as llama.cpp has it",
            "convert it first: `entrenar-lora convert ADAPTER --to peft --output DIR`",
        )
    settings, inferred = _settings(model, alpha, rslora)
    if settings.method != "LORA":
        raise ModelError(
            f"{model.reference} is an adapter of the method {settings.method}, which has no low-rank matrices",
            "load it with peft",
        )
    found = sorted_tensors(model)
    if not found.parts:
        raise ModelError(f"{model.reference} has no tensors of a LoRA adapter", "name the folder that peft saved")
    pairs = tuple(
        _pair(model, module, parts, settings, embedding=module in found.embeddings)
        for module, parts in found.parts.items()
    )
    if settings.rank is None:
        ranks = sorted({pair.rank for pair in pairs})
        inferred.append(f"the rank is {', '.join(map(str, ranks))}, as the shapes of its matrices say")
    dora = any(pair.magnitude is not None for pair in pairs)
    if settings.dora and (bare := next((pair.module for pair in pairs if pair.magnitude is None), None)):
        raise ModelError(
            f"{model.reference}: it is DoRA, as its settings say, and {bare} has no magnitudes",
            "the adapter is damaged: save it again",
        )
    if dora and not settings.dora:
        inferred.append("it is DoRA, as its magnitudes say")
    return Adapter(model, replace(settings, dora=dora or settings.dora), pairs, found.whole, tuple(inferred))


def _settings(model: StoredModel, alpha: float | None, rslora: bool) -> tuple[AdapterSettings, list[str]]:
    """What the files say, else the command line, and what of it is inferred."""
    broken = next(
        (fault for fault in model.faults if fault.about == "settings" and "adapter_config" in fault.message), None
    )
    if broken is not None:
        raise ModelError(broken.message, "save the adapter again")
    settings, inferred = _of_files(model)
    if alpha is not None and settings.alpha is not None and settings.alpha != alpha:
        raise UsageError(
            f"--alpha {alpha:g}: the adapter's own files say {settings.alpha:g}",
            "leave it out; to weaken or strengthen an adapter there is --scale",
        )
    if alpha is not None and not 0 < alpha < MOST:
        raise UsageError(f"--alpha {alpha:g} is no alpha", "give the number above 0 that it was trained with")
    if rslora and settings.said and not settings.rslora:
        raise UsageError("--rslora: the adapter's own configuration says otherwise", "leave it out")
    if alpha is not None and settings.alpha is None:
        inferred.append(f"alpha is {alpha:g}, as --alpha says")
        settings = replace(settings, alpha=alpha)
    return replace(settings, rslora=settings.rslora or rslora), inferred


def _of_files(model: StoredModel) -> tuple[AdapterSettings, list[str]]:
    """What the files say alone."""
    if model.adapter_config is not None:
        return settings_of(model.adapter_config, f"{model.reference}: adapter_config.json"), []
    inside = _config_inside(model)
    if inside is not None:
        found = settings_of(inside, f"{model.reference}: the settings in its metadata")
        return found, ["its settings are those in the metadata of the file"]
    inferred = ["there is no adapter_config.json beside it"]
    told = _number(model.metadata.get("lora_alpha", model.metadata.get("alpha")))
    if told is None:
        return AdapterSettings(), inferred
    return AdapterSettings(alpha=told), [*inferred, f"alpha is {told:g}, as the file's metadata says"]


def _config_inside(model: StoredModel) -> Mapping[str, Any] | None:
    """The settings that a file of tensors holds itself, where `convert` wrote it."""
    said = model.metadata.get(CONFIG_KEY)
    if said is None:
        return None
    try:
        found = json.loads(str(said))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ModelError(f"{model.reference}: `{CONFIG_KEY}` in its metadata is no JSON table", "save it again")
    return found


def _number(text: object) -> float | None:
    try:
        found = float(str(text))
    except ValueError:
        return None
    return found if 0 < found < 1e9 else None


def _pair(
    model: StoredModel, module: str, parts: Mapping[Part, StoredTensor], settings: AdapterSettings, *, embedding: bool
) -> Pair:
    if "down" not in parts or "up" not in parts:
        raise ModelError(
            f"{model.reference}: {module} has {'no A' if 'down' not in parts else 'no B'}", "save the adapter again"
        )
    down, up = parts["down"], parts["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or 0 in (*down.shape, *up.shape):
        raise ModelError(
            f"{model.reference}: the matrices of {module} are {_by(down)} and {_by(up)}, which are not two matrices",
            "adapters of convolutions are not read; save it again if it has none",
        )
    rank = down.shape[0]
    if up.shape[1] != rank:
        raise ModelError(
            f"{model.reference}: the matrices of {module} are {_by(up)} and {_by(down)}, which have no product",
            "the adapter is damaged: save it again",
        )
    said = settings.rank_of(module)
    if said is not None and said != rank:
        raise ModelError(
            f"{model.reference}: adapter_config.json says rank {said} of {module}, and its matrices have {rank}",
            "the settings belong to another adapter: take those that were saved with it",
        )
    scale = settings.scale(module, rank)
    magnitude, up_bias = parts.get("magnitude"), parts.get("up_bias")
    return Pair(module, down, up, rank, settings.alpha_of(module), scale, embedding, magnitude, up_bias)


def _by(tensor: StoredTensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
