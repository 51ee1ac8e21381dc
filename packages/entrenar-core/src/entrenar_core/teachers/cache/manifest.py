"""What a cache says of itself: of what it was made, what is in it, and how far it is from the teacher."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

from entrenar_core.errors import DataError, Problem
from entrenar_core.models.wants import Wants
from entrenar_core.teachers.cache.settings import AGAIN
from entrenar_core.training.files import write_json

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """A cache's manifest.json.

    `kind` has the name of the kind and its settings, and `layers` which ones are kept, and how; `identity` is what it
    was made of (identity.py); `shards` are the files with their SHA-256, empty until the cache is complete, and `head`
    that of the head of hidden states. `measured` is how far what is kept is from the live teacher, on some rows.
    """

    kind: Mapping[str, Any]
    identity: Mapping[str, Any]
    plan: str
    data: str
    rows: int
    positions: int
    teacher: Mapping[str, Any]
    layers: Mapping[str, Any] | None = None
    head: str | None = None
    shards: Sequence[Mapping[str, Any]] = ()
    built: Mapping[str, Any] | None = None
    measured: Mapping[str, Any] | None = None

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return bool(self.shards)

    @property
    def wants(self) -> Wants:
        """The layers that are kept."""
        if self.layers is None:
            return Wants()
        return Wants(frozenset(self.layers["hidden"]), frozenset(map(int, self.layers["attention"])))

    @property
    def about(self) -> str:
        """SHA-256 of what decides the bytes of its shards; each of them says it of itself."""
        made = [self.kind, self.layers, self._identity, self.plan]
        return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()

    @property
    def _identity(self) -> Mapping[str, Any]:
        """Wherever the teacher lies, and whatever it is called."""
        return {name: value for name, value in self.identity.items() if name != "teacher"}

    def fingerprint(self) -> str:
        """SHA-256 of what is in the cache and of what it was made."""
        content = [self.kind, self.layers, self._identity, self.head, [shard["sha256"] for shard in self.shards]]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        """In one step.

        Raises:
            OutputError: it cannot be written.
        """
        write_json(folder / MANIFEST, {"version": VERSION, **{name: getattr(self, name) for name in self.__slots__}})


def read_manifest(folder: Path) -> Manifest:
    """Of a cache in a folder.

    Raises:
        DataError: there is none, or it is damaged or of another version.
    """
    file = folder / MANIFEST
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        version = content.pop("version")
        if version != VERSION:
            raise DataError(f"{file} is of version {version}, and this is a program for version {VERSION}", AGAIN)
        found = Manifest(**content)
        _require_sound(found)
        return found
    except FileNotFoundError:
        raise DataError(f"{folder} holds no cache", "build one with `entrenar-distill cache build`") from None
    except (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataError(f"{file} is damaged: {error}", AGAIN) from error


_NUMBER = (int, float)
_OF_KINDS: Mapping[str, Mapping[str, Any]] = {
    "hidden": {"precision": str, "width": int, "vocabulary": int, "scale": _NUMBER, "softcap": (*_NUMBER, NoneType)},
    "topk": {"k": int, "lowest": _NUMBER, "highest": _NUMBER, "vocabulary": int},
    "sampled": {"samples": int, "temperature": _NUMBER, "seed": int, "vocabulary": int},
    "logits": {"columns": int},
    "vectors": {"columns": int},
}
_SHOWN = ("reads", "max_length", "dtype", "load_in", "precision", "weights")
"""Of `identity`, what is shown of a cache."""
_SHARD = {"file": str, "rows": int, "bytes": int, "sha256": str}


def _require_sound(found: Manifest) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError where it lacks what others rely on."""
    settings = {name: value for name, value in found.kind.items() if name != "name"}
    _require_types(settings, _OF_KINDS[found.kind["name"]], "kind")
    for shard in found.shards:
        _require_types(shard, _SHARD, "shards")
    _require_types({"rows": found.rows, "positions": found.positions}, {"rows": int, "positions": int}, "it")
    if lacking := {*_SHOWN} - found.identity.keys() or {"reference", "parameters"} - found.teacher.keys():
        raise ValueError(f"it does not say {', '.join(sorted(lacking))}")
    if found.layers is not None and not isinstance(found.layers["precision"], str):
        raise ValueError("`precision` of `layers` is no text")
    _ = found.wants


def _require_types(values: Mapping[str, Any], types: Mapping[str, Any], where: str) -> None:
    for name, value in values.items():
        if not isinstance(value, types[name]) or isinstance(value, bool):
            raise ValueError(f"`{name}` of `{where}` is {value!r}")
    if missing := types.keys() - values.keys():
        raise ValueError(f"`{where}` lacks {', '.join(sorted(missing))}")


def check_manifest(manifest: Manifest, folder: Path) -> list[Problem]:
    """Whether a run can use the cache at all."""
    if manifest.complete:
        return []
    message = f"`teacher.cache`: the cache in {folder} is not complete"
    return [Problem(message, "go on with the same `entrenar-distill cache build`", "teacher.cache")]
