"""Where each tensor of adapters belongs in a base model; nothing is computed or written yet.

Every one must find its place: one that is left over would make a merge a wrong one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from entrenar_core.adapters.adapter import Adapter, Pair, require_scales
from entrenar_core.adapters.base import BaseWeights
from entrenar_core.adapters.merge_notes import not_weighed, other_base
from entrenar_core.adapters.principal import require_mergeable
from entrenar_core.adapters.ties_of_heads import Tied, tied_tensors
from entrenar_core.architectures.layouts import layouts
from entrenar_core.errors import ModelError
from entrenar_core.formats import FORMATS, WeightFormat
from entrenar_core.formats.names import shown
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel

FLOATS = ("F64", "F32", "F16", "BF16")
"""The dtypes of weights that something can be added to."""
OTHER_BASE = "the adapter is for another base: give the one that it was trained on"
"""What is to be done where shapes do not fit."""
HEAD_CLASSES = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification"}
"""What transformers calls the models of peft's tasks that have a head of their own."""
_HEADS = frozenset({"classifier", "score"})
"""What peft saves of them without being told."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one adapter, the `number`-th, adds to a matrix; `weight` includes what all are multiplied by."""

    adapter: Adapter
    pair: Pair
    weight: float
    number: int


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor of the merged model that is not the base's own. `tensor` is what it is made from, of the base, or of
    `whole` where an adapter brings it: the embeddings that peft saves beside an adapter of theirs are changed too.
    """

    name: str
    module: str
    tensor: StoredTensor
    transposed: bool = False
    parts: tuple[Part, ...] = ()
    bias: bool = False
    whole: Adapter | None = None

    def model(self, base: StoredModel) -> StoredModel:
        """Where `tensor` is."""
        return base if self.whole is None else self.whole.model


@dataclass(slots=True)
class Placed:
    """The tensors of adapters by the names of the base's that they change, stand for, or are new beside."""

    base: StoredModel
    weights: BaseWeights
    tied: Tied
    parts: dict[str, list[Part]] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    sources: dict[str, StoredTensor] = field(default_factory=dict)
    biases: dict[str, list[Part]] = field(default_factory=dict)
    whole: dict[str, tuple[Adapter, StoredTensor]] = field(default_factory=dict)
    new: dict[str, tuple[Adapter, StoredTensor]] = field(default_factory=dict)
    prefixes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)


def placed_in(base: StoredModel, adapters: Sequence[tuple[Adapter, float]]) -> Placed:
    """Finds the places of all tensors of adapters, each of which has a weight.

    Raises:
        UsageError: an adapter's alpha is not known.
        ModelError: the base is quantised or of a format whose weights are not added to, an adapter is for another
            base, or is of a kind that cannot be merged; or two bring the same tensor.
    """
    require_base(base)
    placed = Placed(base, BaseWeights(base), tied_tensors(base))
    for number, (adapter, weight) in enumerate(adapters):
        require_scales(adapter)
        require_mergeable(adapter.settings, adapter.name)
        for pair in adapter.pairs:
            _place_pair(placed, Part(adapter, pair, weight, number))
        for name, tensor in adapter.whole.items():
            _place_whole(placed, adapter, name, tensor)
        placed.notes.extend(adapter.inferred)
        placed.notes.extend(other_base(base, adapter))
    _settle_whole(placed)
    if any(weight != 1 for _, weight in adapters):
        alone = [name for name in placed.whole if name not in placed.parts and name not in placed.biases]
        placed.notes.extend(not_weighed([*alone, *placed.new]))
    return placed


def require_base(base: StoredModel) -> None:
    """Refuses a model whose weights nothing can be added to.

    Raises:
        ModelError: its values are not here, it is quantised, or of another format.
    """
    if not base.is_here:
        raise ModelError(f"the values of {base.reference} are not here", f"fetch it: `hf download {base.reference}`")
    how = (base.config or {}).get("quantization_config")
    if how:
        method = how.get("quant_method") if isinstance(how, Mapping) else None
        raise ModelError(
            f"{base.reference} is quantised{f' ({method})' if method else ''}, and an update is lost in its few bits",
            "merge into the model in 16 or 32 bits that it was made of, then quantise: --to gguf --quantize q4_k_m",
        )
    if base.format is WeightFormat.GGUF:
        quantised = any(tensor.dtype.kind == "quantised" for tensor in base.tensors.values())
        raise ModelError(
            f"{base.reference} is a {'quantised ' if quantised else ''}GGUF, into which nothing is merged",
            "take the model that it was made of, and --to gguf"
            if quantised
            else f"convert it first: `entrenar-inspect convert {base.reference} --to safetensors --output ./base`",
        )
    if base.format not in (WeightFormat.SAFETENSORS, WeightFormat.PYTORCH):
        raise ModelError(
            f"{base.reference} is of the format {FORMATS[base.format].title}, into which nothing is merged",
            f"convert it first: `entrenar-inspect convert {base.reference} --to safetensors --output ./base`",
        )


def _place_pair(placed: Placed, part: Part) -> None:
    pair = part.pair
    tensor = placed.weights.tensor(pair.module, shape=pair.shape)
    if tensor.dtype.name not in FLOATS:
        raise ModelError(
            f"{placed.base.reference}: {shown(tensor.name)} is stored as {tensor.dtype}, to which nothing is added",
            "merge into the model in 16 or 32 bits that it was made of",
        )
    name = tensor.name
    head = placed.tied.head_of(tensor.name)
    if head is not None and not pair.embedding:
        name = head  # a linear layer whose matrix is the embeddings is the head that they stand for
    else:
        _note_prefix(placed, pair.module, tensor.name)
    _require_vectors(part)
    parts = placed.parts.setdefault(name, [])
    if any(other.number == part.number for other in parts):
        raise ModelError(f"{part.adapter.name} changes {shown(name)} twice", "save the adapter again")
    parts.append(part)
    placed.modules[name], placed.sources[name] = pair.module, tensor
    if pair.up_bias is not None:
        bias = stored_name(placed.base, f"{name.removesuffix('.weight')}.bias")
        if bias is None:
            raise ModelError(
                f"{part.adapter.name} adds a bias to {pair.module}, which has none in {placed.base.reference}",
                "such an adapter cannot be merged: load it with peft",
            )
        placed.biases.setdefault(bias, []).append(part)


def _require_vectors(part: Part) -> None:
    """Of DoRA and of B's bias there is a number for each output."""
    pair = part.pair
    outputs = pair.shape[1] if pair.embedding else pair.shape[0]
    for vector, what in ((pair.magnitude, "magnitudes"), (pair.up_bias, "biases")):
        if vector is not None and vector.values != outputs:
            raise ModelError(
                f"{part.adapter.name}: {pair.module} has {outputs} outputs, and {vector.values} {what}", OTHER_BASE
            )


def _note_prefix(placed: Placed, module: str, stored: str) -> None:
    wanted = f"{module}.weight"
    if wanted.endswith(stored) and wanted != stored:
        placed.prefixes.add(wanted.removesuffix(stored))


def _place_whole(placed: Placed, adapter: Adapter, name: str, tensor: StoredTensor) -> None:
    """A tensor that stands in place of the base's, or is new: a head that was trained."""
    found = stored_name(placed.base, name)
    head = name if found is None and name in placed.tied.standing else None
    if found is None and head is None:
        if not _is_new_head(adapter, name):
            raise ModelError(
                f"{adapter.name} has {shown(name)}, for which {placed.base.reference} has no place", OTHER_BASE
            )
        place, known = name, placed.new
    else:
        place, known = head or found or name, placed.whole
        _require_shape(placed, adapter, tensor, placed.base.tensors[placed.tied.standing[head] if head else place])
    if place in known and not _repeats(known[place], adapter, tensor):
        raise ModelError(
            f"{known[place][0].name} and {adapter.name} both bring a whole {shown(place)}",
            "combine adapters without `modules_to_save` and biases in common",
        )
    known[place] = (adapter, tensor)


def _require_shape(placed: Placed, adapter: Adapter, tensor: StoredTensor, old: StoredTensor) -> None:
    if old.shape == tensor.shape or _tells_other_classes(adapter, tensor, old):
        return
    of_tokens = old.name in placed.tied.embeddings or "embed" in old.name or "head" in old.name
    raise ModelError(
        f"{adapter.name}: {shown(old.name)} is {_by(tensor)}, and {_by(old)} in {placed.base.reference}",
        "if tokens were added before it was trained, add them to the base model first" if of_tokens else OTHER_BASE,
    )


def _tells_other_classes(adapter: Adapter, tensor: StoredTensor, old: StoredTensor) -> bool:
    """Whether it is the last layer of a head that was trained for other classes than the base's tells apart."""
    classifies = adapter.settings.said.get("task_type") in HEAD_CLASSES and {"classifier", "score"} & set(
        old.name.split(".")
    )
    return bool(classifies) and len(old.shape) == len(tensor.shape) and old.shape[1:] == tensor.shape[1:]


def _repeats(known: tuple[Adapter, StoredTensor], adapter: Adapter, tensor: StoredTensor) -> bool:
    """Whether another adapter brings the same values."""
    import numpy as np

    other, before = known
    return before.shape == tensor.shape and bool(np.array_equal(other.values(before), adapter.values(tensor)))


def _is_new_head(adapter: Adapter, name: str) -> bool:
    """Whether it is said to be trained whole: by name, or because the task has such a head."""
    parts = name.split(".")
    saved = any(module in parts or name.startswith(f"{module}.") for module in adapter.settings.modules_to_save)
    return saved or (
        adapter.settings.said.get("task_type") in HEAD_CLASSES and {"classifier", "score"} & set(parts) != set()
    )


def stored_name(base: StoredModel, name: str) -> str | None:
    """What the base calls a tensor, with the prefix of its body or without."""
    prefixes = dict.fromkeys(prefix for layout in layouts() for prefix in layout.prefixes if prefix)
    inside = (name.removeprefix(prefix) for prefix in prefixes if name.startswith(prefix))
    every = (name, *inside, *(prefix + name for prefix in prefixes))
    return next((one for one in every if one in base.tensors), None)


def _settle_whole(placed: Placed) -> None:
    """peft saves embeddings and heads as they were beside the matrices that change them. Where they are the base's,
    that says nothing new; else it is they that are changed.
    """
    import numpy as np

    for name in [name for name in placed.whole if name in placed.parts or name in placed.biases]:
        adapter, tensor = placed.whole[name]
        old = placed.base.tensors[placed.tied.standing.get(name, name)]
        if np.array_equal(adapter.values(tensor), np.asarray(placed.base.array(old.name), dtype=np.float32)):
            del placed.whole[name]
        elif any(part.adapter is not adapter for part in (*placed.parts.get(name, ()), *placed.biases.get(name, ()))):
            raise ModelError(
                f"{shown(name)} is brought whole by one adapter and changed by another",
                "merge them one after the other",
            )


def _by(tensor: StoredTensor) -> str:
    return " × ".join(map(str, tensor.shape)) or "a number"
