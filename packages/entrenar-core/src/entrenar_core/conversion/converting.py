"""A stored model written in another format: what is copied, what is cast, and what had to be dequantised."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import Any

from entrenar_core.architectures.detection import detect
from entrenar_core.artifact import MODULES
from entrenar_core.conversion.content import Rounding, as_it_is, cast, telling
from entrenar_core.conversion.files import ADAPTER, BESIDE, cut, is_part, replacing, write_file, write_weights
from entrenar_core.conversion.gguf_config import config_of
from entrenar_core.conversion.gguf_names import Renamed, family_of_gguf, renamed
from entrenar_core.conversion.gguf_rope import FACTORS, LONG, SHORT, rope_of
from entrenar_core.conversion.gguf_tokenizer import write_tokenizer
from entrenar_core.errors import ModelError, OutputError, UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.encoding import CASTS
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

SHARDED = (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH)
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_DEQUANTISED_TO = "F32"
ROPE_TENSORS = (FACTORS, LONG, SHORT)


@dataclass(frozen=True, slots=True)
class Conversion:
    """What was written. `dequantised` counts tensors by the quantised dtype that they had; `cast` those that changed
    their dtype otherwise, and `relative_rms` is how far that moved them, of all their values together.
    """

    output: Path
    format: WeightFormat
    files: tuple[str, ...]
    size_bytes: int
    tensors: int
    copied: int
    cast: int
    dequantised: Mapping[str, int]
    relative_rms: float | None
    largest_error: float | None
    notes: tuple[str, ...]


def convert(
    model: StoredModel,
    kind: WeightFormat,
    output: Path,
    *,
    dtype: str | None = None,
    shard_bytes: int | None = None,
    force: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Writes a model as `kind` to a file, if `output` ends as one of that format does, else to a folder.

    Takes memory for a block of a tensor, or for a whole one where its values are put in another order.

    Args:
        dtype: one of `CASTS`, for all weights that are floats or quantised; as they are, if not given.
        shard_bytes: how large a file of a folder may be.
        progress: is told how many bytes of tensors more are written, and how many there are in all.

    Raises:
        UsageError: the format is not written, has no shards, or the dtype is none that weights are cast to.
        ModelError: a tensor cannot be stored so, or is too large for the dtype.
        OutputError: the output is there already, or cannot be written.
    """
    _require_possible(kind, output, dtype, shard_bytes)
    _require_apart(model, output)
    job = _Job(model, kind, dtype)
    tensors = job.outgoing()
    if progress is not None:
        total = sum(tensor.size_bytes for tensor in tensors)
        tensors = [telling(tensor, partial(_told, progress, total)) for tensor in tensors]
    metadata = job.metadata()  # what refuses a model is met before anything is written
    single = output.name.endswith(FORMATS[kind].suffixes)
    with replacing(output, folder=not single, force=force) as place:
        if single:
            write_file(place, kind, tensors, metadata)
            files: tuple[str, ...] = (output.name,)
        else:
            stem = ADAPTER if model.adapter_config is not None and model.config is None else None
            written = write_weights(place, kind, cut(tensors, shard_bytes), metadata, stem)
            files = (*written, *job.beside(place))
        job.require_kept()
        size = sum((place if single else place / name).stat().st_size for name in files)
    return job.report(output, files, size)


def _told(progress: Callable[[int, int], None], total: int, done: int) -> None:
    progress(done, total)


def _require_possible(kind: WeightFormat, output: Path, dtype: str | None, shard_bytes: int | None) -> None:
    if FORMATS[kind].writer is None:
        raise UsageError(f"{kind} is not written", f"the formats are {', '.join(_written())}")
    other = next((found for found, row in FORMATS.items() if output.name.endswith(row.suffixes)), kind)
    if other is not kind and not output.name.endswith(FORMATS[kind].suffixes):
        raise UsageError(f"{output} ends as a file of {other} does, and {kind} is to be written", "choose another name")
    if dtype is not None and dtype not in CASTS:
        raise UsageError(f"weights are not cast to {dtype}", f"the dtypes are {', '.join(CASTS)}")
    if shard_bytes is not None and (kind not in SHARDED or output.name.endswith(FORMATS[kind].suffixes)):
        raise UsageError(f"{output} is a single file", "--shard-size is for folders of safetensors or PyTorch files")


def _require_apart(model: StoredModel, output: Path) -> None:
    """What is read is not replaced."""
    target = output.resolve()
    for source in model.sources.values():
        path = source.path.resolve() if isinstance(source, FileSource) else None
        if path is not None and (path == target or path.is_relative_to(target)):
            raise OutputError(f"{output} is where the model is read from", "choose another --output")


def _written() -> list[str]:
    return [kind for kind, row in FORMATS.items() if row.writer is not None]


class _Job:
    """One conversion: what becomes of each tensor, and what that changed."""

    def __init__(self, model: StoredModel, kind: WeightFormat, dtype: str | None) -> None:
        self.model, self.kind, self.dtype = model, kind, dtype
        self.writes: Sequence[str] = import_module(f"entrenar_core.formats.{FORMATS[kind].writer}").WRITES
        self.rounding = Rounding()
        self.dequantised: Counter[str] = Counter()
        self.copied = self.cast = 0
        self.notes: list[str] = []
        self.family = family_of_gguf(model.metadata) if model.format is WeightFormat.GGUF else None
        self.names = None if self.family is None else renamed(model.metadata, self.family)
        if model.format is WeightFormat.GGUF and self.family is None:
            self.notes.append("tensors keep the names that llama.cpp gives them, which transformers does not load")

    def outgoing(self) -> list[Outgoing]:
        """Every tensor as it is written, the widest dtypes first, so that each lies at a multiple of its size."""
        found = [self.one(tensor) for tensor in self.model.tensors.values() if not self.dropped(tensor)]
        return sorted(found, key=lambda tensor: -tensor.dtype.block_bytes)

    def dropped(self, tensor: StoredTensor) -> bool:
        """What only llama.cpp has, and a buffer that the format has no dtype for, is told of and left out."""
        if self.names is not None and tensor.name in ROPE_TENSORS:
            return True  # they are in the configuration
        if self.names is not None and tensor.name not in self.names:
            self.notes.append(f"{tensor.name} has no name in transformers, and is left out")
            return True
        if tensor.dtype.kind == "integer" and tensor.dtype.name not in self.writes and tensor.name in self.buffers:
            self.notes.append(f"{tensor.name} is no weight, and is left out: models make it anew")
            return True
        return False

    @cached_property
    def buffers(self) -> frozenset[str]:
        """What older files hold besides weights."""
        found = detect({name: tensor.shape for name, tensor in self.model.tensors.items()})
        return frozenset(found.buffers) if found is not None else frozenset()

    def one(self, tensor: StoredTensor) -> Outgoing:
        wanted = self.wanted(tensor)
        named = Renamed(tensor.name) if self.names is None else self.names[tensor.name]
        if wanted == tensor.dtype and named.change is None:
            self.copied += 1
            return as_it_is(self.model, tensor, named.name)
        if tensor.dtype.kind == "quantised":
            self.dequantised[tensor.dtype.name] += 1
        else:
            self.cast += 1
        return cast(self.model, tensor, wanted, self.rounding, name=named.name, change=named.on(tensor.shape))

    def wanted(self, tensor: StoredTensor) -> Dtype:
        """The dtype that a tensor is written in."""
        kind = tensor.dtype.kind
        wanted = DTYPES[self.dtype] if self.dtype and kind in ("float", "quantised") else tensor.dtype
        if kind == "quantised" and (wanted.name not in self.writes or (self.names is not None and not self.dtype)):
            wanted = DTYPES[_DEQUANTISED_TO]
        if wanted.name not in self.writes:
            raise ModelError(
                f"{FORMATS[self.kind].title} has no {wanted}, which tensor {tensor.name} is stored in",
                f"it has {', '.join(self.writes)}: take another --to, or cast floats with --dtype",
            )
        return wanted

    def metadata(self) -> Mapping[str, Any]:
        """What the file says besides its tensors."""
        config = self.config
        if self.kind is WeightFormat.SAFETENSORS:
            kept = self.model.metadata if self.model.format is WeightFormat.SAFETENSORS else {}
            return {**kept, "format": "pt"}
        if self.kind is WeightFormat.PYTORCH:
            return {}
        if self.model.format in (WeightFormat.APR, WeightFormat.APR_JSON):
            return self.model.metadata
        from entrenar_core.formats.apr_metadata import metadata_of

        return metadata_of(config, name=str(self.model.reference), tokenizer=_tokenizer_of(self.model))

    @cached_property
    def config(self) -> Mapping[str, Any] | None:
        """What config.json says, of a GGUF what it would."""
        if self.family is None:
            return self.model.config
        factors = {name: self.model.array(name).tolist() for name in ROPE_TENSORS if name in self.model.tensors}
        rope = rope_of(self.model.metadata, factors)
        tied = "output.weight" not in self.model.tensors
        return config_of(self.model.metadata, self.family, tied=tied, rope=rope)

    def beside(self, folder: Path) -> tuple[str, ...]:
        """Writes settings and tokenizer beside the weights; the config says which dtype these have now."""
        if self.model.format is not WeightFormat.GGUF:
            return _copied(self.model, folder, self.dtype)
        config = self.config
        if config is None:
            return ()
        dtype = {"dtype": _TORCH_NAMES[self.dtype or _DEQUANTISED_TO]}
        (folder / "config.json").write_text(json.dumps({**config, **dtype}, indent=2) + "\n")
        source = self.model.files[0].source
        assert isinstance(source, FileSource), "values are read of files that are here"
        tokenizer = write_tokenizer(source.path, folder)
        if not tokenizer:
            self.notes.append("transformers makes no tokenizer of this file: copy one from the original model")
        return ("config.json", *tokenizer)

    def require_kept(self) -> None:
        """Refuses what became infinite on the way."""
        if self.rounding.overflowed:
            number = self.rounding.overflowed
            what = "1 value is" if number == 1 else f"{number:,} values are"
            raise ModelError(f"{what} beyond what {self.dtype} holds", "take --dtype bf16 or fp32, which hold them")

    def report(self, output: Path, files: tuple[str, ...], size: int) -> Conversion:
        rounded = self.rounding.values > 0
        return Conversion(
            output,
            self.kind,
            files,
            size,
            self.copied + self.cast + self.dequantised.total(),
            self.copied,
            self.cast,
            dict(self.dequantised),
            self.rounding.relative_rms if rounded else None,
            self.rounding.largest_error if rounded else None,
            tuple(self.notes),
        )


def _tokenizer_of(model: StoredModel) -> Path | None:
    place = model.place
    return place.folder if isinstance(place, LocalPlace) and "tokenizer.json" in place.sizes else None


def _copied(model: StoredModel, folder: Path, dtype: str | None) -> tuple[str, ...]:
    """Copies settings, tokenizer and modules behind the model; the config says which dtype the weights have now."""
    place = model.place
    assert isinstance(place, LocalPlace), "values are read of files that are here"
    written = []
    for name in _beside(place):
        with place.open(name) as source:
            data = source.read(0, source.size_bytes)
        if name == "config.json" and dtype is not None and model.config is not None:
            key = "torch_dtype" if "torch_dtype" in model.config else "dtype"
            data = json.dumps({**model.config, key: _TORCH_NAMES[dtype]}, indent=2).encode() + b"\n"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        written.append(name)
    return tuple(written)


def _beside(place: LocalPlace) -> Iterator[str]:
    """The files of a folder that belong to a model besides its weights."""
    yield from (name for name in BESIDE if name in place.sizes)
    if MODULES in place.sizes:
        parts = sorted(inside for inside in place.folder.iterdir() if inside.is_dir() and is_part(inside.name))
        for part in parts:
            yield from (f"{part.name}/{file.name}" for file in sorted(part.iterdir()) if file.is_file())
