"""What each layer of a student adds to a training: its weights, their gradients and the optimiser's state, and what it
leaves for the backward pass.
"""

from collections.abc import Iterable, Iterator

from torch import Tensor

from entrenar_core.memory.jobs import TrainingJob
from entrenar_core.memory.ledger import Key
from entrenar_core.memory.report import LayerMemory
from entrenar_core.memory.steps import TracedTraining
from entrenar_core.models.quiet import quietly


def layers_of(job: TrainingJob) -> tuple[LayerMemory, ...]:
    """One entry a layer, in their order; what is outside of layers is in none of them.

    Raises:
        As `trace_training`.
    """
    with quietly():
        training = TracedTraining(job, [None] * (1 + len(job.teachers)), 1)
        training.trace()
    return tuple(_layers(training))


def _layers(training: TracedTraining) -> Iterator[LayerMemory]:
    entered = {
        layer: held
        for (phase, model, layer), held in training.stage.ledger.entered.items()
        if phase == "forward" and model == 0 and layer is not None
    }
    for number, layer in enumerate(training.watch.layers):
        parameters = list(layer.parameters())
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        states = [state for parameter in trained for state in training.optimizer.of(parameter)]
        components = {
            "student weights": _bytes([*parameters, *layer.buffers()]),
            "gradients": _bytes(trained),
            "optimizer": _bytes(states),
            "activations": _activations(entered.get(number + 1, {})) - _activations(entered.get(number, {})),
        }
        yield LayerMemory(number, {name: size_bytes for name, size_bytes in components.items() if size_bytes})


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _activations(held: dict[Key, int]) -> int:
    return sum(size_bytes for (component, _), size_bytes in held.items() if component == "activations")
