"""What an adapter's GGUF has to know of the base: its family, its heads, and whether its head is the embeddings."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from entrenar_core.adapters.base import BaseWeights
from entrenar_core.architectures import Architecture, architecture_of, architecture_of_gguf
from entrenar_core.architectures.layouts import Layout, layouts
from entrenar_core.conversion.gguf_families import GgufFamily, gguf_families, written_family
from entrenar_core.conversion.gguf_metadata import query_scale
from entrenar_core.conversion.gguf_names import Renamed, family_of_gguf, renamed, written
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.stored_model import StoredModel

_LAYER = re.compile(r"^blk\.(0|[1-9][0-9]{0,5})\.")


@dataclass(frozen=True, slots=True)
class GgufBase:
    """The base as llama.cpp sees it. `tied` says whether its head is its embeddings, None where that is not known;
    `query_scale` is what its queries are multiplied by in a GGUF.
    """

    family: GgufFamily
    sizes: Architecture
    tied: bool | None
    query_scale: float = 1.0
    weights: BaseWeights | None = None

    @property
    def layout(self) -> Layout:
        """What its tensors are called in transformers."""
        return next(layout for layout in layouts() if self.family.name in layout.families)

    def named(self, module: str) -> Renamed | None:
        """The tensor of a module as a GGUF has it; None where it has no such, or llama.cpp does not need it."""
        weight = f"{module}.weight"
        for prefix in self.layout.prefixes:
            if any(fnmatchcase(weight.removeprefix(prefix), pattern) for pattern in self.family.leaves):
                return None
            found = written([weight], self.family, prefix, self.sizes, self.query_scale).get(weight)
            if found is not None:
                return found
        return None


def base_of(model: StoredModel) -> GgufBase:
    """From an open base model, of which headers and settings are read.

    Raises:
        ModelError: no GGUF of its family is written.
    """
    if model.format is WeightFormat.GGUF:
        found = _of_metadata(model.metadata, str(model.reference))
        tied = "output.weight" not in model.tensors
        return replace(found, tied=tied, weights=BaseWeights(model))
    if model.config is None:
        raise ModelError(
            f"{model.reference} has no config.json, which says how it computes", "name the folder that has it as --base"
        )
    return replace(base_of_config(model.config, str(model.reference)), weights=BaseWeights(model))


def base_of_config(config: Mapping[str, Any], name: str) -> GgufBase:
    """From a config.json alone.

    Raises:
        ModelError: no GGUF of its family is written, or its sizes are not said.
    """
    family, sizes = written_family(config, name), architecture_of(config)
    if not sizes.num_layers or not sizes.num_heads:
        raise ModelError(f"{name}: its config.json does not say how many layers and heads it has", "correct it")
    sizes = replace(sizes, num_kv_heads=sizes.num_kv_heads or sizes.num_heads)
    tied = family.setting(config, "tie_word_embeddings") is True
    return GgufBase(family, sizes, tied, query_scale(family, config, sizes))


def base_of_adapter(model: StoredModel) -> GgufBase:
    """From an adapter's own GGUF, which may leave out the heads.

    Raises:
        ModelError: it names no family that is known.
    """
    found = _of_metadata(model.metadata, str(model.reference))
    layers = [int(at[1]) for name in model.tensors if (at := _LAYER.match(name))]
    return replace(found, sizes=replace(found.sizes, num_layers=max(layers, default=0) + 1), tied=None)


def names_back(base: GgufBase, stored: list[str]) -> Mapping[str, Renamed]:
    """The names in transformers of tensors of a GGUF, of whose order `base` knows the heads."""
    name = base.family.architecture
    metadata: dict[str, Any] = {"general.architecture": name, f"{name}.block_count": base.sizes.num_layers}
    heads = {"head_count": base.sizes.num_heads, "head_count_kv": base.sizes.num_kv_heads}
    metadata |= {f"{name}.attention.{key}": count for key, count in heads.items() if count}
    return renamed(metadata, base.family, stored)


def _of_metadata(metadata: Mapping[str, Any], where: str) -> GgufBase:
    family = family_of_gguf(metadata)
    if family is None:
        said = metadata.get("general.architecture")
        name = f"a {said}" if isinstance(said, str) else "a model that it does not name"
        raise ModelError(
            f"{where} is for {name}, whose tensors have no known names in transformers",
            f"the families are {', '.join(gguf_families())}",
        )
    return GgufBase(family, architecture_of_gguf(metadata), None)
