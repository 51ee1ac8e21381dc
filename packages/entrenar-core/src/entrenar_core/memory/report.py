"""What is said of the memory of a job or a run: plain values that a terminal shows and JSON carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from entrenar_core.memory.estimate import Method, Phase
from entrenar_core.memory.timing import StepTime


@dataclass(frozen=True, slots=True)
class PhasePeak:
    """The most that a phase holds, in bytes, and the layer that is computed then; None outside of layers."""

    phase: Phase
    peak_bytes: int
    layer: int | None
    components: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class LayerMemory:
    """What one layer adds to the peak: its weights, gradients, optimiser state, activations, keys and values."""

    layer: int
    components: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class PartMemory:
    """A part of a run, of one device: its peak, when that is, and what is there then by component and by dtype.

    `method` is how it was found: every layer `traced`, some of them and the others `extrapolated`, or `closed form`.
    `flops` are the floating-point operations of a step of one device. `host_bytes` lie in main memory beside a device.
    The peak is `behind` the layers where `layer` is none of them: at the head and the loss.
    """

    name: str
    peak_bytes: int
    phase: Phase
    layer: int | None
    components: Mapping[str, int]
    dtypes: Mapping[str, int]
    phases: tuple[PhasePeak, ...]
    parameters: int
    trainable_parameters: int
    teacher_parameters: int
    flops: int
    method: Method
    host_bytes: int = 0
    behind: bool = False


@dataclass(frozen=True, slots=True)
class Alternative:
    """The same with something else: its peak, and what it saves."""

    name: str
    peak_bytes: int
    saving_bytes: int
    trainable_parameters: int
    fits: bool | None


@dataclass(frozen=True, slots=True)
class Tried:
    """What some real steps took: `steps` of them, the peak that was seen, and how far off the prediction was."""

    steps: int
    peak_bytes: int | None
    error: float | None


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The memory of a job or a run on a device, as predicted.

    `peak_bytes` is that of the largest part; `process_bytes` is what a process takes before any model, `needed_bytes`
    both together, `at_most_bytes` also what an allocator may keep of what was freed; processes that share the memory of
    a machine are counted together. `available_bytes` is what `machine` has, None where nobody asked. `batch` tells the
    rows of a pass. `changes` are single changes in the order of what they save; `enough` names those that together make
    it fit.
    """

    subject: str
    device: str
    devices: int
    parts: tuple[PartMemory, ...]
    peak_bytes: int
    process_bytes: int
    needed_bytes: int
    at_most_bytes: int
    machine: str | None
    available_bytes: int | None
    fits: bool | None
    batch: str = ""
    alternatives: tuple[Alternative, ...] = ()
    changes: tuple[Alternative, ...] = ()
    enough: tuple[str, ...] = ()
    step_time: StepTime | None = None
    run_time: StepTime | None = None
    tried: Tried | None = None
    layers: tuple[LayerMemory, ...] = ()
    assumptions: tuple[str, ...] = field(default=())

    @property
    def largest(self) -> PartMemory:
        """The part that decides."""
        return max(self.parts, key=lambda part: part.peak_bytes)

    @property
    def tight(self) -> bool:
        """Whether it fits, but may not where an allocator keeps what was freed."""
        return bool(self.fits) and self.available_bytes is not None and self.at_most_bytes > self.available_bytes

    @property
    def exit_status(self) -> int:
        """1 where it does not fit."""
        return int(self.fits is False)
