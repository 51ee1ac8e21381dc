"""The memory of a training by formulas, where a model cannot be traced, and as a first look that takes no time.

Weights, gradients and the optimiser's state are counted. Activations are those of a transformer layer with its linear
layers, norms and attention: per token 16 numbers for each of the width and 4 for each neuron of the feed-forward part,
and, where scores are all there at once, 3 for each head and key. It is about twice what checkpoints and fused
operations leave. Losses between layers are taken to look at the states and scores of all of them.

Source: the way of counting is that of Korthikanti et al. 2022, "Reducing Activation Recomputation in Large Transformer
Models", section 4.1, for numbers of the dtype that activations have.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from entrenar_core.architectures import Architecture, architecture_of
from entrenar_core.config.adapters import (
    AdaptionPromptAdapter,
    Ia3Adapter,
    LoraSettings,
    PrefixAdapter,
    PromptAdapter,
)
from entrenar_core.config.desugaring import Term
from entrenar_core.config.losses import ExitLoss, compares_layers
from entrenar_core.memory.estimate import Estimate, Moment, Phase, Trace
from entrenar_core.memory.jobs import HeldModel, InferenceJob, ReadingJob, TrainingJob
from entrenar_core.models.heads import LANGUAGE

_OF_WIDTH, _OF_NEURONS, _OF_SCORES = 16, 4, 3
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STATE_BYTES = {"adamw": 8.0, "adamw-8bit": 2 + 8 / 256, "sgd": 0.0, "adafactor": 0.1}
"""Of a parameter; that of Adafactor is a row and a column of each matrix, little beside the others."""
_QUANTISED_BYTES = {"nf4": 0.5 + 4 / 64, "fp4": 0.5 + 4 / 64, "int8": 1.0}
_DOUBLY = 0.5 + 1 / 64 + 4 / 64 / 256
_TILE_BYTES = 256 * 2**20
_LOGITS = 4
"""Copies of logits: they, their logarithms, their gradient and what is in between."""


_ASSUMED = (
    f"formulas take {_OF_WIDTH} numbers for each of the width and {_OF_NEURONS} for each neuron of a token and layer, "
    f"{_LOGITS} copies of logits at most, sizes that a configuration does not tell as usual (12 layers, a width of "
    "1,024, 4 times as many neurons), and adapters on four matrices of the width in each layer"
)


@dataclass(frozen=True, slots=True)
class _Sizes:
    layers: int
    hidden: int
    neurons: int
    heads: int
    vocabulary: int

    @classmethod
    def of(cls, held: HeldModel) -> "_Sizes":
        found: Architecture = architecture_of(held.config.to_dict())
        hidden = found.hidden_size or 1024
        return cls(
            found.num_layers or 12,
            hidden,
            found.intermediate_size or 4 * hidden,
            found.num_heads or max(1, hidden // 64),
            found.vocab_size or 0,
        )


def closed_form(job: TrainingJob | ReadingJob | InferenceJob, reason: str) -> Estimate:
    """What a job takes by formulas; `reason` says why it is not traced."""
    said = (f"by formulas: {reason}", _ASSUMED)
    if isinstance(job, TrainingJob):
        return Estimate(_training(job), "closed form", assumptions=said)
    rows, length = (job.batch_size, job.length) if isinstance(job, ReadingJob) else (job.batch_size, job.context)
    weights, parameters = weights_of(job.model)
    phase: Phase = "teacher" if isinstance(job, ReadingJob) else "prefill"
    one_layer = _activations(job.model, rows, length, layers=1) * 2
    component = "teacher weights" if isinstance(job, ReadingJob) else "student weights"
    dtype = job.model.dtype
    held = {(component, dtype): weights, ("activations", dtype): one_layer}
    return Estimate(Trace((Moment(phase, None, held),), 0, parameters, 0), "closed form", assumptions=said)


def weights_of(held: HeldModel) -> tuple[int, int]:
    """Bytes of a model's weights as they are held, and how many there are."""
    from entrenar_core.memory.fakes import empty_model
    from entrenar_core.models.placing import linear_layers

    model = empty_model(held)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = _DTYPE_BYTES[held.dtype]
    if held.load_in is None:
        return parameters * width, parameters
    modules = dict(model.named_modules())
    quantised = sum(modules[name].weight.numel() for name, is_one in linear_layers(model) if is_one)
    each = _DOUBLY if held.double_quantized and held.load_in != "int8" else _QUANTISED_BYTES[held.load_in]
    return round(quantised * each) + (parameters - quantised) * width, parameters


def _activations(held: HeldModel, rows: int, length: int, *, layers: int, mixed: bool = False) -> int:
    sizes = _Sizes.of(held)
    scores = _OF_SCORES * sizes.heads * length if held.attention == "eager" else 0
    numbers = rows * length * (_OF_WIDTH * sizes.hidden + _OF_NEURONS * sizes.neurons + scores)
    return layers * numbers * (3 if mixed else _DTYPE_BYTES[held.dtype])


def _training(job: TrainingJob) -> Trace:
    rows = -(-job.batch_size // job.sharding.devices)
    sizes = _Sizes.of(job.student)
    weights, parameters = weights_of(job.student)
    dtype, mixed = job.student.dtype, job.mixed_precision != "no"
    trained = parameters if job.adapters is None else _adapter_parameters(job)
    weights += trained * 4 if job.adapters is not None else 0
    layers = 1 if job.gradient_checkpointing else sizes.layers
    kept = _activations(job.student, rows, job.positions, layers=layers, mixed=mixed)
    if job.gradient_checkpointing:
        kept += sizes.layers * rows * job.positions * sizes.hidden * _DTYPE_BYTES[dtype]
    if looks_inside(job.terms or ()):
        kept += _looked_at(job, rows)
    positions = rows * job.length
    logits = _LOGITS * positions * sizes.vocabulary * 4 if job.student.task in LANGUAGE else 0
    if not job.all_logits:
        logits = min(logits, _TILE_BYTES + sizes.vocabulary * sizes.hidden * 4)
    of_teachers = [weights_of(one.model) for one in job.teachers if one.cached is None]
    held = {
        ("teacher weights", "float32"): sum(size_bytes for size_bytes, _ in of_teachers),
        ("student weights", dtype): weights,
        ("gradients", dtype): trained * (4 if job.adapters is not None else _DTYPE_BYTES[dtype]),
        ("optimizer", "float32"): round(trained * _STATE_BYTES[job.optimizer] * (_DTYPE_BYTES[dtype] / 4)),
        ("activations", dtype): kept,
        ("logits and loss", "float32"): logits,
    }
    if cached := sum(one.cached.held_bytes for one in job.teachers if one.cached is not None):
        held["cache", "uint8"] = cached
    moments = [Moment("backward", None, held)]
    if job.evaluation_rows is not None:
        moments.append(_evaluation(job, held, job.evaluation_rows))
    tokens = positions * parameters * 6
    return Trace(tuple(moments), tokens, parameters, trained, sum(count for _, count in of_teachers))


def _evaluation(job: TrainingJob, held: dict[tuple[str, str], int], rows: int) -> Moment:
    """Without gradients, a layer at a time, and the larger of the models that read it."""
    models = [job.student, *(one.model for one in job.teachers if one.cached is None)]
    left = {key: size for key, size in held.items() if key[0] not in ("gradients", "activations")}
    left["activations", job.student.dtype] = max(_activations(one, rows, job.length, layers=1) for one in models)
    return Moment("evaluation", None, left)


def looks_inside(terms: Sequence[Term]) -> bool:
    """Whether losses look at single layers, so that none can be left out."""
    return any(compares_layers(term.entry) or isinstance(term.entry, ExitLoss) for term in terms)


def _looked_at(job: TrainingJob, rows: int) -> int:
    """States and scores of every layer of the models, and what is computed of them."""
    models = [job.student, *(one.model for one in job.teachers if one.cached is None)]
    return sum(
        sizes.layers * rows * job.length * 4 * (4 * sizes.hidden + _OF_SCORES * sizes.heads * job.length)
        for sizes in map(_Sizes.of, models)
    )


def _adapter_parameters(job: TrainingJob) -> int:
    """Of a rank on four matrices of the width in each layer, as attention has them; of other methods, about."""
    adapter, sizes = job.adapters, _Sizes.of(job.student)
    match adapter:
        case LoraSettings():
            return sizes.layers * 4 * (2 * adapter.rank + adapter.dora) * sizes.hidden
        case PromptAdapter():
            return adapter.virtual_tokens * sizes.hidden
        case PrefixAdapter():
            return sizes.layers * 2 * adapter.virtual_tokens * sizes.hidden
        case AdaptionPromptAdapter():
            return (adapter.layers or sizes.layers) * (adapter.virtual_tokens * sizes.hidden + 1)
        case Ia3Adapter():
            return sizes.layers * (2 * sizes.hidden + sizes.neurons)
        case _:
            return sizes.layers * sizes.hidden
