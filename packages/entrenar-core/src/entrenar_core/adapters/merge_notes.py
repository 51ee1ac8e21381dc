"""What is said of a merge that does what was asked, and perhaps not what was meant."""

import re
from collections.abc import Iterator, Sequence

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.formats.names import shown
from entrenar_core.formats.places import LocalPlace
from entrenar_core.stored_model import StoredModel

_SHOWN = 3


def other_base(base: StoredModel, adapter: Adapter) -> Iterator[str]:
    """Where an adapter names another base: shapes of another model may be the same."""
    said = adapter.settings.base
    names = [str(base.reference), str((base.config or {}).get("_name_or_path") or "")]
    if isinstance(base.place, LocalPlace):
        names.append(str(base.place.folder.absolute()))
    if said and _last(said) not in map(_last, names):
        yield (
            f"{adapter.name} says that its base is {shown(said)}: {base.reference} has matrices of the same names and "
            "shapes, and nothing else was compared"
        )


def _last(path: str) -> str:
    """The last part of a name or a path, without a revision."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1].partition("@")[0].lower()


def not_weighed(names: Sequence[str]) -> Iterator[str]:
    """Tensors that adapters bring whole, where weights or a scale are given."""
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        listed = ", ".join(map(shown, names[:_SHOWN]))
        yield f"taken whole from the adapter, whatever its weight and the scale: {listed}{more}"
