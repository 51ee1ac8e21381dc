"""The matrix of the base model that an adapter's module changes: found by name, and put as torch multiplies by it.

An adapter names modules as the model that it was trained in does; files of the same model may leave out the prefix of
its body or have one more, GPT-2's keep matrices transposed, and a GGUF has names and an order of its own.
"""

import difflib
from collections.abc import Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING

from entrenar_core.architectures.layouts import layouts
from entrenar_core.conversion.content import Change, changed_values
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from entrenar_core.conversion.gguf_names import Renamed

_WEIGHT = ".weight"
_CONV1D = ("c_attn", "q_attn", "c_proj", "c_fc")
"""What GPT-2 and its kin call the layers whose matrices may lie transposed, as transformers' Conv1D has them."""
_SHOWN = 3


class BaseWeights:
    """The matrices of an open base model by the modules that adapters name."""

    def __init__(self, base: StoredModel) -> None:
        self.base = base
        self._renamed = _renamed_of(base)
        self._known: Mapping[str, str] = (
            {name: name for name in base.tensors}
            if self._renamed is None
            else {found.name: stored for stored, found in self._renamed.items()}
        )

    @property
    def modules(self) -> Mapping[str, str]:
        """Every module with a matrix by its name in transformers, and what its tensor is called in the files."""
        return {
            name.removesuffix(_WEIGHT): stored
            for name, stored in self._known.items()
            if name.endswith(_WEIGHT) and len(self.base.tensors[stored].shape) == 2
        }

    def tensor(self, module: str, *, shape: tuple[int, ...] | None = None) -> StoredTensor:
        """The tensor that holds a module's matrix, as it is stored.

        Args:
            shape: (out, in) of the change that is to be added to it, or (rows, width) of an embedding's.

        Raises:
            ModelError: the base has no such module, or its matrix is of another shape.
        """
        stored = self.base.tensors[self._stored(module)]
        if shape is not None:
            lying = self._turned(stored)
            if lying != shape:
                raise ModelError(
                    f"{self.base.reference}: {module} is {_by(lying)}, and the adapter changes {_by(shape)} of it",
                    self._other_base(stored),
                )
        return stored

    def is_transposed(self, module: str) -> bool:
        """Whether the matrix is stored as (in, out).

        Raises:
            ModelError: the base has no such module.
        """
        return self._is_conv1d(self._stored(module))

    def values(self, module: str, *, shape: tuple[int, ...] | None = None) -> "NDArray[np.float32]":
        """The matrix as torch multiplies by it, (out, in), or (rows, width) of an embedding: a copy in float32.

        Raises:
            ModelError: as `tensor`, or the values cannot be read.
        """
        import numpy as np

        stored = self.tensor(module, shape=shape)
        found = np.asarray(changed_values(self.base, stored, self._undone(stored)), dtype=np.float32)
        return found.T if self._is_conv1d(stored.name) else found

    def _stored(self, module: str) -> str:
        """The name of the tensor in the base's files."""
        found = next((self._known[name] for name in _spellings(module) if name in self._known), None)
        if found is None:
            found = self._only_below(module)
        if found is None:
            raise ModelError(
                f"{self.base.reference} has no {shown(module)}, which the adapter changes", self._close_to(module)
            )
        return found

    def _only_below(self, module: str) -> str | None:
        """The one tensor whose name ends so, below a prefix that no layout of ours has."""
        if not any(part.isdecimal() for part in module.split(".")):
            return None
        ends = [f".{one}{_WEIGHT}" for one in _inside(module)]
        found = [stored for name, stored in self._known.items() if name.endswith(tuple(ends))]
        return found[0] if len(found) == 1 else None

    def _close_to(self, module: str) -> str:
        modules = [name.removesuffix(_WEIGHT) for name in self._known if name.endswith(_WEIGHT)]
        close = difflib.get_close_matches(module, modules, n=_SHOWN, cutoff=0.4)
        if not close:
            return "the adapter is for another base: give the one that it was trained on"
        return f"the adapter may be for another base; the closest that it has: {', '.join(map(shown, close))}"

    def _other_base(self, stored: StoredTensor) -> str:
        config = self.base.config or {}
        if config.get("quantization_config") or stored.dtype.kind != "float":
            return "its weights are quantised: give the model in 16 or 32 bits that it was made of"
        return "the adapter is for another base: give the one that it was trained on"

    def _turned(self, stored: StoredTensor) -> tuple[int, ...]:
        """The shape as torch multiplies by it."""
        return stored.shape[::-1] if self._is_conv1d(stored.name) else stored.shape

    def _is_conv1d(self, stored: str) -> bool:
        """A layer of GPT-2 makes queries, keys and values at once: where these lie next to each other in rows, its
        matrices are (in, out). Other models with such names have them as linear layers do.
        """
        path = stored.removesuffix(_WEIGHT)
        layer, _, last = path.rpartition(".")
        if last not in _CONV1D or self._renamed is not None:
            return False
        above = layer.rpartition(".")[0]
        for name in (f"{layer}.c_attn{_WEIGHT}", f"{above}.attn.c_attn{_WEIGHT}"):
            fused = self.base.tensors.get(name)
            if fused is not None and len(fused.shape) == 2:
                return fused.shape[1] > fused.shape[0]
        return False

    def _undone(self, stored: StoredTensor) -> Change | None:
        """What gives a GGUF's values the order that they have in transformers; rows and columns are torch's there."""
        renamed = None if self._renamed is None else self._renamed[stored.name]
        if renamed is None or renamed.changed.layout == "transposed":
            return None
        return renamed.undone(stored.shape)


def weight_of(base: StoredModel, module: str, *, shape: tuple[int, ...] | None = None) -> StoredTensor:
    """The tensor of an open base model that holds the matrix of a module that an adapter names, as it is stored.

    Of a head without a tensor of its own it is the embeddings'. For many modules of one base, `BaseWeights` looks its
    names through once.

    Args:
        shape: (out, in) of the change that is to be added to it, or (rows, width) of an embedding's.

    Raises:
        ModelError: the base has no such module, or its matrix is of another shape.
    """
    return BaseWeights(base).tensor(module, shape=shape)


def is_transposed(base: StoredModel, module: str) -> bool:
    """Whether the matrix of a module is stored as (in, out), as GPT-2's are; raises as `weight_of`."""
    return BaseWeights(base).is_transposed(module)


def _renamed_of(base: StoredModel) -> "Mapping[str, Renamed] | None":
    """The names in transformers of the tensors of a GGUF, by those that they have there; None of another format.

    Raises:
        ModelError: transformers has no names for them.
    """
    if base.format is not WeightFormat.GGUF:
        return None
    from entrenar_core.conversion.gguf_names import family_of_gguf, renamed

    family = family_of_gguf(base.metadata)
    if family is None:
        name = base.metadata.get("general.architecture")
        raise ModelError(
            f"{base.reference} is a GGUF of a {name}, whose tensors have no known names in transformers",
            "give the folder of the model as --base",
        )
    return renamed(base.metadata, family, base.tensors)


def _spellings(module: str) -> Iterator[str]:
    """What the tensor of a module may be called, the likeliest first; of a head, the embeddings come last."""
    yield module + _WEIGHT
    yield from (one + _WEIGHT for one in _inside(module))
    yield from (prefix + module + _WEIGHT for prefix in _prefixes())
    for tied in _tied().get(module + _WEIGHT, ()):
        yield tied
        yield from (prefix + tied for prefix in _prefixes())


def _inside(module: str) -> list[str]:
    """A module's names without the prefix of a body."""
    return [module.removeprefix(prefix) for prefix in _prefixes() if module.startswith(prefix)]


@cache
def _prefixes() -> tuple[str, ...]:
    return tuple(dict.fromkeys(prefix for layout in layouts() for prefix in layout.prefixes if prefix))


@cache
def _tied() -> Mapping[str, tuple[str, ...]]:
    """What stands for each tensor that is not stored, of every layout."""
    found: dict[str, dict[str, None]] = {}
    for layout in layouts():
        for name, others in layout.tied.items():
            found.setdefault(name, {}).update(dict.fromkeys(others))
    return {name: tuple(others) for name, others in found.items()}


def _by(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape)) or "a number"
