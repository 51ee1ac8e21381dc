"""A model that lies on this machine: its files, what its configuration says it is, and its fingerprint."""

import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from entrenar_core.architectures import Architecture, architecture_of, architecture_of_gguf
from entrenar_core.errors import EntrenarError, ModelError, NotFoundError, UsageError
from entrenar_core.formats import WeightFormat, Weights, choose_weights, format_of, read_json, shards_of
from entrenar_core.formats.gguf import SkippedArray, read_header
from entrenar_core.formats.onnx import external_files
from entrenar_core.formats.places import root_of
from entrenar_core.references import PathReference, Reference

__all__ = ["Architecture", "ModelArtifact", "WeightFormat", "inspect_folder"]

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
"""Files that are a tokenizer, or its vocabulary."""
TOKENIZER_FILES = (
    *TOKENIZERS,
    "merges.txt",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What decides how text becomes ids."""
MODULES = "modules.json"
SENTENCE_FILES = (MODULES, "1_Pooling/config.json")
"""What says how a sentence encoder makes a vector of its tokens."""


@dataclass(frozen=True, slots=True)
class ModelArtifact:
    """A model on this machine, to be loaded from the folder `path`.

    `config` is config.json, or the metadata of a GGUF without its long arrays. `tokenizer_path` is the folder that
    holds a tokenizer, the GGUF that holds one, or None. `commit` is the Hub's, None for what was always here.

    Of a model whose weights are not needed they may be elsewhere: there are no `weight_files` then, and `stated` has
    the SHA-256 of each by its name, where the Hub says so. A model that was only described has no `config`.
    """

    reference: Reference
    path: Path
    weight_files: tuple[Path, ...]
    weight_bytes: int
    format: WeightFormat
    config: Mapping[str, Any]
    architecture: Architecture
    tokenizer_path: Path | None
    commit: str | None = None
    stated: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_here(self) -> bool:
        """Whether there is a folder with its files, if not its weights."""
        return bool(self.config)

    @property
    def knows_weights(self) -> bool:
        """Whether the bytes of its weights are known, or at least their hashes."""
        return bool(self.weight_files or self.stated)

    def fingerprint(self, *, tokenizer: bool = True) -> str:
        """SHA-256 over weights, config and tokenizer, the same wherever the folder lies.

        It is the hash of what `sha256sum` prints for these files, by name, in the order of their names. Reads every
        byte, a block at a time: 1.3 GB/s where the processor has SHA instructions, 0.3 GB/s where it has not.

        Args:
            tokenizer: whether its files belong to it.

        Raises:
            ModelError: one of the files cannot be read any more.
        """
        files = {file.relative_to(self.path).as_posix(): file for file in self.weight_files}
        beside = [self.path / name for name in ("config.json", *(TOKENIZER_FILES if tokenizer else ()))]
        files |= {file.name: file for file in beside if file.is_file()}
        digests = {**self.stated, **{name: _sha256(file) for name, file in files.items()}}
        return hashlib.sha256("".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()).hexdigest()


def _sha256(file: Path) -> str:
    try:
        status = file.stat()
        return _digest(file, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise ModelError(f"{file} cannot be read: {error.strerror}", "check the file and its disk") from error


@functools.lru_cache(maxsize=64)
def _digest(file: Path, _size: int, _changed_ns: int) -> str:
    """SHA-256 of a file, read once while it stays as it is."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def inspect_folder(
    path: Path,
    *,
    format: WeightFormat | None = None,  # noqa: A002 - as the setting is called
    files: Sequence[str] | None = None,
    allow_pickle: bool = False,
    weights_needed: bool = True,
    reference: Reference | None = None,
    commit: str | None = None,
) -> ModelArtifact:
    """The model in a folder, or in one weight file with its config beside it. Reads headers and settings only.

    Where weights are not needed, they may be missing: then what is beside them in the folder is the model.

    Raises:
        NotFoundError: there is no such folder, or no such file in it.
        ModelError: the weights cannot be chosen (see `choose_weights`), a shard is missing or lies elsewhere, or the
            config or header cannot be read.
    """
    reference = reference or PathReference(str(path))
    if path.is_file():
        if files:
            raise UsageError(f"{reference} is one file, and {', '.join(files)} are asked for", "name the folder")
        folder = _folder_of(path)
        path, files = folder, (path.relative_to(folder).as_posix(),)
    names = _names(path, files or ())
    try:
        weights = choose_weights(names, where=str(reference), format=format, files=files, allow_pickle=allow_pickle)
        kind, weight_files = weights.format, _weight_files(path, weights)
    except EntrenarError:
        if weights_needed or not _says_all_beside(path, format):
            raise
        kind, weight_files = format or WeightFormat.SAFETENSORS, ()
    return _artifact(path, kind, weight_files, reference, commit)


def _artifact(
    path: Path, kind: WeightFormat, weight_files: tuple[Path, ...], reference: Reference, commit: str | None
) -> ModelArtifact:
    config, architecture = _configuration(path, kind, weight_files)
    inside = kind is WeightFormat.GGUF and "tokenizer.ggml.model" in config
    beside = any((path / name).is_file() for name in TOKENIZERS)
    return ModelArtifact(
        reference,
        path,
        weight_files,
        sum(file.stat().st_size for file in weight_files),
        kind,
        config,
        architecture,
        weight_files[0] if inside else path if beside else None,
        commit,
    )


def _says_all_beside(folder: Path, kind: WeightFormat | None) -> bool:
    """Whether the folder may say all that is not weights: a GGUF or ONNX file holds more than these."""
    return kind in (None, WeightFormat.SAFETENSORS, WeightFormat.PYTORCH) and (folder / "config.json").is_file()


def _folder_of(file: Path) -> Path:
    """Where the config of a weight file lies: beside it, or above the folder `onnx`."""
    above = file.parent.parent
    inside = file.parent.name == "onnx" and format_of(file.name) is WeightFormat.ONNX
    return above if inside and (above / "config.json").is_file() else file.parent


def _names(folder: Path, files: Sequence[str]) -> set[str]:
    """The files on top of a folder and in its `onnx`, with those asked for by a longer name."""
    if not folder.is_dir():
        raise NotFoundError(f"{folder} does not exist", "check the spelling; a Hub repository reads org/name")
    for name in files:
        if format_of(name) is None or ".." in Path(name).parts or Path(name).is_absolute():
            raise ModelError(
                f"{name} is not the name of a weight file in {folder}",
                "name a folder, or a file inside it such as model.safetensors or model.gguf",
            )
    try:
        found = [*folder.iterdir(), *folder.glob("onnx/*"), *(folder / name for name in files)]
        return {file.relative_to(folder).as_posix() for file in found if file.is_file()}
    except OSError as error:
        raise ModelError(f"{folder} cannot be read: {error.strerror}", "check its permissions") from error


def _weight_files(folder: Path, weights: Weights) -> tuple[Path, ...]:
    names = [name for name in weights.names if name not in weights.indices]
    for lister, listed in _listed(folder, weights):
        for name in listed:
            file = folder / name
            if not file.is_file():
                raise ModelError(f"{folder} lacks {name}, which {lister} lists", "fetch or export the model again")
            if not file.resolve().is_relative_to(root_of(folder)):
                raise ModelError(f"{file} is a link that leads out of its folder", "put the file itself there")
            names.append(name)
    return tuple(folder / name for name in dict.fromkeys(names))


def _listed(folder: Path, weights: Weights) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The files that list others, with what they list: the shards of an index, and where an ONNX graph has weights."""
    for index in weights.indices:
        yield index, shards_of(folder, index)
    for name in weights.names if weights.format is WeightFormat.ONNX else ():
        yield name, external_files(folder / name, folder)


def _configuration(folder: Path, kind: WeightFormat, weights: Sequence[Path]) -> tuple[Mapping[str, Any], Architecture]:
    if kind is WeightFormat.GGUF and weights:
        header = read_header(weights[0])
        architecture = architecture_of_gguf(header.metadata, num_parameters=header.num_parameters)
        short = {key: value for key, value in header.metadata.items() if not isinstance(value, SkippedArray)}
        return short, architecture
    config = read_json(folder / "config.json")
    return config, architecture_of(config)
