"""What a model's configuration or metadata says of it besides sizes: positions, windows, dtype, licence."""

import json
from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any

from entrenar_core.architectures import is_size
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.gguf import SkippedArray
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.reports.summary import DtypeShare, Rope

_THETAS = ("rope_theta", "rotary_emb_base")
_LONGEST_VALUE = 200
_NO_SCALING = ("default", "none")
_TORCH_NAMES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def rope_of(model: StoredModel) -> Rope | None:
    """How positions turn queries and keys; None where nothing says it."""
    if model.format is WeightFormat.GGUF:
        kind = model.metadata.get("general.architecture")
        said: Mapping[str, Any] = {
            "rope_theta": model.metadata.get(f"{kind}.rope.freq_base"),
            "type": model.metadata.get(f"{kind}.rope.scaling.type"),
            "factor": model.metadata.get(f"{kind}.rope.scaling.factor"),
        }
        return _rope(said, said)
    if (model.config or {}).get("alibi") is True:
        return None
    for settings in _settings(model):
        given = _inner(settings.get("rope_parameters")) or _inner(settings.get("rope_scaling")) or {}
        if (found := _rope({**settings, **given}, given)) is not None:
            return found
    return _rope(model.metadata, {})


def window_of(model: StoredModel) -> int | None:
    """How many positions back a token looks where layers slide; None where they do not, or nothing says it."""
    if model.format is WeightFormat.GGUF:
        said = model.metadata.get(f"{model.metadata.get('general.architecture')}.attention.sliding_window")
        return said if is_size(said) else None
    for settings in _settings(model):
        said = settings.get("sliding_window")
        if is_size(said) and settings.get("use_sliding_window") is not False:
            return said
    return None


def licence_of(model: StoredModel) -> str | None:
    """What its files say, not what a page about it does."""
    for key in ("general.license", "license"):
        said = model.metadata.get(key)
        if isinstance(said, str) and said:
            return said
    return None


def stated_dtype(config: Mapping[str, Any] | None) -> str | None:
    """The dtype that config.json names, if it names one."""
    told = (config or {}).get("dtype") or (config or {}).get("torch_dtype")
    return told.removeprefix("torch.") if isinstance(told, str) and told != "auto" else None


def is_dtype(stated: str, stored: str) -> bool:
    """Whether what config.json calls a dtype is the one that tensors have."""
    return stated == stored or _TORCH_NAMES.get(stated) == stored


def other_dtype(model: StoredModel, shares: tuple[DtypeShare, ...]) -> Iterator[str]:
    """That most values are of another dtype than config.json says. Quantised weights always are."""
    said = stated_dtype(model.config)
    if said is None or not shares or (model.config or {}).get("quantization_config"):
        return
    usual = max(shares, key=lambda share: share.values).dtype
    if usual in DTYPES and DTYPES[usual].kind == "float" and not is_dtype(said, usual):
        yield f"config.json says {said}, and most weights are {usual}"


def _settings(model: StoredModel) -> Iterator[Mapping[str, Any]]:
    """config.json, and what it says of a text model inside."""
    config = model.config or {}
    yield config
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        yield inner


def _inner(said: Any) -> Mapping[str, Any] | None:
    """Where layers differ, the settings of those that look at every position."""
    if not isinstance(said, Mapping):
        return None
    inner = said.get("full_attention")
    return inner if isinstance(inner, Mapping) else said


def _rope(settings: Mapping[str, Any], scaling: Mapping[str, Any]) -> Rope | None:
    theta = next((value for key in _THETAS if (value := _number(settings.get(key))) is not None), None)
    kind = next((kind for key in ("rope_type", "type") if isinstance(kind := scaling.get(key), str)), None)
    if kind is None or kind in _NO_SCALING:
        return None if theta is None else Rope(theta, None, None)
    return Rope(theta, kind, _number(scaling.get("factor")))


def _number(value: Any) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**64
    return float(value) if number and isfinite(value) else None


def metadata_value(value: Any) -> Any:
    """A value of a file's metadata as a report has it: as it is, but for arrays that were not read and long texts."""
    if isinstance(value, SkippedArray):
        return f"{value.length:,} of {value.kind}"
    if value is None or isinstance(value, bool | int | float):
        return value
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return value if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
