"""What a config.json says of the sizes that a layout names, where families.toml has no word for them.

The keys are data, in the tables of `layouts.toml`. A value that no size can have is told, and taken for nothing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, TypeGuard

from entrenar_core.architectures import (
    HEAD_DIM_KEYS,
    MAX_SIZE,
    SIZES,
    Architecture,
    architecture_of,
    is_size,
    keys_of,
    named_family,
)
from entrenar_core.architectures.layouts import Layout

_LONGEST = 40
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def settings_of(config: Mapping[str, Any], layout: Layout | None) -> tuple[Mapping[str, Any], str]:
    """The settings of a model that is stored alone, out of those of a larger one that it is a tower of, and where they
    are in them: `vision_config.`, or nothing.
    """
    tower = config.get(layout.tower) if layout is not None and layout.tower else None
    return (tower, f"{layout.tower}.") if layout is not None and isinstance(tower, Mapping) else (config, "")


def stated_architecture(config: Mapping[str, Any], layout: Layout | None) -> Architecture:
    """What a config.json says of the model that is stored: of a tower alone, what it says of this one."""
    whole = architecture_of(config)
    settings, place = settings_of(config, layout)
    if not place:
        return whole
    part = architecture_of(settings)
    sizes = {size: getattr(part, size) for size in (*SIZES, "head_dim")}
    return Architecture(whole.family, whole.model_type, whole.classes, **sizes)


def stated_sizes(config: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, int, str]]:
    """Each size of a layout that a config.json states: its name, its value, and how it is stated."""
    settings, place = settings_of(config, layout)
    for size, keys in layout.config.items():
        key, value = next(((key, value) for key in keys if (value := at(settings, key)) is not None), ("", None))
        if _is_number(value):
            yield size, value, f"{place}{key} {value:,}"
    yield from _squares(settings, layout)


def _squares(settings: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, int, str]]:
    """How many patches an image is cut into."""
    for size, (whole, part) in layout.images.items():
        across, cut = _sides(at(settings, whole)), _sides(at(settings, part))
        if across and cut:
            squares = prod(long // short for long, short in zip(across, cut, strict=True))
            said = f"{whole} {_either(across)} and {part} {_either(cut)}"
            yield size, squares, f"{said}, which makes {squares:,} {size}"


def stated_experts(config: Mapping[str, Any]) -> tuple[str, int] | None:
    """How many routed experts a model of no known layout is said to have, and the key that says so."""
    inner = config.get("text_config")
    for settings in (config, inner) if isinstance(inner, Mapping) else (config,):
        for key in _EXPERTS:
            if is_size(settings.get(key)):
                return key, settings[key]
    return None


def unusable(config: Mapping[str, Any], layout: Layout | None = None) -> Iterator[str]:
    """What a config.json gives for a size and is none, a sentence each."""
    for key, value in dict(_unusable(config, layout)).items():
        yield f"config.json says {key} {_shown(value)}, which is no size"


def at(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key such as `vision_config.patch_size`; None where there is none."""
    *outer, last = key.split(".")
    for part in outer:
        inner = config.get(part)
        if not isinstance(inner, Mapping):
            return None
        config = inner
    return config.get(last)


def _unusable(config: Mapping[str, Any], layout: Layout | None) -> Iterator[tuple[str, Any]]:
    yield from _unusable_sizes(config, "")
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        yield from _unusable_sizes(inner, "text_config.")
    if layout is not None:
        settings, place = settings_of(config, layout)
        yield from ((place + key, value) for key, value in _unusable_settings(settings, layout))


def _unusable_settings(settings: Mapping[str, Any], layout: Layout) -> Iterator[tuple[str, Any]]:
    """None of something is a number too, and widths of images may be two."""
    sides = {key for keys in layout.images.values() for key in keys}
    for key in [key for keys in layout.config.values() for key in keys]:
        value = at(settings, key)
        if value is not None and not _is_number(value) and not (key in sides and _sides(value)):
            yield key, value


def _unusable_sizes(config: Mapping[str, Any], before: str) -> Iterator[tuple[str, Any]]:
    """Of other families than the known ones a list may be right, a size for each layer, and a 0."""
    known = named_family(config) is not None
    for key in dict.fromkeys([key for keys in keys_of(config).values() for key in keys] + [*HEAD_DIM_KEYS]):
        value = config.get(key)
        if value is not None and not is_size(value) and (known or _is_odd(value)):
            yield before + key, value


def _is_odd(value: Any) -> bool:
    """Whether no family has such a thing for a size."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, str | bool) or (number and not 0 <= value <= MAX_SIZE)


def _is_number(value: object) -> TypeGuard[int]:
    return is_size(value) or (type(value) is int and value == 0)


def _sides(value: Any) -> tuple[int, int] | None:
    """Height and width."""
    sides = value if isinstance(value, list) else [value, value]
    return (sides[0], sides[1]) if len(sides) == 2 and all(map(is_size, sides)) else None


def _either(sides: Sequence[int]) -> str:
    return f"{sides[0]:,}" if sides[0] == sides[1] else f"{sides[0]:,} × {sides[1]:,}"


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
