"""Who holds how many bytes, at every moment of a step, and the largest moment of each place.

A place is a phase and a layer. Of each, the moment in which most was held is kept, so that what happens in the layers
between can be told from what happens in a few of them (depth.py).
"""

from collections import defaultdict
from collections.abc import Iterator

from entrenar_core.memory.estimate import Moment, Phase

Key = tuple[str, str]
"""Component and dtype."""
Place = tuple[Phase, int, int | None]
"""A phase, a model by its number, and a layer of it."""


class Ledger:
    """Bytes by component and dtype; `granularity` is what an allocator rounds up to."""

    def __init__(self, granularity: int) -> None:
        self.granularity = granularity
        self.held: defaultdict[Key, int] = defaultdict(int)
        self.total = 0
        self.place: Place = ("loaded", 0, None)
        self.entered: dict[Place, dict[Key, int]] = {}
        """What was held when a place was entered first."""
        self._largest: dict[Place, tuple[int, dict[Key, int]]] = {}

    def enter(self, phase: Phase, layer: int | None = None, model: int = 0) -> None:
        """From now on, what happens is in this place."""
        self.place = phase, model, layer
        self.entered.setdefault(self.place, dict(self.held))
        self._look()

    def begin(self) -> None:
        """Forgets the moments before: what is held now is what there is at the beginning."""
        self.entered.clear()
        self._largest.clear()
        self._look()

    def take(self, key: Key, size_bytes: int) -> int:
        """Notes an allocation, and gives what it takes after rounding."""
        taken = -(-size_bytes // self.granularity) * self.granularity
        self.held[key] += taken
        self.total += taken
        self._look()
        return taken

    def give(self, key: Key, taken: int) -> None:
        """Notes that an allocation is gone."""
        self.held[key] -= taken
        self.total -= taken

    def move(self, before: Key, after: Key, taken: int) -> None:
        """The same bytes turn out to belong to another component."""
        self.held[before] -= taken
        self.held[after] += taken
        self._look(again=True)

    def passing(self, key: Key, size_bytes: int) -> None:
        """Memory that an operation takes and gives back before it ends."""
        self.give(key, self.take(key, size_bytes))

    def _look(self, *, again: bool = False) -> None:
        before = self._largest.get(self.place)
        if before is None or self.total > before[0] or (again and self.total == before[0]):
            self._largest[self.place] = self.total, dict(self.held)

    def moments(self) -> Iterator[Moment]:
        """The largest of each place, in the order in which places were entered first."""
        for (phase, model, layer), (_, held) in self._largest.items():
            yield Moment(phase, layer, {key: size_bytes for key, size_bytes in held.items() if size_bytes}, model)
