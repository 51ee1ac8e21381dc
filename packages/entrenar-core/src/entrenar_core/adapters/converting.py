"""An adapter written in another form: as peft saves it, as one file of tensors, or as llama.cpp's GGUF.

Values stay as they are, bit for bit, but where a dtype is asked for or a form needs a part of the scale in B. A file of
tensors alone carries its settings in its metadata, where reading finds them again.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from entrenar_core.adapters.adapter import Adapter
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.gguf_base import GgufBase
from entrenar_core.adapters.peft_form import config_of, named_tensors, require_distinct, require_finite
from entrenar_core.adapters.reading import CONFIG_KEY, adapter_of
from entrenar_core.adapters.results import AdapterConversion
from entrenar_core.conversion.casting import Rounding
from entrenar_core.conversion.content import as_it_is, cast
from entrenar_core.conversion.files import ADAPTER, replacing, require_apart, write_file
from entrenar_core.errors import ModelError, UsageError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.dtypes import DTYPES, Dtype
from entrenar_core.formats.writing import Outgoing
from entrenar_core.stored_model import StoredModel

Form = Literal["peft", "safetensors", "pytorch", "gguf"]
_KINDS: Mapping[str, WeightFormat] = {
    "peft": WeightFormat.SAFETENSORS,
    "safetensors": WeightFormat.SAFETENSORS,
    "pytorch": WeightFormat.PYTORCH,
    "gguf": WeightFormat.GGUF,
}
_IN_GGUF = ("F32", "F16", "BF16")
_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class _Draft:
    """What is to be written, before it is decided into which files. `config` is None where its alpha is not known."""

    outgoing: tuple[Outgoing, ...]
    config: dict[str, Any] | None
    rounding: Rounding
    cast: int = 0
    folded: int = 0
    notes: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)


def convert_adapter(
    model: StoredModel,
    form: Form,
    output: Path,
    *,
    base: StoredModel | None = None,
    gguf_base: GgufBase | None = None,
    alpha: float | None = None,
    rslora: bool = False,
    dtype: str | None = None,
    force: bool = False,
) -> AdapterConversion:
    """Writes an open adapter, which may be a GGUF, in another form.

    `peft` is a folder with adapter_config.json; `safetensors` and `pytorch` are a file where `output` ends as one, else
    such a folder; `gguf` is a file.

    Args:
        base: the model that it is for: a GGUF needs its family and heads, and shapes are held against it.
        gguf_base: what is known of it, where its weights are not here.
        alpha: of an adapter whose files do not say it.
        rslora: whether the scale of such an adapter is α / √r.
        dtype: one of F32, F16, BF16 (and F64, but in a GGUF) for all tensors.

    Raises:
        UsageError: the options contradict the files or each other, or its alpha is needed and not known.
        ModelError: it is broken, the form cannot hold it, or it is for another base.
        OutputError: the output is there already, or cannot be written.
    """
    kind = _KINDS[form]
    single = _is_single(form, kind, output)
    wanted = _dtype(dtype, kind)
    require_apart([model], output)
    draft = _draft(model, form, base, gguf_base, (alpha, rslora), wanted)
    require_distinct([tensor.name for tensor in draft.outgoing], str(model.reference))
    if not single and draft.config is None:
        raise UsageError(
            f"{model.reference} does not say its alpha, which an adapter of peft has", "give --alpha as it was trained"
        )
    with replacing(output, folder=not single, force=force) as place:
        files = _write(draft, kind, place, output.name, single=single)
        draft.rounding.require_finite(str(wanted), "take bf16 or fp32, which hold larger numbers")
        size = place.stat().st_size if single else sum((place / name).stat().st_size for name in files)
    moved = draft.rounding.relative_rms if draft.cast and draft.rounding.values else None
    values = sum(_values(tensor) for tensor in draft.outgoing)
    count = len(draft.outgoing)
    return AdapterConversion(
        str(model.reference), model.format, output, form, files, size, count, values, draft.cast, draft.folded, moved,
        draft.notes,
    )  # fmt: skip


def _draft(
    model: StoredModel,
    form: Form,
    base: StoredModel | None,
    gguf_base: GgufBase | None,
    scale: tuple[float | None, bool],
    dtype: Dtype | None,
) -> _Draft:
    if model.format is WeightFormat.GGUF:
        return _of_gguf(model, form, base, gguf_base, scale, dtype)
    adapter = adapter_of(model, alpha=scale[0], rslora=scale[1])
    require_finite(adapter)
    if form == "gguf":
        return _as_gguf(adapter, base, gguf_base, dtype)
    return _as_peft(adapter, None if base is None else BaseWeights(base), dtype)


def _of_gguf(
    model: StoredModel,
    form: Form,
    base: StoredModel | None,
    gguf_base: GgufBase | None,
    scale: tuple[float | None, bool],
    dtype: Dtype | None,
) -> _Draft:
    from entrenar_core.adapters.gguf_back import peft_of
    from entrenar_core.adapters.gguf_base import base_of

    if form == "gguf":
        raise UsageError(f"{model.reference} is a GGUF already", "the others are peft, safetensors and pytorch")
    if scale != (None, False):
        raise UsageError("--alpha and --rslora: a GGUF says its scale itself", "leave them out")
    found = peft_of(model, base_of(base) if base is not None else gguf_base, dtype)
    return _Draft(found.outgoing, found.config, found.rounding, found.cast, notes=found.notes)


def _as_gguf(adapter: Adapter, base: StoredModel | None, known: GgufBase | None, dtype: Dtype | None) -> _Draft:
    from entrenar_core.adapters.gguf import gguf_of
    from entrenar_core.adapters.gguf_base import base_of

    found = base_of(base) if base is not None else known
    if found is None:
        name = adapter.settings.base
        raise ModelError(
            f"a GGUF of {adapter.name} takes the settings of its base model{f', {name}' if name else ''}",
            "give it: --base MODEL; its config.json is enough",
        )
    done = gguf_of(adapter, found, dtype)
    notes = (*adapter.inferred, *done.notes)
    return _Draft(done.outgoing, None, done.rounding, done.cast, done.folded, notes, done.metadata)


def _as_peft(adapter: Adapter, base: BaseWeights | None, dtype: Dtype | None) -> _Draft:
    if base is not None:
        for pair in adapter.pairs:
            base.tensor(pair.module, shape=pair.shape)
    rounding, outgoing, changed = Rounding(), [], 0
    for name, tensor in named_tensors(adapter):
        if dtype is None or dtype == tensor.dtype:
            outgoing.append(as_it_is(adapter.model, tensor, name))
        else:
            changed += 1
            outgoing.append(cast(adapter.model, tensor, dtype, rounding, name=name))
    known = all(pair.scale is not None for pair in adapter.pairs)
    config = config_of(adapter, base) if known else None
    return _Draft(tuple(outgoing), config, rounding, changed, notes=adapter.inferred)


def _write(draft: _Draft, kind: WeightFormat, place: Path, name: str, *, single: bool) -> tuple[str, ...]:
    if single:
        write_file(place, kind, draft.outgoing, draft.metadata or _inside(draft, kind))
        return (name,)
    weights = f"{ADAPTER}{'.bin' if kind is WeightFormat.PYTORCH else FORMATS[kind].suffixes[0]}"
    write_file(place / weights, kind, draft.outgoing, {} if kind is WeightFormat.PYTORCH else {"format": "pt"})
    (place / _CONFIG).write_text(json.dumps(draft.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return weights, _CONFIG


def _inside(draft: _Draft, kind: WeightFormat) -> dict[str, str]:
    """The metadata of a file that stands alone."""
    said: dict[str, str] = {} if kind is WeightFormat.PYTORCH else {"format": "pt"}
    if draft.config is None:
        return said
    alpha, rank = draft.config.get("lora_alpha"), draft.config.get("r")
    return {**said, CONFIG_KEY: json.dumps(draft.config), "lora_alpha": f"{alpha}", "r": f"{rank}"}


def _values(tensor: Outgoing) -> int:
    total = 1
    for length in tensor.shape:
        total *= length
    return total


def _is_single(form: Form, kind: WeightFormat, output: Path) -> bool:
    """Whether one file is written.

    Raises:
        UsageError: the output is called as a file of another form.
    """
    assert form in get_args(Form)
    ends = next((name for name, row in FORMATS.items() if output.name.endswith(row.suffixes)), None)
    if form == "peft" and ends is not None:
        raise UsageError(f"{output} ends as a file does, and peft keeps an adapter in a folder", "name a folder")
    if ends is not None and ends is not kind:
        raise UsageError(f"{output} ends as a file of {ends} does, and {kind} is to be written", "choose another name")
    if form == "gguf" and ends is None:
        raise UsageError(f"{output} does not end as a GGUF does", f"name a file: {output.name}.gguf")
    return ends is not None


def _dtype(name: str | None, kind: WeightFormat) -> Dtype | None:
    if name is not None and kind is WeightFormat.GGUF and name not in _IN_GGUF:
        raise UsageError(f"llama.cpp's adapters have no {name}", f"the dtypes are {', '.join(_IN_GGUF)}")
    return None if name is None else DTYPES[name]
