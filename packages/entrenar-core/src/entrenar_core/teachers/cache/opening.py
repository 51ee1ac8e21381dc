"""From a folder to a teacher: a cache that fits the run, with every row that the run will ask for."""

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from entrenar_core.errors import ConfigError, DataError, Problem
from entrenar_core.losses.head import Head
from entrenar_core.teachers.cache.building import shard_file
from entrenar_core.teachers.cache.draws import Sampled
from entrenar_core.teachers.cache.fitting import check_kind
from entrenar_core.teachers.cache.identity import differences, identity_of
from entrenar_core.teachers.cache.kinds import AllLogits, Hidden, Kind, TopK
from entrenar_core.teachers.cache.manifest import Manifest, check_manifest, read_manifest
from entrenar_core.teachers.cache.planning import planned_rows
from entrenar_core.teachers.cache.shards import AGAIN
from entrenar_core.teachers.cache.store import Store
from entrenar_core.teachers.cache.teacher import CachedTeacher

if TYPE_CHECKING:
    from entrenar_core.training.preparation import Preparation

HEAD = "head.safetensors"
_KINDS: Mapping[str, Any] = {"topk": TopK, "sampled": Sampled, "logits": AllLogits}


def kind_settings(kind: Kind) -> dict[str, Any]:
    """A kind as a manifest holds it; the head of hidden states is a file of its own."""
    found = {field.name: getattr(kind, field.name) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    head = found.pop("head", None)
    if head is not None:
        found |= {"scale": head.scale, "softcap": head.softcap}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def kind_of(manifest: Manifest, folder: Path, device: torch.device | str) -> Kind:
    """The kind of a cache, with its head on a device.

    Raises:
        DataError: the head is missing or damaged, or the kind is not known.
    """
    settings = dict(manifest.kind)
    try:
        if settings["name"] != "hidden":
            return _KINDS[settings.pop("name")](**settings)  # type: ignore[no-any-return]
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
        return _sha256(folder / HEAD)


def check_head(manifest: Manifest, folder: Path) -> None:
    """Raises DataError where the head of a cache is missing, or not what was written."""
    try:
        if manifest.head is not None and _sha256(folder / HEAD) != manifest.head:
            raise DataError(f"{folder / HEAD} is damaged: it is not what was written", AGAIN)
    except OSError as error:
        raise DataError(f"{folder / HEAD} cannot be read: {error.strerror}", AGAIN) from error


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _head(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / HEAD, device=str(device))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{folder / HEAD} cannot be read: {error}", AGAIN) from error


def open_cache(folder: Path, device: torch.device | str) -> tuple[CachedTeacher, Manifest]:
    """The cache in a folder as a teacher; raises as `read_manifest`, `kind_of` and `Store`."""
    manifest = read_manifest(folder)
    store = Store([shard_file(folder, number) for number in range(len(manifest.shards))])
    return CachedTeacher(store, kind_of(manifest, folder, device)), manifest


def require_cache(prepared: "Preparation", folder: Path) -> None:
    """Compares a cache with all that a prepared run wants of it.

    Raises:
        DataError: there is no cache, it is not complete, damaged, or lacks rows.
        ConfigError: it was made of something else, or has not what the losses ask for.
    """
    manifest = read_manifest(folder)
    if problems := [*check_manifest(manifest, folder), *check_kind(prepared.config, manifest.kind)]:
        raise ConfigError(problems)
    if others := list(differences(manifest.identity, identity_of(prepared))):
        message = f"`teacher.cache`: what {folder} was built of is another now: {', '.join(others)}"
        raise ConfigError([Problem(message, "build it again, or change it back")])
    store = Store([shard_file(folder, number) for number in range(len(manifest.shards))])
    missing = [row for row in planned_rows(prepared) if store.place(row.key) is None]
    if missing:
        first = missing[0]
        tokens = prepared.train_tokens if first.split == "train" else prepared.eval_tokens
        text = prepared.tokenizer.decode(tokens[first.index]["input_ids"])[:60]
        epoch = "" if first.epoch is None else f" as masked in epoch {first.epoch}"
        raise DataError(
            f"the cache in {folder} lacks {len(missing):,} rows of this data, such as row "
            f"{tokens[first.index]['row']} of the {first.split} rows{epoch}: {text!r}",
            "it was built with other rows: build it again",
        )
