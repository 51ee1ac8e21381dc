"""File formats of models, one module each, and which files of a folder or repository are a model's weights.

A repository often holds the same model several times. What is taken is decided from names alone, so that a folder and
a repository that is not fetched yet are decided alike: files that are named, else the format that is named, else
safetensors before GGUF before PyTorch before ONNX. Nothing here needs torch.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Any

from entrenar_core.errors import ModelError, NotFoundError


class WeightFormat(StrEnum):
    """How weights are stored. An ONNX file runs and says logits; its weights are not for a student to start from."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    PYTORCH = "pytorch"
    ONNX = "onnx"


_SUFFIXES = {
    ".safetensors": WeightFormat.SAFETENSORS,
    ".gguf": WeightFormat.GGUF,
    ".bin": WeightFormat.PYTORCH,
    ".pt": WeightFormat.PYTORCH,
    ".pth": WeightFormat.PYTORCH,
    ".onnx": WeightFormat.ONNX,
}
_INDEX = ".index.json"
_CUSTOMARY = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.onnx",
    "onnx/model.onnx",
)
# Beside the weights of a model: its adapter, and the state of the training that made it.
_NO_WEIGHTS = ("adapter_model", "training_args", "optimizer", "scheduler", "scaler", "rng_state")
_ADAPTER = "adapter_config.json"
_MAX_JSON_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class Weights:
    """The chosen weights by name; a name that ends in `.index.json` stands for the shards that it lists."""

    format: WeightFormat
    names: tuple[str, ...]

    @property
    def indices(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name.endswith(_INDEX))


def format_of(name: str) -> WeightFormat | None:
    """The format of a weight file, or of the shards of an index; None for a file that holds no model's weights."""
    path = PurePosixPath(name.removesuffix(_INDEX))
    return None if path.name.startswith(_NO_WEIGHTS) else _SUFFIXES.get(path.suffix)


def choose_weights(
    names: Collection[str],
    *,
    where: str,
    format: WeightFormat | None = None,  # noqa: A002 - as the setting is called
    files: Sequence[str] | None = None,
    allow_pickle: bool = False,
) -> Weights:
    """Decides which of the files in a folder or repository, called `where` in errors, are the weights.

    Raises:
        NotFoundError: a file that is named is not there.
        ModelError: there are none, several and nothing says which, or pickles that are not allowed.
    """
    found = {name: kind for name in names if (kind := format_of(name)) is not None}
    chosen = _named(found, files, where, format) if files else _preferred(found, set(names), where, format)
    if chosen.format is WeightFormat.PYTORCH and not allow_pickle:
        raise ModelError(
            f"{where}: {chosen.names[0]} is a pickle, which can run code when it is read",
            "take a model in safetensors, or set `allow_pickle: true` beside its `model_id` if you trust its source",
        )
    return chosen


def _named(found: Mapping[str, WeightFormat], files: Sequence[str], where: str, wanted: WeightFormat | None) -> Weights:
    for name in files:
        if name not in found:
            raise NotFoundError(f"{where} has no weights called {name}", _holds(found))
    formats = {found[name] for name in files}
    if len(formats) > 1 or wanted not in (None, *formats):
        raise ModelError(
            f"{where}: {', '.join(files)} are not {'of one format' if len(formats) > 1 else wanted}",
            "name files of one format, or leave the format out",
        )
    return Weights(formats.pop(), tuple(dict.fromkeys(files)))


def _preferred(found: Mapping[str, WeightFormat], names: set[str], where: str, wanted: WeightFormat | None) -> Weights:
    for kind in [wanted] if wanted else list(WeightFormat):
        candidates = sorted(name for name in found if found[name] is kind and _on_top(name, kind))
        if candidates:
            return Weights(kind, (_one_of(candidates, kind, where),))
    if _ADAPTER in names:
        raise ModelError(
            f"{where} holds a PEFT adapter and not the model that it changes", f"{_ADAPTER} names the base model"
        )
    raise ModelError(f"{where} has no {wanted or ''}".rstrip() + " weights", _holds(found or names))


def _one_of(candidates: Sequence[str], kind: WeightFormat, where: str) -> str:
    """The customary name, else the only index, else the only file."""
    customary = [name for name in _CUSTOMARY if name in candidates][:1]
    indices = [name for name in candidates if name.endswith(_INDEX)]
    for choice in (customary, indices, candidates):
        if len(choice) == 1:
            return choice[0]
    raise ModelError(
        f"{where} holds {len(candidates)} {kind} files: {', '.join(candidates)}",
        "say which one to take with `files`, beside its `model_id`",
    )


def _on_top(name: str, kind: WeightFormat) -> bool:
    """Folders inside hold further copies of a model; only for ONNX there is a customary one."""
    return "/" not in (name.removeprefix("onnx/") if kind is WeightFormat.ONNX else name)


def _holds(names: Collection[str], limit: int = 20) -> str:
    if not names:
        return "it is empty"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"it holds {', '.join(sorted(names)[:limit])}{more}"


def shards_of(folder: Path, index: str) -> tuple[str, ...]:
    """The shards that an index names, relative to `folder`.

    Raises:
        ModelError: the index cannot be read, or names something other than weight files beside or below it.
    """
    weight_map = read_json(folder / index).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not shards:
        raise ModelError(f"{folder / index} lists no shards", "fetch or export the model again")
    for shard in shards:
        if not isinstance(shard, str) or not stays_below(shard) or format_of(shard) is not format_of(index):
            raise ModelError(
                f"{folder / index} names the shard {shard!r}, which is no weight file of its folder",
                "such an index is broken or hostile: fetch the model from where you trust it",
            )
    above = PurePosixPath(index).parent
    return tuple(dict.fromkeys((above / shard).as_posix() for shard in shards))


def stays_below(name: str) -> bool:
    """Whether a path that a model names is a plain one, of a file in its folder or below it. A `*` is in none: to
    onnxruntime one with it is a place in memory.
    """
    return not (name.startswith("/") or {"\\", "\0", ":", "*"} & set(name) or ".." in name.split("/"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a stranger wrote.

    Raises:
        ModelError: the file is missing, larger than 100 MB, or holds no JSON object.
    """
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ModelError(f"{path} is too large for a file of settings")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "fetch or export the model again") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON: {error}", "fetch or export the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{path} holds {type(value).__name__} instead of an object", "fetch the model again")
    return value
