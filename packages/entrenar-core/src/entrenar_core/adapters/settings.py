"""What an `adapter_config.json` says, as peft writes it, of the ranks and scales of an adapter's matrices.

Source: peft's LoraConfig and LoraLayer.update_layer (the scale is α / r, or α / √r with `use_rslora`), and
get_pattern_key of its utils (a pattern means the modules whose whole name, or what follows a dot of it, it matches).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar

import regex

from entrenar_core.errors import ModelError
from entrenar_core.formats.names import shown

Number = TypeVar("Number", int, float)
MOST = 1 << 31
_MOST_S = 1.0
"""No rank and no alpha is so large."""
_HINT = "correct adapter_config.json, or save the adapter again"


@dataclass(frozen=True, slots=True)
class AdapterSettings:
    """Of an adapter as it is stored; None is what its files do not say.

    `method` is peft's name, such as LORA. `init` is how its matrices began: some ways take a part out of the base
    model's weights. `said` is the whole file.
    """

    method: str = "LORA"
    base: str | None = None
    rank: int | None = None
    alpha: float | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    rslora: bool = False
    dora: bool = False
    transposed: bool = False
    init: str = "default"
    biases: str = "none"
    modules_to_save: tuple[str, ...] = ()
    targets: tuple[str, ...] = ()
    said: Mapping[str, Any] = field(default_factory=dict)

    def rank_of(self, module: str) -> int | None:
        """The rank that is said of a module."""
        return _matching(self.rank_pattern, module, self.rank)

    def alpha_of(self, module: str) -> float | None:
        """The alpha that is said of a module."""
        return _matching(self.alpha_pattern, module, self.alpha)

    def scale(self, module: str, rank: int) -> float | None:
        """What the product of a module's matrices is multiplied by; None where no alpha is said."""
        alpha = self.alpha_of(module)
        if alpha is None:
            return None
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def settings_of(config: Mapping[str, Any], where: str) -> AdapterSettings:
    """What an `adapter_config.json` says.

    Raises:
        ModelError: a setting is not what peft could have written.
    """
    alpha = config.get("lora_alpha")
    return AdapterSettings(
        method=_text(config, "peft_type", where) or "LORA",
        base=_text(config, "base_model_name_or_path", where),
        rank=None if config.get("r") is None else _rank(config["r"], "r", where),
        alpha=None if alpha is None else _alpha(alpha, "lora_alpha", where),
        rank_pattern={
            name: _rank(value, f"rank_pattern of {name}", where)
            for name, value in _table(config, "rank_pattern", where)
        },
        alpha_pattern={
            name: _alpha(value, f"alpha_pattern of {name}", where)
            for name, value in _table(config, "alpha_pattern", where)
        },
        rslora=_flag(config, "use_rslora", where),
        dora=_flag(config, "use_dora", where),
        transposed=_flag(config, "fan_in_fan_out", where),
        init=_init(config.get("init_lora_weights", True)),
        biases=_text(config, "bias", where) or "none",
        modules_to_save=_texts(config, "modules_to_save", where),
        targets=_texts(config, "target_modules", where),
        said=config,
    )


def _matching(pattern: Mapping[str, Number], module: str, otherwise: Number | None) -> Number | None:
    """The first that matches, as peft looks it up."""
    try:
        return next(
            (value for key, value in pattern.items() if _compiled(key).match(module, timeout=_MOST_S)), otherwise
        )
    except TimeoutError:
        raise ModelError("a rank_pattern or alpha_pattern of the adapter takes too long to look up", _HINT) from None


@cache
def _compiled(key: str) -> "regex.Pattern[str]":
    return regex.compile(rf"(.*\.)?({key})$")


def _flag(config: Mapping[str, Any], key: str, where: str) -> bool:
    value = config.get(key)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"{where}: `{key}` is {value!r}, and should be true or false", _HINT)
    return value is True


def _rank(value: object, name: str, where: str) -> int:
    if type(value) is not int or not 0 < value < MOST:
        raise ModelError(f"{where}: `{name}` is {value!r}, and a rank is a whole number above 0", _HINT)
    return value


def _alpha(value: object, name: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < MOST:
        raise ModelError(f"{where}: `{name}` is {value!r}, and an alpha is a number above 0", _HINT)
    return float(value)


def _text(config: Mapping[str, Any], key: str, where: str) -> str | None:
    value = config.get(key)
    if value is not None and not isinstance(value, str):
        raise ModelError(f"{where}: `{key}` is {value!r}, and should be a text", _HINT)
    return value or None


def _texts(config: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = config.get(key) or ()
    value = (value,) if isinstance(value, str) else value
    if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
        raise ModelError(f"{where}: `{key}` should be a list of names", _HINT)
    return tuple(value)


def _table(config: Mapping[str, Any], key: str, where: str) -> list[tuple[str, Any]]:
    value = config.get(key) or {}
    if not isinstance(value, Mapping):
        raise ModelError(f"{where}: `{key}` should be a table of names and numbers", _HINT)
    for name in value:
        try:
            _compiled(str(name))
        except (regex.error, RecursionError) as error:
            raise ModelError(
                f"{where}: `{key}` has {shown(str(name))}, which is no regular expression: {error}", _HINT
            ) from None
    return [(str(name), one) for name, one in value.items()]


def _init(value: object) -> str:
    return value.lower() if isinstance(value, str) else "default"
