"""What a model says besides its tensors: in the file that it is written to, and in the files beside that.

An APR file is to be enough by itself. It holds config.json whole, under a key of its own, the tokens and merges or
scores of a BPE or Unigram tokenizer, and none of the other files; which ones are lost so is told.
"""

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from entrenar_core.artifact import MODULES, TOKENIZER_FILES, TOKENIZERS
from entrenar_core.conversion.files import BESIDE, is_part
from entrenar_core.conversion.gguf_planning import GgufPlan
from entrenar_core.conversion.gguf_tokenizer import WrittenTokenizer, write_tokenizer
from entrenar_core.conversion.planning import HF_CONFIG, Plan
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.apr_tokenizer import TokenizerTooLargeError
from entrenar_core.formats.choosing import MAX_TOKENIZER_BYTES, most_bytes
from entrenar_core.formats.copying import copy_range
from entrenar_core.formats.gguf_values import Value
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource
from entrenar_core.models.sentence_files import Pool, sentence_files
from entrenar_core.stored_model import StoredModel
from entrenar_core.training.files import writing

POOLINGS: Mapping[Any, Pool] = {1: "mean", 2: "first", 3: "last"}
"""llama.cpp's numbers for how tokens become one vector."""
_TORCH_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_APR = (WeightFormat.APR, WeightFormat.APR_JSON)
_OF_A_MACHINE = "_name_or_path"  # where the model once lay
_TOO_LARGE = "the tokenizer is too large to be held in the APR file, and is not kept in it"


def metadata_of_file(
    plan: Plan | GgufPlan, *, alone: bool, card: Mapping[str, Value] | None = None, include: bool = True
) -> Mapping[str, Any]:
    """What the file says besides its tensors.

    Args:
        alone: nothing is written beside it, so that what it lacks is lost.
        card: where the model comes from, as a GGUF says it.
        include: whether the file says that.

    Raises:
        ModelError: the tokenizer is broken.
    """
    model = plan.model
    if isinstance(plan, GgufPlan):
        return plan.metadata
    if plan.kind is WeightFormat.SAFETENSORS:
        kept = model.metadata if model.format is WeightFormat.SAFETENSORS and include else {}
        return {**kept, "format": "pt"}
    if plan.kind is WeightFormat.PYTORCH:
        return {}
    if model.format in _APR:
        return _kept(plan)
    found = {**_apr_metadata(plan), **_provenance(card or {})}
    if not include:
        found.pop("name", None)
    if alone:
        plan.notes.extend(_lost(model, found, too_large=_TOO_LARGE in plan.notes))
    return found


def _provenance(card: Mapping[str, Value]) -> dict[str, Any]:
    """What APR asks of where a model is from, as far as that is known."""
    keys = {
        "name": "general.name",
        "license": "general.license",
        "data_source": "general.dataset.0.repo_url",
    }
    return {key: card[name].value for key, name in keys.items() if name in card}


def require_beside(plan: Plan | GgufPlan) -> None:
    """Refuses files that are to be copied beside the weights and are larger than any of their kind.

    Raises:
        ModelError: there is one.
    """
    place = plan.model.place
    if isinstance(plan, GgufPlan):
        return
    if plan.model.format is not WeightFormat.GGUF and not _carried(plan.model) and isinstance(place, LocalPlace):
        for name in _beside(place):
            with place.open(name) as source:
                _require_size(name, source)


def write_beside(plan: Plan | GgufPlan, folder: Path) -> tuple[str, ...]:
    """Writes settings and tokenizer beside the weights; returns the names of the files.

    Raises:
        ModelError: a file of the model cannot be read any more.
        OSError: the folder cannot be written to.
    """
    if isinstance(plan, GgufPlan):
        return ()
    model, leaves_apr = plan.model, plan.model.format in _APR and plan.kind not in _APR
    if model.format is WeightFormat.GGUF:
        return _made_of_gguf(plan, folder)
    if _carried(model):
        if leaves_apr:
            plan.notes.append(
                "of a tokenizer an APR file holds parts: copy its files from the original model"
                if "tokenizer.vocabulary" in model.metadata
                else "the APR file holds no tokenizer: copy its files from the original model, if it has one"
            )
        return _write_config(plan, folder)
    if leaves_apr and model.config is None:
        plan.notes.append("the APR file holds no config.json: copy it and the tokenizer from the original model")
    return _copied(plan, folder)


def _made_of_gguf(plan: Plan, folder: Path) -> tuple[str, ...]:
    if plan.config is None:
        return ()
    written = _tokenizer(plan.model, folder)
    plan.notes.extend(written.notes)
    return (*_write_config(plan, folder), *written.files, *_write_pooling(plan, folder))


def _write_pooling(plan: Plan, folder: Path) -> tuple[str, ...]:
    """How an encoder makes one vector of its tokens, as sentence-transformers looks for it."""
    metadata = plan.model.metadata
    pool = POOLINGS.get(metadata.get(f"{metadata.get('general.architecture')}.pooling_type"))
    config = plan.config or {}
    width, length = config.get("hidden_size"), config.get("max_position_embeddings")
    if pool is None or not isinstance(width, int) or not isinstance(length, int):
        return ()
    plan.notes.append("a GGUF does not say whether vectors are normalised, nor at which length texts were cut")
    files = sentence_files(pool, width, length)
    for name, value in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    return tuple(files)


def _write_config(plan: Plan, folder: Path) -> tuple[str, ...]:
    (folder / "config.json").write_text(json.dumps(_told_config(plan), indent=2) + "\n")
    return ("config.json",)


def _carried(model: StoredModel) -> bool:
    """Whether it is an APR that holds a config.json, and has none beside it."""
    return model.format in _APR and model.config is None and isinstance(model.metadata.get(HF_CONFIG), Mapping)


def _kept(plan: Plan) -> Mapping[str, Any]:
    """From APR to APR, the metadata as it is, but for what it says of sizes and dtypes."""
    found = dict(plan.model.metadata)
    sizes = {
        "total_size": sum(tensor.size_bytes for tensor in plan.outgoing),
        "param_count": sum(math.prod(tensor.shape) for tensor in plan.outgoing),
    }
    config = {HF_CONFIG: _told_config(plan)} if HF_CONFIG in found and plan.dtype else {}
    return {**found, **{key: size for key, size in sizes.items() if key in found}, **config}


def _apr_metadata(plan: Plan) -> Mapping[str, Any]:
    name, place = str(plan.model.reference), plan.model.place
    if plan.model.format is WeightFormat.GGUF and plan.config is not None:
        with tempfile.TemporaryDirectory() as work:
            written = _tokenizer(plan.model, Path(work))
            plan.notes.extend(written.notes)
            found = _with_tokenizer(plan, name, Path(work) if written.files else None)
    else:
        folder = place.folder if isinstance(place, LocalPlace) and "tokenizer.json" in place.sizes else None
        found = _with_tokenizer(plan, name, folder)
    config = _told_config(plan)
    try:
        json.dumps(config, allow_nan=False)
    except ValueError:
        plan.notes.append("config.json has numbers that are not finite, which APR does not hold: keep the file")
        return found
    plain = {key: value for key, value in (config or {}).items() if key != _OF_A_MACHINE}
    return {**found, HF_CONFIG: plain} if plain else found


def _with_tokenizer(plan: Plan, name: str, tokenizer: Path | None) -> dict[str, Any]:
    from entrenar_core.formats.apr_metadata import metadata_of

    try:
        return metadata_of(plan.config, name=name, tokenizer=tokenizer)
    except TokenizerTooLargeError:
        plan.notes.append(_TOO_LARGE)
        return metadata_of(plan.config, name=name)


def _lost(model: StoredModel, metadata: Mapping[str, Any], *, too_large: bool) -> Iterator[str]:
    """What is beside a model and has no place in an APR file."""
    if not isinstance(model.place, LocalPlace) or model.format is WeightFormat.GGUF:
        return
    tokens = "tokenizer.vocabulary" in metadata
    held = ("config.json", *(TOKENIZER_FILES if tokens else ()))
    names = [name for name in _beside(model.place) if name not in held]
    if names:
        told = tokens or too_large or not set(names) & set(TOKENIZERS)
        kind = "" if told else " (a tokenizer that is neither BPE nor Unigram)"
        yield f"an APR file has no place for {', '.join(names)}{kind}: keep the original"
    if tokens:
        yield "of the tokenizer an APR file holds tokens, merges and scores, and not how text is cut before"


def _tokenizer(model: StoredModel, folder: Path) -> WrittenTokenizer:
    source = model.files[0].source
    assert isinstance(source, FileSource), "values are read of files that are here"
    return write_tokenizer(source.path, folder)


def _told_config(plan: Plan) -> Mapping[str, Any] | None:
    """The configuration, with the dtype that the weights have now."""
    if plan.config is None or plan.written_dtype is None:
        return plan.config
    key = "torch_dtype" if "torch_dtype" in plan.config else "dtype"
    return {**plan.config, key: _TORCH_NAMES[plan.written_dtype]}


def _copied(plan: Plan, folder: Path) -> tuple[str, ...]:
    """Copies settings, tokenizer and modules behind the model; the config says which dtype the weights have now."""
    place = plan.model.place
    assert isinstance(place, LocalPlace), "values are read of files that are here"
    written = []
    for name in _beside(place):
        with place.open(name) as source:
            _require_size(name, source)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            if name == "config.json" and plan.dtype is not None and plan.model.config is not None:
                _write_config(plan, folder)
            else:
                _copy(source, folder / name)
        written.append(name)
    return tuple(written)


def copy_beside(source: Path, folder: Path) -> tuple[str, ...]:
    """Copies settings, tokenizer and modules of a model into another folder; returns the names of the files.

    Raises:
        ModelError: a file is too large for its kind.
        OutputError: one cannot be written.
    """
    place, written = LocalPlace(source), []
    for name in _beside(place):
        if (folder / name).exists() and (folder / name).samefile(source / name):
            continue
        with place.open(name) as found, writing(folder / name):
            _require_size(name, found)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(found, folder / name)
        written.append(name)
    return tuple(written)


def _require_size(name: str, source: FileSource) -> None:
    """Only what lies in the folder of a module may be of any size: weights are there too."""
    most = most_bytes(name) if name.endswith(".json") else MAX_TOKENIZER_BYTES if name in BESIDE else None
    if most is not None and source.size_bytes > most:
        kind = "settings" if name.endswith(".json") else "a tokenizer"
        raise ModelError(f"{source.name} is too large for a file of {kind}", "fetch or export the model again")


def _copy(source: FileSource, target: Path) -> None:
    with target.open("wb", buffering=0) as file:
        copy_range(source, 0, file.fileno(), 0, source.size_bytes)


def _beside(place: LocalPlace) -> Iterator[str]:
    """The files of a folder that belong to a model besides its weights."""
    yield from (name for name in BESIDE if name in place.sizes)
    if MODULES in place.sizes:
        parts = sorted(inside for inside in place.folder.iterdir() if inside.is_dir() and is_part(inside.name))
        for part in parts:
            yield from (f"{part.name}/{file.name}" for file in sorted(part.iterdir()) if file.is_file())
