"""What each layer adds: to a training its weights, their gradients and the optimiser's state, and what it leaves for
the backward pass; to a generation its weights and the keys and values that it keeps.
"""

from collections.abc import Iterable, Iterator, Mapping

from torch import Tensor

from entrenar_core.errors import ModelError
from entrenar_core.memory.generating import Generation
from entrenar_core.memory.jobs import InferenceJob, TrainingJob
from entrenar_core.memory.ledger import Key
from entrenar_core.memory.report import LayerMemory
from entrenar_core.memory.steps import Stage, TracedTraining
from entrenar_core.models.quiet import quietly


def layers_of(job: TrainingJob | InferenceJob) -> tuple[LayerMemory, ...]:
    """One entry a layer, in their order; what is outside of layers is in none of them.

    Raises:
        ModelError: the job cannot be followed without data.
        As `trace_training` and `trace_inference`.
    """
    try:
        with quietly():
            return tuple(_of_training(job) if isinstance(job, TrainingJob) else _of_generation(job))
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise ModelError(f"what single layers take cannot be told: {first}", "leave out --by-layer") from error


def _of_training(job: TrainingJob) -> Iterator[LayerMemory]:
    training = TracedTraining(job, [None] * (1 + len(job.teachers)), 1)
    training.trace()
    entered = _entered(training.stage, "forward")
    for number, layer in enumerate(training.watch.layers):
        parameters = list(layer.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        states = [state for parameter in trained for state in training.optimizer.of(parameter)]
        components = {
            "student weights": _bytes([*parameters, *layer.buffers()]),
            "gradients": _bytes(trained),
            "optimizer": _bytes(states),
            "activations": _added("activations", entered, number),
        }
        yield LayerMemory(number, {name: size_bytes for name, size_bytes in components.items() if size_bytes})


def _of_generation(job: InferenceJob) -> Iterator[LayerMemory]:
    """Weights as they are computed with: those of a file that is used as it is are not told apart."""
    generation = Generation(job, None, 1)
    generation.trace()
    entered = _entered(generation.stage, "prefill")
    for number, layer in enumerate(generation.watch.layers):
        weights = 0 if job.model.stored_bytes is not None else _bytes([*layer.parameters(), *layer.buffers()])
        components = {"student weights": weights, "KV cache": _added("KV cache", entered, number)}
        yield LayerMemory(number, {name: size_bytes for name, size_bytes in components.items() if size_bytes})


def _entered(stage: Stage, during: str) -> dict[int, dict[Key, int]]:
    """What was held when each layer was entered first."""
    return {
        layer: held
        for (phase, model, layer), held in stage.ledger.entered.items()
        if phase == during and model == 0 and layer is not None
    }


def _added(component: str, entered: Mapping[int, Mapping[Key, int]], number: int) -> int:
    """From the beginning of a layer to that of the next."""
    before, after = (
        sum(size_bytes for (name, _), size_bytes in entered.get(place, {}).items() if name == component)
        for place in (number, number + 1)
    )
    return after - before


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)
