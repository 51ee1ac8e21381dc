"""Reads the header of a PyTorch file, the zip that torch.save writes since version 1.6; nothing of its pickle is run.

The pickle says which tensors there are. Each is a view of a storage, which is an entry of the zip; what a view
announces is held against that entry. Where a file holds more than a state dict, the state dict is the model.

Source: torch/serialization.py of torch 2.13, and caffe2/serialize/inline_container.cc.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from entrenar_core.errors import ModelError
from entrenar_core.formats.kinds import WeightFormat
from entrenar_core.formats.names import MAX_NAME_BYTES, odd_name
from entrenar_core.formats.pickles import MAX_BYTES, Unacceptable, interpret
from entrenar_core.formats.pytorch_values import NAMES, Storage, StorageType, View
from entrenar_core.formats.sources import FileSource, Source
from entrenar_core.formats.tensors import Header, StoredTensor
from entrenar_core.formats.zips import Archive
from entrenar_core.formats.zips_cut import missing_bytes

PICKLE, BYTE_ORDER, VERSIONS = "data.pkl", "byteorder", ("version", ".data/version")
STATE_DICTS = ("state_dict", "model_state_dict", "model", "module")
"""Where a file that holds more has the state dict."""
_CONTAINERS, _PLAIN = (dict, list, tuple), (str, int, float)
_MAX_DIMENSIONS, _MAX_SIZE = 64, 2**63 - 1
_MAX_TENSORS, _MAX_DEPTH, _MAX_VISITS, _MAX_NAMES_BYTES = 40_000, 64, 1_000_000, 32_000_000


def read(source: Source) -> Header:
    """Reads the directory of the zip and the pickle in it, and checks every tensor.

    Raises:
        ModelError: the file is no sound PyTorch file, or its pickle names more than tensors and plain values.
    """
    return _Reader(source).header()


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.oddities: list[str] = []
        self.storages: dict[str, Storage] = {}
        self.archive = Archive(source, self.fail, self.require_state_dict, self.missing)

    def fail(self, what: str, hint: str = "fetch or save it again") -> ModelError:
        return ModelError(f"{self.source.name} is not a sound PyTorch file: {what}", hint)

    def header(self) -> Header:
        if BYTE_ORDER in self.archive.entries and self.archive.read(BYTE_ORDER, 16) != b"little":
            raise self.fail("its numbers are big-endian", "load and save it with torch on a little-endian machine")
        saved = interpret(self.archive.read(PICKLE, MAX_BYTES), self.find, self.storage, self.fail)
        found, metadata = self.found(saved)
        tensors = tuple(self.tensor(name, view) for name, view in found.items())
        if not tensors:
            self.oddities.append("it holds no tensors")
        values = sum(entry.size_bytes for name, entry in self.archive.entries.items() if name.startswith("data/"))
        header_bytes = self.source.size_bytes - values
        return Header(WeightFormat.PYTORCH, tensors, metadata, header_bytes, tuple(self.oddities))

    def missing(self) -> str:
        """What is missing of a file that was cut short. Elsewhere than here each entry would be a request."""
        return missing_bytes(self.source, PICKLE, self.lengths) if isinstance(self.source, FileSource) else ""

    def lengths(self, data: bytes) -> Mapping[str, int]:
        """How many bytes storages have, as a pickle says it; of an unsound one, as far as it says it."""
        found: dict[str, int] = {}

        def noted(told: object) -> Storage:
            known = _told_storage(told)
            found[f"data/{known.key}"] = known.size_bytes
            return known

        with suppress(ModelError):
            interpret(data, self.find, noted, self.fail)
        return found

    def require_state_dict(self, names: Sequence[str]) -> None:
        """Tells the zips apart that torch, and others, write."""
        inside = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inside:
            raise ModelError(
                f"{self.source.name} is a TorchScript program, not a state dict",
                "load it with torch.jit only if you trust its author, and save its state dict with torch.save",
            )
        if PICKLE not in inside or inside.isdisjoint(VERSIONS):
            raise ModelError(
                f"{self.source.name} is a zip file, but none that torch.save wrote", "unpack it, if a model is in it"
            )

    def find(self, name: str) -> object:
        """What a name in the pickle stands for."""
        if name not in NAMES:
            raise ModelError(
                f"{self.source.name} holds more than tensors and plain values: its pickle names {ascii(name)[1:-1]}; "
                "nothing of it was run",
                "load it with torch only if you trust its author, and save its state dict alone",
            )
        return NAMES[name]

    def storage(self, told: object) -> Storage:
        """The storage that a pickle means by `("storage", class, key, device, length)`."""
        spoken = _told_storage(told)
        key = spoken.key
        known = self.storages.get(key)
        if known is None:
            known = self.storages[key] = spoken
            entry = self.archive.entries.get(f"data/{key}")
            if entry is None or known.size_bytes > entry.size_bytes:
                has = "is not there" if entry is None else f"has {entry.size_bytes:,} bytes"
                raise self.fail(f"storage {key[:80]!r} of {known.size_bytes:,} bytes {has}")
        elif (known.dtype, known.length) != (spoken.dtype, spoken.length):
            raise self.fail(f"storage {key[:80]!r} is spoken of in two ways")
        return known

    def found(self, saved: object) -> tuple[Mapping[str, View], Mapping[str, object]]:
        """The views of the model by name, and the plain values around them."""
        if not isinstance(saved, dict):
            raise self.fail("it holds no dict of tensors", "save a state dict with torch: model.state_dict()")
        search = _Search(self.fail)
        inside = next((key for key in STATE_DICTS if _is_state_dict(saved.get(key))), None)
        if inside is None or _is_state_dict(saved):
            return search.views(saved), search.metadata
        views = search.views(saved.pop(inside), above=inside)
        others = search.views(saved)
        if others:
            self.oddities.append(
                f"besides the state dict under {inside} it holds {len(others):,} tensors, left out here"
            )
        return views, search.metadata

    def tensor(self, name: str, view: View) -> StoredTensor:
        if (why := odd_name(name)) is not None:
            self.oddities.append(f"tensor {name} {why}")
        if view.changed:
            raise self.fail(f"tensor {name} is the conjugate or negative of what is stored", "save a clone of it")
        shape, strides = self.sizes(name, "dimensions", view.shape), self.sizes(name, "strides", view.strides)
        (offset,) = self.sizes(name, "offsets", (view.offset,))
        if len(shape) != len(strides):
            raise self.fail(f"tensor {name} has {len(shape)} dimensions and {len(strides)} strides")
        size = view.dtype.block_bytes
        values, there = math.prod(shape), view.storage.size_bytes // size
        if not values:
            offset = 0  # torch lets it be anywhere
        reach = 1 + sum((length - 1) * stride for length, stride in zip(shape, strides, strict=True)) if values else 0
        if offset + max(reach, values) > there:  # more values than a storage has would be a bomb
            raise self.fail(f"tensor {name} of shape {list(shape)} does not lie inside its storage of {there:,} values")
        kept = None if values < 2 or _row_by_row(shape, strides) else strides
        if view.dtype.block > 1:
            if kept is not None or not shape:
                raise self.fail(f"tensor {name} of {view.dtype} does not lie row by row", "save a contiguous clone")
            shape = (*shape[:-1], shape[-1] * view.dtype.block)
        place = self.archive.entries[f"data/{view.storage.key}"].offset + offset * size
        return StoredTensor(name, view.dtype, shape, "", place, values * size, kept)

    def sizes(self, name: str, what: str, found: tuple[object, ...]) -> tuple[int, ...]:
        sizes = tuple(size for size in found[: _MAX_DIMENSIONS + 1] if type(size) is int and 0 <= size <= _MAX_SIZE)
        if len(sizes) != len(found) or len(sizes) > _MAX_DIMENSIONS:
            raise self.fail(f"tensor {name} has impossible {what}")
        return sizes


def _told_storage(told: object) -> Storage:
    if not isinstance(told, tuple) or len(told) != 5 or told[0] != "storage":
        raise Unacceptable("it is no storage")
    _, kind, key, _, length = told
    if not isinstance(kind, StorageType) or not isinstance(key, str) or type(length) is not int or length < 0:
        raise Unacceptable("its class, key or length is none")
    return Storage(key, kind.dtype, length)


def _is_state_dict(found: object) -> bool:
    """Whether tensors are in it by name, besides single numbers such as a loss."""
    return isinstance(found, dict) and any(isinstance(value, View) and value.shape for value in found.values())


def _row_by_row(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether values follow each other; the stride of a dimension of one does not matter."""
    expected = 1
    for length, stride in zip(reversed(shape), reversed(strides), strict=True):
        if length != 1 and stride != expected:
            return False
        expected *= length
    return True


class _Search:
    """Finds what lies in nested dicts and lists, by names with dots between.

    A container may lie in several places, and even in itself: how many places are looked at is bounded.
    """

    def __init__(self, fail: Callable[[str], ModelError]) -> None:
        self.fail = fail
        self.visits = self.names_bytes = 0
        self.metadata: dict[str, object] = {}

    def views(self, container: dict[object, object], above: str = "") -> dict[str, View]:
        """The tensors by name. What is plain and has a name becomes metadata; there, the name starts with `above`."""
        found: dict[str, View] = {}
        self.enter(container, above, found)
        return {name[len(above) + 1 :]: view for name, view in found.items()} if above else found

    def enter(self, container: Iterable[object], name: str, found: dict[str, View], depth: int = 0) -> None:
        if depth > _MAX_DEPTH:
            raise self.fail(f"dicts and lists nested more than {_MAX_DEPTH} deep")
        named = isinstance(container, dict)
        pairs = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in pairs:
            self.visits += 1
            if self.visits > _MAX_VISITS or len(found) > _MAX_TENSORS:
                raise self.fail("more values, or tensors, than a model has")
            if isinstance(value, _CONTAINERS):
                self.enter(value, self.join(name, key), found, depth + 1)
            elif isinstance(value, View):
                self.put(found, self.join(name, key), value)
            elif named and isinstance(value, _PLAIN):
                self.put(self.metadata, self.join(name, key), value)

    def join(self, name: str, key: object) -> str:
        joined = f"{name}.{key}" if name else str(key)
        self.names_bytes += len(joined)
        if len(joined) > MAX_NAME_BYTES or self.names_bytes > _MAX_NAMES_BYTES:
            raise self.fail(f"the name {joined[:40]}… is too long, or all names together are")
        return joined

    def put(self, found: dict[str, Any], name: str, value: object) -> None:
        if name in found:
            raise self.fail(f"{name} comes twice")
        found[name] = value
