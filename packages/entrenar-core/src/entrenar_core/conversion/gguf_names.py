"""What llama.cpp calls the tensors of a model, and transformers those of a GGUF, and what is done to their values.

Names come from the table of the gguf package, asked for every name that the family's layout has; only a first layer is
asked for, whose names those of the others follow: a few bytes may claim any number of layers.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from entrenar_core.architectures import Architecture, architecture_of_gguf
from entrenar_core.architectures.layouts import Layout, anywhere, layouts
from entrenar_core.conversion.content import Change
from entrenar_core.conversion.gguf_changes import UNCHANGED, Changed, change_of
from entrenar_core.conversion.gguf_families import GgufFamily, gguf_families

_LAYER = re.compile(r"(?<=\.)(0|[1-9][0-9]{0,9})(?=\.)")


@dataclass(frozen=True, slots=True)
class Renamed:
    """A tensor's other name, and what a GGUF changes of its values."""

    name: str
    changed: Changed = UNCHANGED

    def shape(self, stored: tuple[int, ...]) -> tuple[int, ...]:
        """Of a tensor that is stored in another where it comes from."""
        return self.changed.shape(stored)

    def undone(self, shape: tuple[int, ...]) -> Change | None:
        """What is done to the values of a tensor of this shape that comes from a GGUF, if anything.

        Raises:
            ModelError: its rows are no whole heads.
        """
        return self.changed.undone(self.name, shape)


@dataclass(frozen=True, slots=True)
class _Spelling:
    """A tensor in both languages, with `*` for its layer: whole, inside its body, and in a GGUF."""

    name: str
    inner: str
    stored: str


def family_of_gguf(metadata: Mapping[str, Any]) -> GgufFamily | None:
    """The family that a GGUF is written back as; None where its layout is not known here."""
    name = metadata.get("general.architecture")
    return next((family for family in gguf_families().values() if family.architecture == name), None)


def renamed(metadata: Mapping[str, Any], family: GgufFamily, stored: Iterable[str]) -> Mapping[str, Renamed]:
    """The tensors of a GGUF by their names there. What is not among them has no name in transformers.

    Args:
        stored: the names of its tensors.
    """
    found = architecture_of_gguf(metadata)
    table = {spelling.stored: spelling for spelling in _spellings(family.name)}
    heads = {there: name for name, there in family.classifier.items()}
    named: dict[str, Renamed] = {name: Renamed(heads[name]) for name in stored if name in heads}
    for name in stored:
        template, layer = _template(name)
        spelling = table.get(template)
        if spelling is not None and name not in heads and (layer is None or int(layer) < (found.num_layers or 0)):
            named[name] = Renamed(_at(spelling.name, layer), _changed(spelling.inner, family, found, 1.0))
    return named


def written(
    names: Iterable[str], family: GgufFamily, prefix: str, architecture: Architecture, scale: float
) -> Mapping[str, Renamed]:
    """The tensors of a folder by their names there. What is not among them has no name in llama.cpp.

    Args:
        prefix: what the names of its body begin with.
        scale: what queries are multiplied by.
    """
    heads = {spelling.name: spelling for spelling in _spellings(family.name)}
    bodies = {prefix + spelling.inner: spelling for spelling in _spellings(family.name)}
    named: dict[str, Renamed] = {}
    for name in names:
        template, layer = _template(_of_today(name))
        spelling = bodies.get(template) or heads.get(template)
        if spelling is not None:
            changed = _changed(spelling.inner, family, architecture, scale)
            named[name] = Renamed(_at(spelling.stored, layer), changed)
    return named


def _changed(inner: str, family: GgufFamily, architecture: Architecture, scale: float) -> Changed:
    return change_of(inner, family.changes, lambda size: getattr(architecture, size), scale)


def _of_today(name: str) -> str:
    """A name whose last part older files call otherwise, such as `gamma`."""
    path, dot, last = name.rpartition(".")
    return f"{path}{dot}{anywhere().older.get(last, last)}"


def _template(name: str) -> tuple[str, str | None]:
    """A name with `*` for its layer, and which that is."""
    layer = _LAYER.search(name)
    return (name, None) if layer is None else (f"{name[: layer.start()]}*{name[layer.end() :]}", layer[1])


def _at(template: str, layer: str | None) -> str:
    return template if layer is None else template.replace("*", layer)


@cache
def _spellings(name: str) -> tuple[_Spelling, ...]:
    """Every tensor of a family that llama.cpp has a name for; of several with one name there, the first."""
    import gguf

    family = gguf_families()[name]
    layout = next(layout for layout in layouts() if name in layout.families)
    architecture = next(key for key, called in gguf.MODEL_ARCH_NAMES.items() if called == family.architecture)
    spelled = gguf.get_tensor_name_map(architecture, 1)
    table: dict[str, _Spelling] = {}
    for whole, inner in _names(layout):
        found = [spelled.get_name(text.replace("*", "0"), (".weight", ".bias")) for text in (whole, inner)]
        stored = next((text for text in found if text is not None), None)
        if stored is not None:
            template = stored.replace("blk.0.", "blk.*.") if "*" in inner else stored
            table.setdefault(template, _Spelling(whole, inner, template))
    return tuple(table.values())


def _names(layout: Layout) -> Iterator[tuple[str, str]]:
    """Every name that a model of the layout may have, whole and inside its body."""
    for group in layout.groups:
        prefix = "" if group.kind == "head" else layout.prefixes[0]
        for template in group.templates:
            yield prefix + template.name, template.name
