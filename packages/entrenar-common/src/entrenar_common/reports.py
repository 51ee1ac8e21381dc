"""A report, the frozen dataclass that a command returns, as JSON: its contract with programs."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from enum import Enum
from math import isfinite
from pathlib import PurePath

from entrenar_common.styles import redacted


def as_json(value: object) -> object:
    """A report as plain JSON values: fields by name, raw numbers, null for what is not a finite number."""
    match value:
        case Enum():
            return as_json(value.value)
        case Mapping():
            return {str(as_json(key)): as_json(item) for key, item in value.items()}
        case list() | tuple():
            return [as_json(item) for item in value]
        case set() | frozenset():
            return sorted(map(as_json, value), key=str)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    return _json_scalar(value)


def _json_scalar(value: object) -> object:
    match value:
        case str() | PurePath():
            return redacted(str(value))
        case float():
            return value if isfinite(value) else None
        case date() | datetime():
            return value.isoformat()
        case None | bool() | int():
            return value
    raise TypeError(f"a report holds {type(value).__name__}, which JSON has no place for")
