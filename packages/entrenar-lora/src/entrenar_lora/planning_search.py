"""The best of the plans that fit: a descent along what is valued, in its order.

A plan is better than another where it has the better value of the first thing in which they differ. So the first thing
is settled first: the best of its values with which anything fits. Whether anything does, the plan that takes least of
all else tells, in a prediction or two: memory grows with the rank, the modules and the rows, and shrinks with
checkpoints. For what is not so sure (quantisation, whose weights are made whole for a moment; the optimiser in 8 bits,
whose step takes memory of its own on a processor; the method) all values are asked about, the likeliest first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from entrenar_core.config.schema import OptimizerName
from entrenar_lora.profiles import Dimension, Value

DIMENSIONS: tuple[Dimension, ...] = (
    "method", "modules", "quantisation", "rank", "checkpointing", "micro_batch", "optimizer",
)  # fmt: skip
FULL = "full"
_NUMBERS = ("rank", "micro_batch")
_MONOTONE = ("modules", "rank", "checkpointing", "micro_batch")
_CHEAPEST_FIRST: Mapping[str, Sequence[Value]] = {
    "method": ("lora", "dora", FULL),
    "quantisation": ("nf4", "int8", "none"),
    "optimizer": ("adamw-8bit", "adamw"),
    "modules": ("query-value", "attention", "all-linear"),
    "checkpointing": (True, False),
}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A plan: a value of each thing that is decided. Of full training, those of adapters are None."""

    method: str
    modules: str | tuple[str, ...] | None
    quantisation: str | None
    rank: int | None
    checkpointing: bool
    micro_batch: int
    optimizer: OptimizerName


Values = Mapping[Dimension, Sequence[object]]
"""What may be chosen: of each thing the values, best first, in the order in which things are valued."""
Needs = Callable[[Candidate], int | None]
"""The bytes that a plan needs; None of what the model cannot take, such as a rank above the width of a matrix."""


@dataclass(frozen=True, slots=True)
class Given:
    """What was settled against the better: a value that did not fit, and the least that anything with it needs."""

    dimension: Dimension
    value: object
    least_bytes: int | None


class Search:
    """Of plans for one model and one limit. `asked` counts predictions, each plan once."""

    def __init__(self, values: Values, needs: Needs, limit_bytes: int, sure: Sequence[Dimension] = ()) -> None:
        """`sure` are things beside the usual of which it is known which value takes least."""
        self.values, self.limit_bytes, self._sure = values, limit_bytes, (*_MONOTONE, *sure)
        self._needs, self._known = needs, dict[Candidate, int | None]()

    @property
    def asked(self) -> int:
        """How many plans were predicted."""
        return len(self._known)

    def needs(self, candidate: Candidate) -> int | None:
        """Of each plan once."""
        if candidate not in self._known:
            self._known[candidate] = self._needs(candidate)
        return self._known[candidate]

    def fits(self, candidate: Candidate) -> bool:
        """Whether it is within the limit."""
        found = self.needs(candidate)
        return found is not None and found <= self.limit_bytes

    def best(self, without: tuple[Dimension, object] | None = None) -> tuple[Candidate | None, list[Given]]:
        """The best plan that fits, None where none does; and what it had to give up.

        Args:
            without: a value that is not to be chosen, and whatever is better than it: for a runner-up.
        """
        settled: dict[Dimension, object] = {}
        given: list[Given] = []
        for dimension, every in self.values.items():
            values = _after(every, without[1]) if without and without[0] == dimension else every
            chosen = self._first(settled, dimension, values, given)
            if chosen is None:
                return None, given
            settled[dimension] = chosen[0]
        return _candidate(settled), given

    def _first(
        self, settled: Mapping[Dimension, object], dimension: Dimension, values: Sequence[object], given: list[Given]
    ) -> tuple[object] | None:
        """The best value with which anything fits."""
        for value in self._tried(settled, dimension, values):
            within = {**settled, dimension: value}
            if self._any(within):
                return (value,)
            needed = [found for one in self.least(within) if (found := self._known.get(one)) is not None]
            given.append(Given(dimension, value, min(needed, default=None)))
        return None

    def _tried(
        self, settled: Mapping[Dimension, object], dimension: Dimension, values: Sequence[object]
    ) -> Sequence[object]:
        """All values; of numbers that go down the first that fits and the one before it, found by halving."""
        if dimension not in _NUMBERS or list(values) != sorted(values, reverse=True):  # type: ignore[type-var]
            return values
        low, high = 0, len(values)
        while low < high:
            middle = (low + high) // 2 if low else 0  # the best one first
            fits = self._any({**settled, dimension: values[middle]})
            low, high = (low, middle) if fits else (middle + 1, high)
        return values[max(0, low - 1) : low + 1]

    def _any(self, settled: Mapping[Dimension, object]) -> bool:
        return any(self.fits(one) for one in self.least(settled))

    def least(self, settled: Mapping[Dimension, object]) -> Iterator[Candidate]:
        """Of all plans with these values, those of which one takes least; the likeliest first."""
        free = [dimension for dimension in self.values if dimension not in settled]
        choices = [_cheapest(one, self.values[one], alone=one in self._sure) for one in free]
        seen = set()
        for chosen in product(*choices):
            candidate = _candidate({**settled, **dict(zip(free, chosen, strict=True))})
            if candidate not in seen:
                seen.add(candidate)
                yield candidate

    def smallest(self) -> tuple[Candidate, int] | None:
        """The plan that takes least of all; None where the model takes none."""
        found = [(one, needed) for one in self.least({}) if (needed := self.needs(one)) is not None]
        return min(found, key=lambda item: item[1], default=None)


def _after(values: Sequence[object], than: object) -> Sequence[object]:
    return values[values.index(than) + 1 :]


def _cheapest(dimension: Dimension, values: Sequence[object], *, alone: bool) -> list[object]:
    """The values of which one takes least, the likeliest first: it `alone` where it is known."""
    order = _CHEAPEST_FIRST.get(dimension)
    ranked = sorted(values, key=lambda one: _place(one, order))
    return ranked[:1] if alone else ranked


def _place(value: object, order: Sequence[Value] | None) -> int:
    """Numbers are in their own order; modules that are named come behind the groups."""
    if order is None:
        assert isinstance(value, int), "a rank or a number of rows"
        return value
    return order.index(value) if value in order else len(order)


def _candidate(values: Mapping[Dimension, object]) -> Candidate:
    made = Candidate(**values)  # type: ignore[arg-type]
    return replace(made, modules=None, quantisation=None, rank=None) if made.method == FULL else made


def preference(candidate: Candidate, values: Values) -> tuple[int, ...]:
    """Places of its values in their orders; of two plans the one with the smaller tuple is better."""
    return tuple(
        0 if (value := getattr(candidate, dimension)) is None else list(every).index(value)
        for dimension, every in values.items()
    )
