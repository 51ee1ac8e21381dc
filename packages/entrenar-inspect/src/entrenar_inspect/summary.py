"""`entrenar-inspect info`: what a model is, from its headers and settings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from entrenar_core.architectures import SIZES, Architecture, architecture_of, architecture_of_gguf
from entrenar_core.architectures.detection import Detection, constraints, detect, disagreements
from entrenar_core.architectures.layouts import layouts
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.formats.gguf import SkippedArray
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.adapters import adapter_of
from entrenar_inspect.counting import weights_of
from entrenar_inspect.reports.summary import DtypeShare, Experts, ModelSummary
from entrenar_inspect.tokenizers import tokenizer_of

_PER_TOKEN = ("num_experts_per_tok", "num_experts_per_token", "moe_top_k", "top_k_experts")
_GGUF_PER_TOKEN = "expert_used_count"
_LONGEST_VALUE = 200


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model says it is, what its tensors say, and what both say together."""

    stated: Architecture | None
    detection: Detection | None
    architecture: Architecture


def facts_of(model: StoredModel, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Facts:
    """Its configuration, or metadata that serves as one, with what only its tensors tell.

    Args:
        shapes: the tensors by the names of transformers; as they are stored, if not given. llama.cpp's names are not
            those of layouts: without other names, a GGUF is what its metadata says.
    """
    stated = _stated(model)
    if shapes is None and model.format is not WeightFormat.GGUF:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    found = detect(shapes) if shapes is not None else None
    told = found.architecture if found is not None else Architecture(None, None)
    if stated is None:
        return Facts(None, found, told)
    filled = {
        size: getattr(stated, size) or getattr(told, size) for size in (*SIZES, "head_dim", "family", "num_parameters")
    }
    return Facts(stated, found, replace(stated, **filled))


def _stated(model: StoredModel) -> Architecture | None:
    if model.format is WeightFormat.GGUF:
        return architecture_of_gguf(model.metadata)
    if model.config is not None:
        return architecture_of(model.config)
    if model.format in (WeightFormat.APR, WeightFormat.APR_JSON):
        from entrenar_core.formats.apr_metadata import architecture_of_apr

        return architecture_of_apr(model.metadata)
    return None


def summarize(model: StoredModel) -> ModelSummary:
    """A model at a glance.

    Raises:
        ModelError: a file of settings beside it is broken.
    """
    facts = facts_of(model)
    found, shape = facts.detection, facts.architecture
    weights = weights_of(model, found)
    total = sum(weights.values())
    return ModelSummary(
        str(model.reference),
        model.format,
        model.commit,
        tuple(model.sources),
        sum(source.size_bytes for source in model.sources.values()),
        shape.family,
        found.families if found is not None else (),
        found.variant if found is not None else None,
        shape.model_type,
        shape.classes,
        found.heads if found is not None else (),
        total,
        _embedding(model, found, weights),
        _experts(model, found, weights, total),
        shape.num_layers,
        shape.hidden_size,
        shape.num_heads,
        shape.num_kv_heads,
        _head_dim(shape),
        shape.intermediate_size,
        shape.vocab_size,
        shape.max_positions,
        len(model.tensors),
        tuple(dtypes_of(model)),
        _quantisation(model),
        _tied(model, found),
        tokenizer_of(model),
        adapter_of(model),
        {key: _shortened(value) for key, value in model.metadata.items()},
        (*model.faults, *warnings_of(model, facts)),
    )


def warnings_of(model: StoredModel, facts: Facts) -> Iterator[str]:
    """Where what a model says and what it holds differ, and what cannot be."""
    if facts.detection is None:
        said = stated_family(facts) if model.format is not WeightFormat.GGUF else None
        yield from () if said is None else (not_those_of(said),)
        return
    if facts.stated is not None:
        said = (model.config or {}).get("tie_word_embeddings")
        # what is tied and stored all the same is no trouble where the values are the same, which headers do not tell
        yield from disagreements(facts.stated, facts.detection, tied=False if said is False else None)
    yield from constraints(facts.architecture, facts.detection)


def stated_family(facts: Facts) -> str | None:
    """The family that the model says it is, if it is one whose tensors are known."""
    said = facts.stated.family if facts.stated is not None else None
    return said if any(said in layout.families for layout in layouts()) else None


def not_those_of(family: str) -> str:
    """What is said where not even half of a family's tensors are there."""
    return f"the model is said to be a {family}, and its tensors are not those of one"


def dtypes_of(model: StoredModel) -> Iterator[DtypeShare]:
    """The dtypes of a model, those with the most bytes first."""
    found: dict[str, tuple[int, int, int]] = {}
    for tensor in model.tensors.values():
        tensors, values, size = found.get(tensor.dtype.name, (0, 0, 0))
        found[tensor.dtype.name] = (tensors + 1, values + tensor.values, size + tensor.size_bytes)
    shares = (DtypeShare(name, *share) for name, share in found.items())
    yield from sorted(shares, key=lambda share: -share.size_bytes)


def _head_dim(shape: Architecture) -> int | None:
    if shape.head_dim is not None or not shape.num_heads or not shape.hidden_size:
        return shape.head_dim
    return shape.hidden_size // shape.num_heads if shape.hidden_size % shape.num_heads == 0 else None


def _embedding(model: StoredModel, found: Detection | None, weights: Mapping[str, int]) -> int | None:
    names = found.embeddings if found is not None else ()
    if model.format is WeightFormat.GGUF:
        names = tuple(name for name in ("token_embd.weight",) if name in weights)
    return sum(weights.get(name, 0) for name in names) if names else None


def _tied(model: StoredModel, found: Detection | None) -> tuple[tuple[str, str], ...]:
    """What is not stored because another tensor stands for it; llama.cpp takes the embeddings for a missing output."""
    if model.format is WeightFormat.GGUF:
        head, embeddings = "output.weight", "token_embd.weight"
        decodes = f"{model.metadata.get('general.architecture')}.attention.causal" not in model.metadata
        return ((head, embeddings),) if embeddings in model.tensors and head not in model.tensors and decodes else ()
    return found.tied if found is not None else ()


def _experts(model: StoredModel, found: Detection | None, weights: Mapping[str, int], total: int) -> Experts | None:
    """Of a mixture of experts; None of other models."""
    routed = _routed_of_gguf(model, weights) if model.format is WeightFormat.GGUF else _routed(model, found)
    if routed is None or not routed.names:
        return None
    parameters = sum(weights.get(name, 0) for name in routed.names)
    used = routed.per_token
    active = None if used is None else total - parameters + parameters * used // routed.per_layer
    return Experts(routed.per_layer, used, parameters, parameters // (routed.per_layer * len(routed.layers)), active)


@dataclass(frozen=True, slots=True)
class _Routed:
    """The tensors of routed experts, the layers that have them, and how many there are of each."""

    names: tuple[str, ...]
    layers: frozenset[str]
    per_layer: int
    per_token: int | None


def _routed(model: StoredModel, found: Detection | None) -> _Routed | None:
    per_layer = found.sizes.get("experts") if found is not None else None
    if found is None or not per_layer:
        return None
    told = next((value for key in _PER_TOKEN if (value := (model.config or {}).get(key)) is not None), None)
    # the number of the layer that an expert belongs to is the first in its name
    layers = (next((part for part in name.split(".") if part.isdecimal()), "") for name in found.experts)
    return _Routed(found.experts, frozenset(layers), per_layer, _within(told, per_layer))


def _routed_of_gguf(model: StoredModel, weights: Mapping[str, int]) -> _Routed | None:
    """A GGUF has all experts of a layer in one tensor."""
    kind = model.metadata.get("general.architecture")
    per_layer = model.metadata.get(f"{kind}.expert_count")
    if not isinstance(per_layer, int) or per_layer < 1:
        return None
    names = tuple(name for name in weights if "_exps." in name)
    used = _within(model.metadata.get(f"{kind}.{_GGUF_PER_TOKEN}"), per_layer)
    return _Routed(names, frozenset(name.split(".")[1] for name in names), per_layer, used)


def _within(used: Any, per_layer: int) -> int | None:
    return used if isinstance(used, int) and 0 < used <= per_layer else None


def _quantisation(model: StoredModel) -> str | None:
    told = (model.config or {}).get("quantization_config")
    if isinstance(told, Mapping):
        bits = told.get("bits") or (4 if told.get("load_in_4bit") or told.get("_load_in_4bit") else None)
        return f"{told.get('quant_method', 'quantised')}{f', {bits} bits' if bits else ''}"
    quantised = [share for share in dtypes_of(model) if _is_quantised(share.dtype)]
    return f"mostly {quantised[0].dtype}" if quantised else None


def _is_quantised(dtype: str) -> bool:
    return dtype not in DTYPES or DTYPES[dtype].kind == "quantised"  # ggml names more types than are known here


def _shortened(value: Any) -> str:
    text = f"{value.length:,} of {value.kind}" if isinstance(value, SkippedArray) else str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"
