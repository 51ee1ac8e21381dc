"""What transformers calls the tensors of a GGUF, and how it lays out their values.

llama.cpp's converter renames tensors, and changes some of them so that its kernels read them in order; here, each such
change is undone. Names come from the table of the gguf package, asked for every name that the family's layout has.
Source: convert_hf_to_gguf.py of https://github.com/ggml-org/llama.cpp, which makes the changes.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from entrenar_core.architectures import Architecture, Family, architecture_of_gguf, families
from entrenar_core.architectures.layouts import Layout, layouts
from entrenar_core.conversion.content import Change
from entrenar_core.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Values = NDArray[np.floating]
Undo = Callable[["Values", int], "Values"]
"""Undoes a change: from values as they are stored, and the number of heads that they belong to."""
_LAYER = re.compile(r"blk\.(0|[1-9][0-9]{0,9})(?=\.)")


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor's name in transformers, and what undoes the change of its values; `heads` is for one of whole heads."""

    name: str
    change: "Undo | None" = None
    heads: int = 0

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Of a tensor that is stored in another, as transformers has it."""
        return stored[::-1] if self.change is _transposed else stored

    def on(self, shape: tuple[int, ...]) -> Change | None:
        """What is done to the values of a tensor of this shape, if anything.

        Raises:
            ModelError: its rows are no whole heads.
        """
        change = self.change
        if change is _halves_apart and not (self.heads and shape and shape[0] % (2 * self.heads) == 0):
            heads = f"{self.heads:,} heads" if self.heads else "no number of heads"
            raise ModelError(
                f"the shape {list(shape)} of {self.name} cannot be cut into heads of pairs: its metadata says {heads}",
                "convert the original model instead",
            )
        return None if change is None else Change(lambda values: change(values, self.heads), self.shape(shape))


def _halves_apart(values: "Values", heads: int) -> "Values":
    """From pairs of rows next to each other to all first ones, then all second ones, within each head."""
    rows, *rest = values.shape
    return values.reshape(heads, rows // (2 * heads), 2, *rest).swapaxes(1, 2).reshape(values.shape)


def _transposed(values: "Values", _: int) -> "Values":
    return values.T


def _less_one(values: "Values", _: int) -> "Values":
    return values - 1


# By the name of the family: names in the body, what undoes the change, and whose heads it concerns.
_CHANGES: Mapping[str, tuple[tuple[str, Undo, str], ...]] = {
    "llama": (
        ("layers.*.self_attn.q_proj.*", _halves_apart, "num_heads"),
        ("layers.*.self_attn.k_proj.*", _halves_apart, "num_kv_heads"),
    ),
    "qwen2": (),
    "qwen3": (),
    "gemma2": (("*norm.weight", _less_one, ""),),
    "gemma3": (("*norm.weight", _less_one, ""),),
    "phi3": (),
    "gpt2": (
        ("h.*.attn.c_attn.weight", _transposed, ""),
        ("h.*.attn.c_proj.weight", _transposed, ""),
        ("h.*.mlp.c_*.weight", _transposed, ""),
    ),
    "starcoder2": (),
}
FAMILIES = tuple(_CHANGES)
"""The families whose GGUF files are written as transformers has them."""


def family_of_gguf(metadata: Mapping[str, Any]) -> Family | None:
    """The family that a GGUF is written back as; None where its layout is not known here."""
    name = metadata.get("general.architecture")
    return next((family for family in families().values() if family.gguf == name and family.name in FAMILIES), None)


def renamed(metadata: Mapping[str, Any], family: Family, stored: Iterable[str]) -> Mapping[str, Renamed]:
    """The tensors of a GGUF by their names there. What is not among them has no name in transformers.

    Only its first layer is asked for, whose names those of the others follow: a few bytes may claim any number of them.

    Args:
        stored: the names of its tensors.
    """
    found = architecture_of_gguf(metadata)
    first = _first_layer(family, found)
    return {name: known for name in stored if (known := _known(name, first, found.num_layers or 0)) is not None}


def _known(stored: str, first: Mapping[str, tuple[str, Renamed]], layers: int) -> Renamed | None:
    layer = _LAYER.match(stored)
    if layer is None:
        found = first.get(stored)
        return None if found is None else found[1]
    found = first.get(_LAYER.sub("blk.0", stored, count=1)) if int(layer[1]) < layers else None
    return None if found is None else replace(found[1], name=found[0].replace("*", layer[1]))


def _first_layer(family: Family, found: Architecture) -> Mapping[str, tuple[str, Renamed]]:
    """By what llama.cpp calls them, the tensors of a model's first layer and those of none, with their templates."""
    import gguf

    layout = next(layout for layout in layouts() if family.name in layout.families)
    architecture = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == family.gguf)
    spelled = gguf.get_tensor_name_map(architecture, 1)
    table: dict[str, tuple[str, Renamed]] = {}
    for template, inner in _names(layout):
        name = template.replace("*", "0")
        stored = spelled.get_name(name, (".weight", ".bias"))
        if stored is not None:
            table.setdefault(stored, (template, _changed(name, inner, family, found)))
    return table


def _names(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every name that a model of the layout may have, whole and inside its body, with `*` for its layer."""
    for group in layout.groups:
        prefix = "" if group.kind == "head" else layout.prefixes[0]
        for template in group.templates:
            yield prefix + template.name, template.name


def _changed(name: str, inner: str, family: Family, found: Architecture) -> Renamed:
    for pattern, change, heads in _CHANGES[family.name]:
        if fnmatchcase(inner, pattern):
            return Renamed(name, change, getattr(found, heads) or 0 if heads else 0)
    return Renamed(name)
