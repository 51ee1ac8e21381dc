"""`entrenar-lora convert`: an adapter in another form, with what is known of its base."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.adapters.converting import Form, convert_adapter
from entrenar_core.errors import EntrenarError, ModelError
from entrenar_core.formats import read_json
from entrenar_core.formats.encoding import dtype_called
from entrenar_core.references import HubReference, parse_reference
from entrenar_core.stored_model import StoredModel, open_model
from entrenar_lora.reports.convert import AdapterConversion

if TYPE_CHECKING:
    from entrenar_core.adapters.gguf_base import GgufBase


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is to be written, and what its files leave open."""

    form: Form
    output: Path
    base: str | None = None
    alpha: float | None = None
    rslora: bool = False
    dtype: str | None = None
    file: str | None = None
    allow_pickle: bool = False
    force: bool = False


def convert(text: str, wanted: Wanted) -> AdapterConversion:
    """Writes the adapter that `text` refers to in another form.

    Raises:
        As `convert_adapter`.
    """
    dtype = None if wanted.dtype is None else dtype_called(wanted.dtype)
    with (
        open_model(parse_reference(text), file=wanted.file, allow_pickle=wanted.allow_pickle) as model,
        _base(model, wanted) as (base, facts),
    ):
        if not model.is_here:
            raise ModelError(
                f"the values of {text} are not here", f"fetch it: `hf download {text}`, and name its folder"
            )
        return convert_adapter(
            model,
            wanted.form,
            wanted.output,
            base=base,
            gguf_base=facts,
            alpha=wanted.alpha,
            rslora=wanted.rslora,
            dtype=dtype,
            force=wanted.force,
        )


@contextmanager
def _base(model: StoredModel, wanted: Wanted) -> "Iterator[tuple[StoredModel | None, GgufBase | None]]":
    """The base model, or what its config.json says where that alone is here: as --base names it, or for a GGUF as the
    adapter does, where that is on this machine.
    """
    if wanted.base is not None:
        facts = _settings_alone(wanted.base)
        if facts is not None:
            yield None, facts
            return
        with open_model(parse_reference(wanted.base)) as given:
            yield given, None
        return
    named = (model.adapter_config or {}).get("base_model_name_or_path")
    base = _here(named) if wanted.form == "gguf" and isinstance(named, str) else None
    try:
        yield base, None
    finally:
        if base is not None:
            base.close()


def _here(name: str) -> StoredModel | None:
    try:
        reference = parse_reference(name)
        return None if isinstance(reference, HubReference) else open_model(reference)
    except EntrenarError:
        return None


def _settings_alone(text: str) -> "GgufBase | None":
    """Of a folder with a config.json and no weights."""
    from entrenar_core.adapters.gguf_base import base_of_config
    from entrenar_core.formats import format_of

    reference = parse_reference(text)
    folder = None if isinstance(reference, HubReference) else reference.locate()
    if folder is None or not folder.is_dir() or not (folder / "config.json").is_file():
        return None
    if any(format_of(file.name) is not None for file in folder.iterdir()):
        return None
    return base_of_config(read_json(folder / "config.json"), text)
