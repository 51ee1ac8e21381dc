"""`entrenar-inspect info`: what a model is, from its headers and settings."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from entrenar_core.architectures import SIZES, Architecture, architecture_of_gguf, is_size
from entrenar_core.architectures.agreement import implied_ties
from entrenar_core.architectures.detection import Detection, Part, constraints, detect, disagreements, parts_of
from entrenar_core.architectures.layouts import layout_named, layouts
from entrenar_core.architectures.naming import experts_in, layers_in, numbered
from entrenar_core.architectures.stating import stated_architecture, stated_experts, unusable
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.dtypes import DTYPES
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.adapters import adapter_of
from entrenar_inspect.counting import weights_of
from entrenar_inspect.experts import experts_of
from entrenar_inspect.reports.summary import DtypeShare, ModelPart, ModelSummary, TokenizerSummary
from entrenar_inspect.settings import licence_of, metadata_value, other_dtype, rope_of, window_of
from entrenar_inspect.tokenizers import tokenizer_of

_DECODER_LAYERS = ("decoder_layers", "num_decoder_layers")


@dataclass(frozen=True, slots=True)
class Facts:
    """What a model says it is, what its tensors say, and what both say together.

    `parts` are its stacks, if several; `experts` are the tensors of routed experts, of which a layer has `per_layer`.
    """

    stated: Architecture | None
    detection: Detection | None
    architecture: Architecture
    parts: tuple[Part, ...] = ()
    experts: tuple[str, ...] = ()
    per_layer: int = 0


def facts_of(model: StoredModel, shapes: Mapping[str, tuple[int, ...]] | None = None) -> Facts:
    """Its configuration, or metadata that serves as one, with what only its tensors tell.

    Args:
        shapes: the tensors by the names of transformers; as they are stored, if not given. llama.cpp's names are not
            those of layouts: without other names, a GGUF is what its metadata says.
    """
    if shapes is None and model.format is not WeightFormat.GGUF:
        shapes = {name: tensor.shape for name, tensor in model.tensors.items()}
    found = detect(shapes) if shapes is not None else None
    stated = _stated(model, found)
    if found is not None:
        parts = parts_of(stated, found, model.config)
        whole = _of_first(parts, _filled(stated, found.architecture))
        return Facts(stated, found, whole, parts, found.experts, found.sizes.get("experts", 0))
    # of any tensors, what their names tell; those of an adapter are not the model's
    names = numbered(shapes if shapes is not None and adapter_of(model) is None else ())
    told = Architecture(None, None, num_layers=layers_in(names))
    return Facts(stated, None, _filled(stated, told), (), *experts_in(names))


def _filled(stated: Architecture | None, told: Architecture) -> Architecture:
    if stated is None:
        return told
    filled = {size: getattr(stated, size) or getattr(told, size) for size in (*SIZES, "head_dim", "num_parameters")}
    # a family that has no row here is what config.json calls it, whatever its tensors look like
    family = stated.family or stated.model_type or told.family
    return replace(stated, family=family, **filled)


def _of_first(parts: tuple[Part, ...], whole: Architecture) -> Architecture:
    """Where only a later part of a model is stored, such as a decoder alone, its sizes are the model's."""
    if not parts:
        return whole
    first = parts[0]
    return replace(
        whole,
        num_layers=first.num_layers or whole.num_layers,
        hidden_size=first.hidden_size or whole.hidden_size,
        num_heads=first.num_heads or whole.num_heads,
        num_kv_heads=first.num_heads if whole.num_kv_heads == whole.num_heads else whole.num_kv_heads,
        intermediate_size=first.intermediate_size or whole.intermediate_size,
    )


def _stated(model: StoredModel, found: Detection | None) -> Architecture | None:
    if model.format is WeightFormat.GGUF:
        return architecture_of_gguf(model.metadata)
    if model.config is not None:
        return stated_architecture(model.config, layout_named(found.layout) if found is not None else None)
    if model.format in (WeightFormat.APR, WeightFormat.APR_JSON):
        from entrenar_core.formats.apr_metadata import architecture_of_apr

        return architecture_of_apr(model.metadata)
    return None


def summarize(model: StoredModel) -> ModelSummary:
    """A model at a glance. What is broken beside its weights is among the warnings."""
    facts = facts_of(model)
    tokenizer, broken = _tokenizer(model)
    found, shape = facts.detection, facts.architecture
    weights = weights_of(model, found)
    total = sum(weights.values())
    parts = tuple(
        ModelPart(part.name, part.num_layers, part.hidden_size, part.num_heads, part.intermediate_size)
        for part in (facts.parts if len(facts.parts) > 1 else ())
    )
    dtypes, adapter = tuple(dtypes_of(model)), adapter_of(model)
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
        experts_of(model, facts.experts, facts.per_layer, weights),
        shape.num_layers,
        _decoder_layers(model, facts),
        shape.hidden_size,
        shape.num_heads,
        shape.num_kv_heads,
        _head_dim(shape),
        shape.intermediate_size,
        shape.vocab_size,
        shape.max_positions,
        parts,
        rope_of(model),
        window_of(model),
        len(model.tensors),
        dtypes,
        _quantisation(model),
        _tied(model, facts),
        tokenizer,
        adapter,
        licence_of(model),
        {key: metadata_value(value) for key, value in model.metadata.items()},
        (*(fault.message for fault in model.faults), *broken, *warnings_of(model, facts), *other_dtype(model, dtypes)),
    )


def _tokenizer(model: StoredModel) -> tuple[TokenizerSummary | None, tuple[str, ...]]:
    """The tokenizer, or what is wrong with its file: the weights are what they are all the same."""
    try:
        return tokenizer_of(model), ()
    except ModelError as error:
        return None, (error.message,)


def warnings_of(model: StoredModel, facts: Facts) -> Iterator[str]:
    """Where what a model says and what it holds differ, and what cannot be."""
    yield from no_sizes(model, facts)
    if facts.detection is None:
        said = stated_family(facts) if model.format is not WeightFormat.GGUF else None
        yield from () if said is None else (not_those_of(said),)
        yield from other_experts(model, facts)
        return
    if facts.stated is not None:
        said = (model.config or {}).get("tie_word_embeddings")
        # what is tied and stored all the same is no trouble where the values are the same, which headers do not tell
        tied = False if said is False else None
        yield from disagreements(facts.stated, facts.detection, tied=tied, config=model.config)
    yield from constraints(facts.architecture, facts.detection, facts.parts)


def no_sizes(model: StoredModel, facts: Facts) -> tuple[str, ...]:
    """What config.json gives for a size and is none."""
    layout = layout_named(facts.detection.layout) if facts.detection is not None else None
    return tuple(unusable(model.config, layout)) if model.config is not None else ()


def other_experts(model: StoredModel, facts: Facts) -> Iterator[str]:
    """Of a model of no known layout: that its layers have another number of experts than config.json says."""
    said = stated_experts(model.config) if model.config is not None else None
    if said is not None and facts.per_layer and said[1] != facts.per_layer:
        yield f"config.json says {said[0]} {said[1]:,}, and the tensors have {facts.per_layer:,}"


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


def _decoder_layers(model: StoredModel, facts: Facts) -> int | None:
    """Of a model that has an encoder too; of unknown tensors, what its settings say."""
    if facts.detection is not None:
        return next((part.num_layers for part in facts.parts[1:] if part.name == "decoder"), None)
    said = [(model.config or {}).get(key) for key in _DECODER_LAYERS]
    if model.format is WeightFormat.GGUF:
        said = [model.metadata.get(f"{model.metadata.get('general.architecture')}.decoder_block_count")]
    return next(filter(is_size, said), None)


def _embedding(model: StoredModel, found: Detection | None, weights: Mapping[str, int]) -> int | None:
    names = found.embeddings if found is not None else ()
    if model.format is WeightFormat.GGUF:
        names = tuple(name for name in ("token_embd.weight",) if name in weights)
    return sum(weights.get(name, 0) for name in names) if names else None


def _tied(model: StoredModel, facts: Facts) -> tuple[tuple[str, str], ...]:
    """What is not stored because another tensor stands for it; llama.cpp takes the embeddings for a missing output."""
    if model.format is WeightFormat.GGUF:
        head, embeddings = "output.weight", "token_embd.weight"
        decodes = f"{model.metadata.get('general.architecture')}.attention.causal" not in model.metadata
        return ((head, embeddings),) if embeddings in model.tensors and head not in model.tensors and decodes else ()
    if facts.detection is None:
        return ()
    said = (model.config or {}).get("tie_word_embeddings")
    implied = implied_ties(facts.stated, facts.detection) if facts.stated is not None and said is not False else ()
    return (*facts.detection.tied, *implied, *facts.detection.shared)


def _quantisation(model: StoredModel) -> str | None:
    told = (model.config or {}).get("quantization_config")
    if isinstance(told, Mapping):
        bits = told.get("bits") or (4 if told.get("load_in_4bit") or told.get("_load_in_4bit") else None)
        return f"{told.get('quant_method', 'quantised')}{f', {bits} bits' if bits else ''}"
    quantised = [share for share in dtypes_of(model) if _is_quantised(share.dtype)]
    return f"mostly {quantised[0].dtype}" if quantised else None


def _is_quantised(dtype: str) -> bool:
    return dtype not in DTYPES or DTYPES[dtype].kind == "quantised"  # ggml names more types than are known here
