"""Which files of a folder or repository are a model's weights.

A repository often holds the same model several times. What is taken is decided from names alone, so that a folder and
a repository that is not fetched yet are decided alike: files that are named, else the format that is named, else
safetensors before GGUF before PyTorch before ONNX. Nothing here needs torch.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from entrenar_core.errors import ModelError, NotFoundError
from entrenar_core.formats.json_texts import JsonError, parse
from entrenar_core.formats.kinds import FORMATS, LOADED, WeightFormat
from entrenar_core.formats.names import shown
from entrenar_core.formats.shards import shards_by_name

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
_SHARDED = (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH)
TOKENIZER = "tokenizer.json"
MAX_JSON_BYTES, MAX_INDEX_BYTES, MAX_TOKENIZER_BYTES = 16_000_000, 32_000_000, 64_000_000
"""A file of settings is smaller, and so are an index of 200,000 tensors and a tokenizer of as many tokens."""
MAX_TOKENIZER_BUILT_BYTES = 1_000_000_000
"""What all of a tokenizer may take in memory, with merges, where it is to be written into another file or used."""
_MAX_PATH_LETTERS = 4096
_CONVERT = "write it as safetensors first: `entrenar-inspect convert MODEL --to safetensors --output FOLDER`"


@dataclass(frozen=True, slots=True)
class Hints:
    """What to do where several files could be meant, or a pickle would have to be allowed."""

    several: str = "say which one to take with `files`, beside its `model_id`"
    pickles: str = (
        "take a model in safetensors, or set `allow_pickle: true` beside its `model_id` if you trust its source"
    )


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
    if path.name.startswith(_NO_WEIGHTS):
        return None
    return next((kind for kind, row in FORMATS.items() if path.name.endswith(row.suffixes)), None)


def choose_weights(
    names: Collection[str],
    *,
    where: str,
    format: WeightFormat | None = None,  # noqa: A002 - as the setting is called
    files: Sequence[str] | None = None,
    allow_pickle: bool = False,
    among: Collection[WeightFormat] = LOADED,
    unlisted: bool = False,
    hints: "Hints | None" = None,
) -> Weights:
    """Decides which of the files in a folder or repository, called `where` in errors, are the weights.

    Args:
        among: the formats that will do.
        unlisted: whether shards will do that no index lists.
        hints: what to do where files are to be chosen or pickles allowed; in words of settings, if not given.

    Raises:
        NotFoundError: a file that is named is not there.
        UnsoundFileError: there are some of the shards of a model, and no index.
        ModelError: there are none, several and nothing says which, or pickles that are not allowed.
    """
    every = {name: kind for name in names if (kind := format_of(name)) is not None}
    for name in files or ():
        if every.get(name, format) not in (None, *among):
            raise ModelError(f"{where}: no model is loaded from {every[name]}, as which {name} is stored", _CONVERT)
    found = {name: kind for name, kind in every.items() if kind in among}
    told = hints or Hints()
    if files:
        chosen = _named(found, files, where, format)
    else:
        chosen = _preferred(found, set(names), where, format, told, unlisted)
    if chosen.format is WeightFormat.PYTORCH and not allow_pickle:
        raise ModelError(
            f"{where}: {chosen.names[0]} is a pickle, which can run code when it is read",
            told.pickles,
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


def _preferred(
    found: Mapping[str, WeightFormat],
    names: set[str],
    where: str,
    wanted: WeightFormat | None,
    hints: "Hints",
    unlisted: bool,
) -> Weights:
    for kind in [wanted] if wanted else WeightFormat:
        candidates = sorted(name for name in found if found[name] is kind and _on_top(name, kind))
        if unlisted and kind in _SHARDED and (shards := shards_by_name(candidates, where)):
            return Weights(kind, shards)
        if candidates:
            return Weights(kind, (_one_of(candidates, kind, where, hints),))
    if _ADAPTER in names:
        raise ModelError(
            f"{where} holds a PEFT adapter and not the model that it changes", f"{_ADAPTER} names the base model"
        )
    raise ModelError(f"{where} has no {wanted or ''}".rstrip() + " weights", _holds(found or names))


def _one_of(candidates: Sequence[str], kind: WeightFormat, where: str, hints: "Hints") -> str:
    """The customary name, else the only index, else the only file."""
    customary = [name for name in _CUSTOMARY if name in candidates][:1]
    indices = [name for name in candidates if name.endswith(_INDEX)]
    for choice in (customary, indices, candidates):
        if len(choice) == 1:
            return choice[0]
    raise ModelError(
        f"{where} holds {len(candidates)} {kind} files: {', '.join(candidates)}",
        hints.several,
    )


def _on_top(name: str, kind: WeightFormat) -> bool:
    """Folders inside hold further copies of a model; only for ONNX there is a customary one."""
    return "/" not in (name.removeprefix("onnx/") if kind is WeightFormat.ONNX else name)


def _holds(names: Collection[str], limit: int = 20) -> str:
    if not names:
        return "it holds no files"
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"it holds {', '.join(sorted(names)[:limit])}{more}"


def shards_of(folder: Path, index: str) -> tuple[str, ...]:
    """The shards that an index names, relative to `folder`.

    Raises:
        ModelError: the index cannot be read, or names something other than weight files beside or below it.
    """
    return tuple(dict.fromkeys(placed_by(read_json(folder / index), index, str(folder / index)).values()))


def placed_by(listing: Mapping[str, Any], index: str, name: str) -> Mapping[str, str]:
    """Each tensor's shard, relative to the folder of the model, as `listing` says it: the JSON of the file `index`,
    which errors call `name`.

    Raises:
        ModelError: it lists none, or something other than weight files beside or below the index.
    """
    weight_map = listing.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{name} lists no shards", "fetch or export the model again")
    named = weight_map.values()
    for shard in set(named) if all(isinstance(shard, str) for shard in named) else named:
        if not isinstance(shard, str) or not stays_below(shard) or not _is_shard(shard, index):
            raise ModelError(
                f"{name} names the shard {shown(repr(shard))}, which is no weight file of its folder",
                "such an index is broken or hostile: fetch the model from where you trust it",
            )
    above = PurePosixPath(index).parent
    places = {shard: (above / shard).as_posix() for shard in set(weight_map.values())}
    return {tensor: places[shard] for tensor, shard in weight_map.items()}


def _is_shard(name: str, index: str) -> bool:
    return not name.endswith(_INDEX) and format_of(name) is format_of(index)


def stays_below(name: str) -> bool:
    """Whether a path that a model names is a plain one, of a file in its folder or below it. A `*` is in none: to
    onnxruntime one with it is a place in memory. Halves of a surrogate pair, which JSON can have, no system takes.
    """
    odd = name.startswith("/") or {"\\", "\0", ":", "*"} & set(name) or ".." in name.split("/")
    return not odd and len(name) <= _MAX_PATH_LETTERS and not any("\ud800" <= sign <= "\udfff" for sign in name)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that a stranger wrote.

    Raises:
        ModelError: the file is missing, holds no JSON object, or a larger one than any file of its kind.
    """
    try:
        if path.stat().st_size > most_bytes(path.name):
            raise ModelError(f"{path} is too large for a file of settings", "fetch or export the model again")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "fetch or export the model again") from error


def most_bytes(name: str) -> int:
    """How large a file of JSON may be."""
    if name.endswith(_INDEX):
        return MAX_INDEX_BYTES
    return MAX_TOKENIZER_BYTES if name.rpartition("/")[2] == TOKENIZER else MAX_JSON_BYTES


def parse_json(data: bytes | bytearray, name: str, most_built_bytes: int = MAX_TOKENIZER_BUILT_BYTES) -> dict[str, Any]:
    """The JSON object in the bytes of a file called `name`.

    Args:
        most_built_bytes: how much memory it and its text may take.

    Raises:
        ModelError: there is none, or it takes more.
    """
    try:
        value = parse(data, most_built_bytes=most_built_bytes)
    except JsonError as error:
        raise ModelError(f"{name} {error}", "fetch or export the model again") from error
    if not isinstance(value, dict):
        raise ModelError(f"{name} holds {type(value).__name__} instead of an object", "fetch the model again")
    return value
