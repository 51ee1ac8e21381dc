"""What each device has of a job that several share, from what one of them computes.

The strategies are the stages of ZeRO (Rajbhandari et al. 2020, section 5): with `zero1` the optimiser's state is
divided over the devices, with `zero2` the gradients too, with `fsdp` the weights too. Beside the shares there are
buffers: with `ddp` those of torch's reducer, which hold the gradients of all that trains once more (accelerate leaves
`gradient_as_bucket_view` off); with `zero1` and `zero2` the bucket of DeepSpeed; with `fsdp` those of gathering.py.

All devices have as much, but for what cannot be divided evenly: the share that is told is the first one's, the largest.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from entrenar_core.memory.between import filled
from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.gathering import ITEM_BYTES, NOTHING, Gathered, Gathering, computed
from entrenar_core.memory.jobs import Sharding, Strategy
from entrenar_core.memory.units import Facts, Sizes, Units, added

Held = Mapping[tuple[str, str], int]
_STUDENT, _TEACHER = "student weights", "teacher weights"
_DIVIDED: dict[Strategy, tuple[str, ...]] = {
    "ddp": (),
    "zero1": ("optimizer",),
    "zero2": ("optimizer", "gradients"),
    "fsdp": ("optimizer", "gradients", _STUDENT, _TEACHER),
}
_BUCKET_NUMBERS = 500_000_000
"""DeepSpeed's `reduce_bucket_size` where a configuration has none."""


@dataclass(frozen=True, slots=True)
class ShardedTrace:
    """What each device holds. `host_bytes` are in main memory, for all devices together, as of one machine;
    `assumptions` say what was taken for granted.
    """

    trace: Trace
    host_bytes: int = 0
    assumptions: tuple[str, ...] = ()


def sharded(trace: Trace, facts: Facts, sharding: Sharding) -> ShardedTrace:
    """What each device holds of a job, from the trace of one device's part of the batch with whole models."""
    if sharding.devices == 1 and not sharding.offload:
        return ShardedTrace(trace)
    sharing = _Sharing(facts, sharding, _kept_by_loss(trace, facts))
    found = [sharing.moment(moment) for moment in (filled(trace.moments) if sharing.gathers else trace.moments)]
    moments = tuple(moment for moment, _ in found)
    host_bytes = max((host_bytes for _, host_bytes in found), default=0)
    return ShardedTrace(replace(trace, moments=moments), host_bytes, tuple(_assumptions(facts, sharding)))


def divided(moment: Moment, sharding: Sharding) -> dict[tuple[str, str], int]:
    """One device's share of what is held, without buffers: ZeRO's formulas. What an optimiser's step needs is divided
    as its state is.
    """
    parts = _DIVIDED[sharding.strategy]
    if parts and moment.phase == "optimizer":
        parts = *parts, "workspace"
    return {key: -(-size // sharding.devices) if key[0] in parts else size for key, size in moment.held.items()}


@dataclass(frozen=True, slots=True)
class _Sharing:
    facts: Facts
    sharding: Sharding
    kept_by_loss: int = 0

    @property
    def gathers(self) -> bool:
        """Whether a device has weights of its own only for as long as it computes with them."""
        return self.sharding.strategy == "fsdp" or self.sharding.offload

    def moment(self, moment: Moment) -> tuple[Moment, int]:
        """A moment of each device, and the bytes in main memory."""
        if not self.gathers:
            held = Counter(divided(moment, self.sharding))
            held.update({("workspace", dtype): size for dtype, size in self._bucket(moment).items()})
            return replace(moment, held=dict(held)), 0
        stored = self._stored(moment)
        shares = divided(replace(moment, held=stored), self.sharding)
        held = self._whole(moment, stored)
        if not self.sharding.offload:
            held.update(shares)
        for component, gathered in self._gathered(moment):
            held.update({(component, dtype): size for dtype, size in gathered.weights.items()})
            held.update({("workspace", dtype): size for dtype, size in gathered.buffers.items()})
        kept = self.sharding.devices * sum(shares.values()) if self.sharding.offload else 0
        return replace(moment, held={key: size for key, size in held.items() if size > 0}), kept

    def _bucket(self, moment: Moment) -> Sizes:
        """In what gradients are added over the devices."""
        if self.sharding.strategy == "ddp":
            return added(unit.trained for unit in self.facts.student.all)
        if moment.phase != "backward":
            return {}
        largest = {dtype: _BUCKET_NUMBERS * ITEM_BYTES.get(dtype, 4) for dtype in _gradients(moment)}
        return {dtype: min(size, largest[dtype]) for dtype, size in _gradients(moment).items()}

    def _stored(self, moment: Moment) -> dict[tuple[str, str], int]:
        """What is divided over devices or kept in main memory: weights, gradients that are added over the devices, and
        the optimiser's state with what its step needs.
        """
        parts = ("optimizer", "workspace") if moment.phase == "optimizer" else ("optimizer",)
        stored = {key: size for key, size in moment.held.items() if key[0] in parts}
        teachers = added(units.weights for units in self.facts.teachers if units is not None)
        for component, weights in ((_STUDENT, self.facts.student.weights), (_TEACHER, teachers)):
            for dtype, size in weights.items():
                stored[component, dtype] = min(size, moment.held.get((component, dtype), 0))
        waiting = {} if self.facts.gradient_accumulation > 1 else self._waiting(moment)
        for dtype, size in _gradients(moment).items():
            stored["gradients", dtype] = size - waiting.get(dtype, 0)
        return stored

    def _waiting(self, moment: Moment) -> Sizes:
        """Gradients that are not added over the devices yet. Where those of earlier passes are there, they are those
        of the units that are computed.
        """
        if moment.phase != "backward":
            return {}
        if self.facts.gradient_accumulation > 1:
            return self._student.current(moment.layer)
        return self._student.unreduced(moment, _gradients(moment))

    def _whole(self, moment: Moment, stored: Held) -> Counter[tuple[str, str]]:
        """What a device has for itself."""
        held = Counter({key: size for key, size in moment.held.items() if key[0] != "gradients"})
        held.subtract({key: size for key, size in stored.items() if key[0] != "gradients"})
        waiting = computed(self._waiting(moment), self.facts.mixed_precision)
        held.update({("gradients", dtype): size for dtype, size in waiting.items()})
        for dtype, size in computed({"float32": 4 * self._cast(moment)}, self.facts.mixed_precision).items():
            held["activations", dtype] = max(0, held["activations", dtype] - size)
        return held

    def _cast(self, moment: Moment) -> int:
        """Numbers that autocast has at lower precision, and that FSDP has gathered at this precision."""
        layers = self.facts.student.layers
        if self.facts.mixed_precision == "no" or moment.layer is None or moment.model:
            return 0
        if self.facts.gradient_checkpointing:  # only what trains is kept, and only until the forward pass is over
            return sum(unit.cast_trained for unit in layers[: moment.layer + 1]) if moment.phase == "forward" else 0
        ends = {"forward": moment.layer + 1, "backward": moment.layer}
        return sum(unit.cast for unit in layers[: ends.get(moment.phase, 0)])

    @property
    def _student(self) -> Gathering:
        return replace(self._gathering(self.facts.student), kept_bytes=self.kept_by_loss)

    def _gathering(self, units: Units) -> Gathering:
        return Gathering(units, self.sharding.devices, self.facts.mixed_precision, self.facts.gloo)

    def _gathered(self, moment: Moment) -> Iterator[tuple[str, Gathered]]:
        """Of every model, what is whole on the device for as long as it is computed."""
        if moment.phase == "loaded":
            return
        apart = moment.model or moment.phase in ("teacher", "optimizer")
        yield _STUDENT, NOTHING if apart else self._student.at(moment)
        for number, units in enumerate(self.facts.teachers, start=1):
            if units is not None:
                teacher = self._gathering(units)
                yield _TEACHER, teacher.at(moment) if moment.model == number else teacher.resting()


def _kept_by_loss(trace: Trace, facts: Facts) -> int:
    """Bytes of the gradients that a fused loss makes in the forward pass, which live as long as it does."""
    behind = [
        sum(_gradients(moment).values())
        for moment in trace.moments
        if moment.phase == "backward" and moment.layer == len(facts.student.layers)
    ]
    return min(max(behind, default=0), sum(facts.student.root.trained.values())) if facts.fused_loss else 0


def _gradients(moment: Moment) -> Sizes:
    return {dtype: size for (component, dtype), size in moment.held.items() if component == "gradients"}


_SAID: dict[Strategy, str] = {
    "ddp": "every device holds all of the models, and beside the gradients the buckets in which DDP adds them",
    "zero1": "the optimiser's state is divided over the devices, which hold all of the weights and gradients",
    "zero2": "the optimiser's state and the gradients are divided over the devices, which hold all of the weights",
    "fsdp": "weights, gradients and the optimiser's state are divided over the devices; each gathers a layer at a time "
    "and the next one ahead, and has embeddings and head gathered from the beginning to the end of a step",
}


def _assumptions(facts: Facts, sharding: Sharding) -> Iterator[str]:
    yield f"{sharding.devices} devices: {_SAID[sharding.strategy]}"
    if sharding.strategy in ("zero1", "zero2") and not sharding.offload:
        yield f"gradients are added over the devices in a bucket of {_BUCKET_NUMBERS:,} numbers, DeepSpeed's default"
    if any(units is not None for units in facts.teachers):
        yield (
            "teachers are divided as the student is, and keep their embeddings and head gathered"
            if sharding.strategy == "fsdp"
            else "every device holds all of the teachers"
        )
    if sharding.strategy == "fsdp" and facts.quantized:
        yield "layers in 4 or 8 bits are whole on every device, as accelerate leaves them"
    if sharding.strategy == "fsdp" and facts.gradient_accumulation > 1:
        yield "gradients are added over the devices after every backward pass, accumulated or not"
    if sharding.strategy == "fsdp" and facts.mixed_precision != "no":
        yield f"weights are gathered and gradients added in {facts.mixed_precision}"
    if sharding.offload:
        yield (
            "weights, gradients and the optimiser's state are in main memory, where the optimiser steps; all devices "
            "are in one machine"
        )
