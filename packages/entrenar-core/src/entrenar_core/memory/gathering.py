"""What FSDP has on a device beside its shares: the units that are gathered, and the buffers that they travel in.

As torch's FSDP2 works (`fully_shard` of every layer and of the whole): the root unit is gathered when the forward pass
begins, and stays so until the backward pass is over. A layer is gathered through a buffer of its size, which the
forward pass keeps until the next layer has arrived. In the backward pass the next layer arrives while one is computed,
and the gradients of the one before are still in the buffer in which they are added over the devices.

gloo, by which processors talk, adds gradients in a copy of this buffer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from entrenar_core.memory.estimate import Moment
from entrenar_core.memory.jobs import MixedPrecision
from entrenar_core.memory.units import Sizes, Unit, Units, added

ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
_COMPUTED: dict[MixedPrecision, str | None] = {"no": None, "bf16": "bfloat16", "fp16": "float16"}


def computed(sizes: Sizes, precision: MixedPrecision) -> Sizes:
    """What weights, or gradients of them, take in the dtype in which they are computed."""
    if (target := _COMPUTED[precision]) is None:
        return sizes
    made: Counter[str] = Counter()
    for dtype, size_bytes in sizes.items():
        into = target if dtype in ITEM_BYTES else dtype
        made[into] += size_bytes // ITEM_BYTES.get(dtype, 1) * ITEM_BYTES.get(into, 1)
    return dict(made)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Weights that are whole on a device, and buffers."""

    weights: Sizes
    buffers: Sizes

    @property
    def size_bytes(self) -> int:
        """Of both."""
        return sum(self.weights.values()) + sum(self.buffers.values())


NOTHING = Gathered({}, {})


@dataclass(frozen=True, slots=True)
class Gathering:
    """A model of which every one of some devices has a share, and which is computed unit by unit. Of its gradients the
    loss itself keeps `kept_bytes` until the backward pass is over.
    """

    units: Units
    devices: int
    precision: MixedPrecision = "no"
    gloo: bool = False
    kept_bytes: int = 0

    def at(self, moment: Moment) -> Gathered:
        """What there is at a moment of a pass through this model."""
        return self._backward(moment) if moment.phase == "backward" else self._forward(moment.layer)

    def resting(self) -> Gathered:
        """Between passes without a backward pass, where FSDP does not give the root unit back."""
        return self._sum([self.units.root])

    def unreduced(self, moment: Moment, gradients: Sizes) -> Sizes:
        """Of the gradients at a moment of the backward pass, those that are not added over the devices yet: all but
        those of the layers behind, as they are stored.
        """
        done = added(unit.trained for unit in self._behind(moment.layer))
        return {dtype: max(0, size - done.get(dtype, 0)) for dtype, size in gradients.items()}

    def current(self, layer: int | None) -> Sizes:
        """The gradients of the layer that goes back and of the root unit, as they are stored."""
        layers = [] if layer is None else self.units.layers[layer : layer + 1]
        return added(unit.trained for unit in (self.units.root, *layers))

    def _behind(self, layer: int | None) -> Sequence[Unit]:
        return self.units.layers[0 if layer is None else layer + 1 :]

    def _forward(self, layer: int | None) -> Gathered:
        layers, root = self.units.layers, self.units.root
        if layer is None:  # the first layer arrives while the buffer of the root unit is still there
            return self._sum([root], arriving=[root, *layers[:1]])
        if layer < len(layers):
            return self._sum([root, layers[layer]], arriving=[layers[layer]])
        return self._sum([root], arriving=layers[-1:])

    def _backward(self, moment: Moment) -> Gathered:
        layers, root, layer = self.units.layers, self.units.root, moment.layer
        if layer is None:
            return self._end(moment)
        if layer >= len(layers):
            return self._sum([root], arriving=layers[-1:])
        next_one = layers[layer - 1 : layer] if layer else ()
        found = self._sum([root, layers[layer]], arriving=next_one, leaving=layers[layer + 1 : layer + 2])
        copied = self._sum([], arriving=next_one)  # before anything of the layer is computed
        return self._copying(found, copied.size_bytes, self._waiting_bytes(moment, layer))

    def _end(self, moment: Moment) -> Gathered:
        """Before the first layer on the way back: what is computed there is done, the root unit goes, and its gradients
        are put into a buffer and added.
        """
        root = self.units.root
        computing = self._sum([root], leaving=self.units.layers[:1])
        buffer = self._sum([], leaving=[root])
        filling = 2 * buffer.size_bytes
        adding = 2 * buffer.size_bytes + buffer.size_bytes // self.devices + self.kept_bytes if self.gloo else 0
        gone = self._waiting_bytes(moment, None)
        more = max(filling, adding) - gone
        if more <= computing.size_bytes:
            return computing
        return Gathered({}, {next(iter(buffer.buffers)): more})

    def _copying(self, found: Gathered, copied_bytes: int, instead_bytes: int) -> Gathered:
        """With the copy of gloo, which is there while something else is not."""
        more = copied_bytes - instead_bytes
        if not self.gloo or more <= 0:
            return found
        return Gathered(found.weights, added([found.buffers, {next(iter(self.units.root.weights), "float32"): more}]))

    def _waiting_bytes(self, moment: Moment, layer: int | None) -> int:
        """What is there only while a place is computed: gradients that are not added yet, and its workspace."""
        gradients = {dtype: size for (component, dtype), size in moment.held.items() if component == "gradients"}
        waiting = sum(computed(self.unreduced(moment, gradients), self.precision).values())
        if layer is not None:  # those of the root unit were there before
            waiting = max(0, waiting - sum(computed(self.units.root.trained, self.precision).values()))
        return waiting + sum(size for (component, _), size in moment.held.items() if component == "workspace")

    def _sum(self, whole: Sequence[Unit], arriving: Sequence[Unit] = (), leaving: Sequence[Unit] = ()) -> Gathered:
        weights = added(unit.weights for unit in whole)
        buffers = added([*(unit.weights for unit in arriving), *(unit.trained for unit in leaving)])
        return Gathered(computed(weights, self.precision), computed(buffers, self.precision))
