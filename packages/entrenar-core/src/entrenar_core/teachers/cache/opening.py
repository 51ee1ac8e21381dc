"""From a folder to a teacher: a cache that fits the run, with every row that the run will ask for."""

import hashlib
import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entrenar_core.config.teachers import CacheUse
from entrenar_core.errors import ConfigError, DataError, Problem
from entrenar_core.losses.head import Head
from entrenar_core.teachers.cache.building import shard_file, told_of
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.identity import differences, identity_of
from entrenar_core.teachers.cache.kinds import Hidden, Kind, TopK, Values
from entrenar_core.teachers.cache.layers import Layers
from entrenar_core.teachers.cache.manifest import MANIFEST, Manifest, check_manifest, read_manifest
from entrenar_core.teachers.cache.planning import PlannedRow, planned_rows
from entrenar_core.teachers.cache.settings import AGAIN
from entrenar_core.teachers.cache.store import RowStore, Store
from entrenar_core.teachers.texts import texts_of

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

HEAD = "head.safetensors"
_KINDS: Mapping[str, Any] = {"topk": TopK, "sampled": Sampled, "logits": Values, "vectors": Values}
_SHOWN = 60


def kind_of(manifest: Manifest, folder: Path, device: torch.device | str) -> Kind:
    """The kind of a cache, with its head on a device.

    Raises:
        DataError: the head is missing or damaged, or the kind is not known.
    """
    settings = dict(manifest.kind)
    try:
        if settings["name"] != "hidden":
            return _KINDS[settings["name"]](**settings)  # type: ignore[no-any-return]
        check_head(manifest, folder)
        tensors = _head(folder, device)
        head = Head(tensors["weight"], tensors.get("bias"), settings.pop("scale"), settings.pop("softcap"))
        return Hidden(head=head, **settings)
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder} holds a cache of an unknown kind: {error}", AGAIN) from error


def write_head(head: Head, folder: Path) -> str:
    """Writes the head that makes logits of hidden states, and gives the SHA-256 of its file; raises as `writing`."""
    from safetensors.torch import save_file

    from entrenar_core.training.files import writing

    tensors = {"weight": head.weight_VH} | ({} if head.bias_V is None else {"bias": head.bias_V})
    aside = folder / f".{HEAD}.partial"
    with writing(folder / HEAD):
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, aside)
        aside.chmod(folder.stat().st_mode & 0o666)
        aside.replace(folder / HEAD)
        return sha256_of(folder / HEAD)


def check_head(manifest: Manifest, folder: Path) -> None:
    """Raises DataError where the head of a cache is missing, or not what was written."""
    try:
        if manifest.head is not None and sha256_of(folder / HEAD) != manifest.head:
            raise DataError(f"{folder / HEAD} is damaged: it is not what was written", AGAIN)
    except OSError as error:
        raise DataError(f"{folder / HEAD} cannot be read: {error.strerror}", AGAIN) from error


def sha256_of(file: Path) -> str:
    """Of the bytes of a file."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _head(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / HEAD, device=str(device))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / HEAD} cannot be read: {error}", AGAIN) from error


@dataclass(frozen=True, slots=True)
class OpenCache:
    """What is kept of a teacher, ready to be read."""

    store: RowStore
    kind: Kind
    layers: Layers | None


def open_cache(folder: Path, device: torch.device | str) -> tuple[OpenCache, Manifest]:
    """The cache in a folder; raises as `read_manifest`, `kind_of`, `layers_of` and `Store`."""
    manifest = read_manifest(folder)
    return OpenCache(
        store_of(len(manifest.shards), folder, manifest.about), kind_of(manifest, folder, device), layers_of(manifest)
    ), manifest


def store_of(shards: int, folder: Path, about: str) -> Store:
    """So many shards of a cache as a store.

    Raises:
        DataError: as `Store`, or a shard is of another cache.
    """
    store = Store([shard_file(folder, number) for number in range(shards)])
    for number, shard in enumerate(store.shards):
        if shard.about != told_of(about, number):
            raise DataError(f"{shard.file} is of another cache, or at another's place", AGAIN)
    return store


def layers_of(manifest: Manifest) -> Layers | None:
    """The layers of a cache, if it has some.

    Raises:
        DataError: the manifest is damaged.
    """
    if manifest.layers is None:
        return None
    try:
        return Layers.from_json(manifest.layers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{MANIFEST} does not say which layers are kept: {error}", AGAIN) from error


def require_cache(prepared: "Preparation", use: CacheUse) -> None:
    """Compares the folder of a cache with all that a prepared run wants of it.

    Raises:
        DataError: there is no cache, it is not complete, damaged, or lacks rows that nobody would read.
        ConfigError: it was made of something else.
    """
    folder = use.dir
    if folder is None:
        return
    manifest = read_manifest(folder)
    if problems := check_manifest(manifest, folder):
        raise ConfigError(problems)
    if others := list(differences(manifest.identity, identity_of(prepared))):
        message = f"`teacher.cache`: what {folder} was built of is another now: {', '.join(others)}"
        raise ConfigError([Problem(message, "build it again, or change it back")])
    if use.missing == "refuse":
        _require_rows(prepared, folder, store_of(len(manifest.shards), folder, manifest.about))


def _require_rows(prepared: "Preparation", folder: Path, store: Store) -> None:
    if prepared.config.dataset.streaming:
        return  # what a stream has is known when it is met
    missing = [row for row in planned_rows(prepared) if store.place(row.key) is None]
    if missing:
        raise DataError(
            f"the cache in {folder} lacks {len(missing):,} rows of this data, such as {_named(prepared, missing[0])}",
            "it was built with other rows: build it again, or let the teacher read them: `teacher.cache.missing: live`",
        )


def _named(prepared: "Preparation", row: PlannedRow) -> str:
    """A row in the words of the data."""
    if row.split == "texts":
        return repr(texts_of(prepared)[row.index][:_SHOWN])
    tokens = prepared.train_tokens if row.split == "train" else prepared.eval_tokens
    found = next(itertools.islice(iter(tokens), row.index, None))
    text = prepared.tokenizer.decode(found["input_ids"])[:_SHOWN]
    epoch = "" if row.epoch is None else f" as masked in epoch {row.epoch}"
    return f"row {found['row']} of the {row.split} rows{epoch}: {text!r}"
