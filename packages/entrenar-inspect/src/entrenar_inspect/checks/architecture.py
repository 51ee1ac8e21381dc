"""The architecture: every tensor of the family is there, fits the others, and is what the configuration says."""

from collections import Counter
from collections.abc import Iterator

from entrenar_core.architectures.agreement import either, implied_ties
from entrenar_core.architectures.detection import Detection, constraints, disagreements
from entrenar_core.architectures.layouts import layout_named
from entrenar_core.formats import WeightFormat
from entrenar_core.formats.tensors import StoredTensor
from entrenar_core.stored_model import StoredModel
from entrenar_inspect.checks.results import failed, found, ok, skipped, warned
from entrenar_inspect.reports.validation import Check
from entrenar_inspect.settings import is_dtype, stated_dtype
from entrenar_inspect.summary import Facts, no_sizes, not_those_of, other_experts, stated_family

_UNKNOWN = "the tensors are those of no family that is known"


def tensors(model: StoredModel, facts: Facts) -> Check:
    """None is missing, left over, or of a shape that the others contradict."""
    name = "tensors"
    if facts.detection is None:
        said = stated_family(facts)
        return skipped(name, _why_unknown(model)) if said is None else failed(name, not_those_of(said))
    wrong = list(_wrong(facts.detection))
    families = either(facts.detection.families)
    if wrong or not facts.detection.extra:
        return found(name, wrong, fine=f"all that a {families} has, in shapes that fit")
    extra = [f"tensor {tensor} is none of a {families}" for tensor in facts.detection.extra]
    return found(name, extra, fine="", wrong="warning")


def _wrong(detection: Detection) -> Iterator[str]:
    yield from (f"tensor {tensor} is missing" for tensor in detection.missing)
    for odd in detection.mismatched:
        implied = ", ".join("any" if size is None else str(size) for size in odd.implied)
        yield f"tensor {odd.name} has the shape {list(odd.shape)}, and the others imply [{implied}] ({odd.symbols})"


def _why_unknown(model: StoredModel) -> str:
    if model.format is WeightFormat.GGUF:
        return "which tensors llama.cpp wants of this family is not known here"
    if model.adapter_config is not None:
        return "an adapter changes a model that is not here"
    return _UNKNOWN


def sizes(facts: Facts) -> Check:
    """Heads divide what they share, and widths agree."""
    name = "architecture"
    if facts.detection is None:
        return skipped(name, _UNKNOWN)
    odd = constraints(facts.architecture, facts.detection, facts.parts)
    return found(name, odd, fine="heads and widths agree")


def configuration(model: StoredModel, facts: Facts) -> Check:
    """What config.json says is what the tensors do. What is no size at all says nothing, and is a warning."""
    name, told = "configuration", "its metadata says" if model.config is None else "config.json says"
    if facts.stated is None:
        broken = any(fault.about == "settings" for fault in model.faults)
        return skipped(name, "it cannot be read" if broken else "there is no config.json")
    nothing = no_sizes(model, facts)
    if facts.detection is None:
        differ = list(other_experts(model, facts))
        if not differ and not nothing:
            return skipped(name, _UNKNOWN)
    else:
        lines = disagreements(facts.stated, facts.detection, config=model.config)
        differ = [line.replace("config.json says", told) for line in lines]
    wrong = "failed" if differ else "warning"
    return found(name, [*differ, *nothing], fine=f"{told} what the tensors do", wrong=wrong)


def dtypes(model: StoredModel, facts: Facts) -> Check:
    """Matrices share one dtype, and it is the one that config.json names. Norms and the like may be wider."""
    name = "dtypes"
    aside = set(facts.detection.companions) if facts.detection is not None else set()
    matrices = [
        tensor
        for tensor in model.tensors.values()
        if len(tensor.shape) > 1 and tensor.name not in aside and tensor.dtype.kind == "float"
    ]
    counts = Counter(tensor.dtype.name for tensor in matrices)
    if not counts:
        return skipped(name, "there are no matrices of plain floats")
    (usual, _), *others = counts.most_common()
    if others:
        example = next(tensor for tensor in matrices if tensor.dtype.name != usual)
        few = sum(count for _, count in others)
        return warned(name, f"matrices are {usual}, but for {few:,}, such as {example.name}, which is {example.dtype}")
    said = stated_dtype(model.config)
    if said is not None and not is_dtype(said, usual):
        return warned(name, f"config.json says {said}, and matrices are {usual}")
    blocks = any(tensor.dtype.kind == "quantised" for tensor in model.tensors.values())
    return ok(name, f"matrices {'that are not quantised ' if blocks else ''}are {usual}")


def tied(model: StoredModel, facts: Facts) -> Check | None:
    """An output layer that the configuration ties to the embeddings holds their values, if it is stored at all. None
    where the configuration does not say, or there is no such layer.
    """
    name = "tied weights"
    said = (model.config or {}).get("tie_word_embeddings")
    if facts.detection is None or not isinstance(said, bool):
        return None
    implied = tuple(implied_ties(facts.stated, facts.detection)) if facts.stated is not None else ()
    without = (*facts.detection.tied, *implied)
    if not said:
        lacking = [head for head, _ in without]
        return failed(name, f"{lacking[0]} is not stored, and weights are not tied") if lacking else None
    stored = list(_output_layers(model, facts.detection))
    if not stored:
        return ok(name, "the output layer is the embeddings") if without else None
    if not model.is_here:
        return skipped(name, f"{stored[0][0].name} is stored too, and only headers were read")
    from entrenar_core.measuring.differences import same_bytes

    apart = [head.name for head, embeddings in stored if not same_bytes(model, head, model, embeddings)]
    if apart:
        return failed(name, f"{apart[0]} is stored too, with other values, which are lost when it is loaded")
    return warned(name, f"{stored[0][0].name} is stored too, with the same values")


def _output_layers(model: StoredModel, detection: Detection) -> Iterator[tuple[StoredTensor, StoredTensor]]:
    """Output matrices that are stored beside the embeddings that they may be tied to."""
    layout = layout_named(detection.layout)
    for head, embeddings in layout.tied.items():
        beside = next(
            (detection.prefix + name for name in embeddings if detection.prefix + name in model.tensors), None
        )
        if head in model.tensors and beside is not None:
            yield model.tensors[head], model.tensors[beside]
