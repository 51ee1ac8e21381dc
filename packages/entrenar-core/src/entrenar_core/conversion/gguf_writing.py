"""A model on its way to a GGUF: from a folder of transformers, or from another GGUF in another quantisation."""

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from entrenar_core.artifact import inspect_folder
from entrenar_core.conversion.gguf_model import GgufModel
from entrenar_core.conversion.gguf_names import Renamed, family_of_gguf, renamed
from entrenar_core.conversion.gguf_planning import GgufPlan
from entrenar_core.conversion.gguf_requantising import kept_metadata
from entrenar_core.conversion.soundness import require_finite_weights
from entrenar_core.errors import ModelError
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.gguf_values import Value, text
from entrenar_core.formats.places import LocalPlace
from entrenar_core.formats.sources import FileSource
from entrenar_core.quantization.mixes import MIXES, Mix
from entrenar_core.stored_model import StoredModel

if TYPE_CHECKING:
    from entrenar_core.conversion.tokens.writing import TokenizerMetadata
    from entrenar_core.importance import ImportanceMatrix
    from entrenar_core.models.sentence_files import Pool

_AS_STORED = {"F32": "f32", "F16": "f16", "BF16": "bf16", "F64": "f32"}
_OF_PHI3 = ("</s>", "<unk>", "<s>", "<|endoftext|>")
_UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K"))
_MODEL = {"general.type": text("model")}


def plan_gguf(
    model: StoredModel,
    mix: Mix | None,
    *,
    importance: "ImportanceMatrix | None" = None,
    card: Mapping[str, Value] | None = None,
) -> GgufPlan:
    """What a GGUF of the model will hold.

    Args:
        mix: the types of its tensors; as most of its weights are stored, if not given.
        importance: how much the inputs of each matrix count.
        card: what the file says of the model's origin: the `general.*` keys.

    Raises:
        ModelError: llama.cpp would not load it, or compute something else.
    """
    require_finite_weights(model)
    if model.format is WeightFormat.GGUF:
        return _requantised(model, mix, importance)
    described = GgufModel(model)
    pool, notes = _pooling(model, described)
    own = described.describe(pool)
    tokenizer = _tokenizer(model, described)
    label = size_label(sum(model.tensors[name].values for name in described.names))
    metadata = {
        "general.architecture": own["general.architecture"], **_MODEL, **_named(card or {}, tokenizer),
        "general.size_label": text(label), **own, **tokenizer.metadata,
    }  # fmt: skip
    return GgufPlan(
        model,
        mix or usual_mix(model),
        described.names,
        metadata,
        factors=described.turning.factors,
        importance=importance,
        notes=(*described.notes, *notes, *tokenizer.notes),
    )


def size_label(weights: int) -> str:
    """How many weights a model has as file names and GGUFs say it, in two digits or more: `135M`, `1.1B`.

    Source: ggml's docs/gguf.md, on file names.
    """
    factor, unit = next(((factor, unit) for factor, unit in _UNITS if weights > factor), _UNITS[-1])
    scaled = weights / factor
    decimals = next(decimals for decimals, least in enumerate((10, 1, 0)) if round(scaled) >= least)
    return f"{scaled:.{decimals}f}{unit}"


def _named(card: Mapping[str, Value], tokenizer: "TokenizerMetadata") -> Mapping[str, Value]:
    """The card, without a name that llama.cpp would take for one of Phi-3's: it then asks for tokens of theirs."""
    name = str(card["general.name"].value).lower() if "general.name" in card else ""
    tokens = tokenizer.metadata["tokenizer.ggml.tokens"].value
    if any(sign in name for sign in ("phi-3", "phi3")) and not set(_OF_PHI3) <= set(tokens):
        return {key: value for key, value in card.items() if key != "general.name"}
    return card


def usual_mix(model: StoredModel) -> Mix:
    """The mix that keeps weights as most of them are stored: f32, f16 or bf16."""
    counts: Counter[str] = Counter()
    for tensor in model.tensors.values():
        counts[tensor.dtype.name] += tensor.values
    return MIXES[_AS_STORED.get(counts.most_common(1)[0][0], "bf16")]


def _requantised(model: StoredModel, mix: Mix | None, importance: "ImportanceMatrix | None") -> GgufPlan:
    source = model.files[0].source
    if mix is None:
        raise ModelError(f"{model.reference} is a GGUF already", "name a type to quantise it to: --quantize q4_k_m")
    assert isinstance(source, FileSource), "values are read of files that are here"
    if not isinstance(model.metadata.get("general.architecture"), str):
        raise ModelError(
            f"{model.reference} does not name its architecture, and llama.cpp loads no such file", "convert it again"
        )
    names = {name: Renamed(name) for name in model.tensors}
    return GgufPlan(model, mix, names, kept_metadata(source.path), importance=importance)


def _folder(model: StoredModel) -> Path:
    if isinstance(model.place, LocalPlace):
        return model.place.folder
    raise ModelError(f"{model.reference} is not here", "fetch it first; only its header was read")


def _pooling(model: StoredModel, described: GgufModel) -> "tuple[Pool | None, tuple[str, ...]]":
    """How an encoder makes one vector of its tokens: the mean, where its folder says nothing."""
    if described.family.family.kind != "encoder" or described.classifies:
        return None, ()
    from entrenar_core.models.sentence_files import pooling_of

    pool = pooling_of(inspect_folder(_folder(model), weights_needed=False, reference=model.reference))
    if pool is not None:
        return pool, ()
    return "mean", ("its folder does not say how vectors of texts are pooled: the file says the mean over tokens",)


def names_in_gguf(model: StoredModel) -> Mapping[str, str]:
    """What a GGUF calls each tensor, by its name in transformers.

    Raises:
        ModelError: no GGUF of the model is written, or transformers has no names for its tensors.
    """
    if model.format is not WeightFormat.GGUF:
        return {name: renamed.name for name, renamed in GgufModel(model).names.items()}
    family = family_of_gguf(model.metadata)
    if family is None:
        raise ModelError(f"transformers has no names for the tensors of {model.reference}", "give an --imatrix")
    return {found.name: name for name, found in renamed(model.metadata, family, model.tensors).items()}


def known_to_differ(model: StoredModel) -> Callable[[str], bool]:
    """Whether llama.cpp is known to cut a text otherwise than the tokenizer of a model does; of a GGUF, whose tokenizer
    is llama.cpp's, it never is.
    """
    if model.format is WeightFormat.GGUF:
        return lambda _: False
    return _tokenizer(model, GgufModel(model)).may_differ


def _tokenizer(model: StoredModel, described: GgufModel) -> "TokenizerMetadata":
    from entrenar_core.conversion.tokens.writing import tokenizer_metadata

    return tokenizer_metadata(
        _folder(model),
        config=described.config,
        vocab_size=described.sizes.vocab_size or 0,
        architecture=described.family.architecture,
    )
