"""Tells the tracker where a model is: in which layer of which phase, on the way forward and on the way back."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from entrenar_core.memory.estimate import Phase
from entrenar_core.memory.fakes import stacks_of
from entrenar_core.memory.tracking import Tracking


class Watch:
    """Hooks on the layers of a model. What follows the last layer has the number of layers as its place."""

    def __init__(self, model: PreTrainedModel, tracking: Tracking, number: int = 0) -> None:
        self.tracking, self.number = tracking, number
        self.layers = [layer for stack in stacks_of(model) for layer in stack]
        self.phase: Phase | None = None
        self.goes_back = False
        for number, layer in enumerate(self.layers):
            layer.register_forward_pre_hook(self._before(number))
            layer.register_forward_hook(self._after(number))

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """A forward pass."""
        self.phase, self.goes_back = phase, False
        self.tracking.component = "activations"
        self._enter(None)
        yield
        self.phase = None

    @contextmanager
    def back(self) -> Iterator[None]:
        """The backward pass."""
        self.phase, self.goes_back = "backward", True
        self.tracking.component, self.tracking.goes_back = "logits and loss", True
        self._enter(len(self.layers))
        yield
        self.phase, self.tracking.goes_back = None, False

    def _enter(self, layer: int | None) -> None:
        if self.phase is not None:
            self.tracking.ledger.enter(self.phase, layer, self.number)

    def _before(self, number: int) -> Any:
        def enter(_layer: nn.Module, given: tuple[Any, ...]) -> None:
            self.tracking.component = "activations"
            self._enter(number)
            if number == 0 and not self.goes_back and (tensor := _first(given)) is not None and tensor.requires_grad:
                tensor.register_hook(lambda _: self._arrive(None))  # type: ignore[no-untyped-call]

        return enter

    def _after(self, number: int) -> Any:
        def leave(_layer: nn.Module, _given: Any, made: Any) -> None:
            if self.goes_back:  # computed once more, to be differentiated
                self.tracking.component = "workspace"
                return
            tensor = _first(made)
            if tensor is not None and tensor.requires_grad:
                tensor.register_hook(lambda _: self._arrive(number))  # type: ignore[no-untyped-call]
            if number + 1 == len(self.layers):
                self.tracking.component = "logits and loss"
                self._enter(number + 1)

        return leave

    def _arrive(self, number: int | None) -> None:
        self.tracking.component = "workspace"
        self._enter(number)


def _first(values: Any) -> Tensor | None:
    one = values[0] if isinstance(values, tuple | list) and values else values
    return one if isinstance(one, Tensor) else None
