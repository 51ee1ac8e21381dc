"""What matters in a model: how much of what a matrix puts out hangs on each of the numbers that it reads.

A matrix W that reads x puts out Σ_i W[:, i] x_i. The share of coordinate i is E[x_i²] ‖W[:, i]‖² over the sum of all:
what goes missing without it, if coordinates were uncorrelated (the score of Sun et al. 2023, "A simple and effective
pruning approach", squared and summed over the outputs). The mean squares are measured on sample texts, or guessed from
what writes x: ‖row i‖² of its matrix, multiplied over a gate and its input, averaged over all that writes the residual
stream. Scores of neurons and heads so guessed do not change when one matrix is scaled up and the next one down.

Shapes: B rows, T positions, N valid positions, n numbers of a width, O outputs and I inputs of a matrix.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Sample = Sequence[tuple[Tensor, Tensor]]
"""Texts to measure on: batches of token ids and attention masks, both (B, T)."""


@dataclass(slots=True)
class Moments:
    """What was measured: the mean square of each number that a module read, by the module's name in the body.

    `stream_HH` is the second moment of the residual stream before the norms that were asked for, each vector scaled
    to mean square 1; `last_n` the mean square of what heads read.
    """

    reads: dict[str, Tensor] = field(default_factory=dict)
    last_n: Tensor | None = None
    stream_HH: Tensor | None = None


def measure(body: nn.Module, modules: Sequence[str], norms: Sequence[str], sample: Sample) -> Moments:
    """Runs the body of a model over a sample, without gradient and without dropout, and takes the mean squares.

    Raises:
        ValueError: the sample has no token.
    """
    moments, device = Moments(), next(body.parameters()).device
    tokens = sum(int(mask_BT.sum()) for _, mask_BT in sample)
    if tokens == 0:
        raise ValueError("the sample has no token to measure on")
    valid_BT = torch.empty(0)

    def rows(hidden_BTn: Tensor) -> Tensor:
        return hidden_BTn.detach()[valid_BT.to(hidden_BTn.device)].double()

    def note_read(name: str, value: Tensor) -> None:
        squares_n = rows(value).square().sum(0).cpu() / tokens
        moments.reads[name] = moments.reads.get(name, 0) + squares_n

    def note_stream(_: str, value: Tensor) -> None:
        rows_NH = rows(value)
        rows_NH = rows_NH / rows_NH.square().mean(1, keepdim=True).sqrt().clamp(min=1e-30)
        product_HH = (rows_NH.T @ rows_NH).cpu() / (tokens * len(norms))
        moments.stream_HH = product_HH if moments.stream_HH is None else moments.stream_HH + product_HH

    with _hooked(body, modules, note_read), _hooked(body, norms, note_stream), _evaluating(body), torch.no_grad():
        for input_ids_BT, attention_mask_BT in sample:
            valid_BT = attention_mask_BT.bool()
            output = body(input_ids=input_ids_BT.to(device), attention_mask=attention_mask_BT.to(device))
            squares_n = rows(output.last_hidden_state).square().sum(0).cpu() / tokens
            moments.last_n = squares_n if moments.last_n is None else moments.last_n + squares_n
    return moments


@contextmanager
def _hooked(body: nn.Module, names: Sequence[str], note: Callable[[str, Tensor], None]) -> Iterator[None]:
    def hook_of(name: str) -> Callable[[nn.Module, Any], None]:
        def hook(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            if given[0].ndim == 3:  # a pooler reads one position of a row, which the mask does not fit
                note(name, given[0])

        return hook

    handles = [body.get_submodule(name).register_forward_pre_hook(hook_of(name)) for name in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _evaluating(body: nn.Module) -> Iterator[None]:
    was = body.training
    body.eval()
    try:
        yield
    finally:
        body.train(was)


def shares(energies_n: Tensor) -> Tensor:
    """Energies as shares of their sum; of nothing, all the same."""
    total = energies_n.sum()
    return energies_n / total if total > 0 else torch.full_like(energies_n, 1 / len(energies_n))


def read_energy(weight_OI: Tensor, mean_squares_I: Tensor | None) -> Tensor:
    """What each input of a matrix adds to what it puts out: E[x_i²] ‖W[:, i]‖², without mean squares ‖W[:, i]‖²."""
    columns_I = weight_OI.double().square().sum(0)
    return columns_I if mean_squares_I is None else columns_I * mean_squares_I


def written_energy(weight_OI: Tensor) -> Tensor:
    """‖W[i, :]‖² of each output."""
    return weight_OI.double().square().sum(1)
