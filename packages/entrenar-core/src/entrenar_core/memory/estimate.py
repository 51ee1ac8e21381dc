"""What a prediction says, as dataclasses that any view can show and JSON can hold."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

COMPONENTS = (
    "teacher weights",
    "student weights",
    "gradients",
    "optimizer",
    "activations",
    "logits and loss",
    "cache",
    "KV cache",
    "workspace",
)
"""What memory is told apart into. Of a model that is not taught, `student weights` are its own."""

Phase = Literal["loaded", "teacher", "forward", "backward", "optimizer", "evaluation", "prefill", "decode"]
Method = Literal["traced", "extrapolated", "closed form"]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is in memory at one time: bytes by component and by dtype.

    `layer` is the layer that was being computed, counted from 0, None before the first one, and as many as there are
    behind the last; of the student, or of a teacher where `model` is its number, counted from 1.
    """

    phase: Phase
    layer: int | None
    held: Mapping[tuple[str, str], int]
    model: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return sum(self.held.values())

    @property
    def components(self) -> dict[str, int]:
        """Bytes by component, in the order of `COMPONENTS`, those that are there."""
        sums = dict.fromkeys(COMPONENTS, 0)
        for (component, _), size_bytes in self.held.items():
            sums[component] += size_bytes
        return {name: size_bytes for name, size_bytes in sums.items() if size_bytes}

    @property
    def dtypes(self) -> dict[str, int]:
        """Bytes by dtype, the largest first."""
        sums: dict[str, int] = {}
        for (_, dtype), size_bytes in self.held.items():
            sums[dtype] = sums.get(dtype, 0) + size_bytes
        return dict(sorted(((name, found) for name, found in sums.items() if found), key=lambda item: -item[1]))


@dataclass(frozen=True, slots=True)
class Trace:
    """What was seen of a job: the largest moment of each layer and phase, in the order of time, the floating-point
    operations of a step, and how many parameters there are and train.
    """

    moments: tuple[Moment, ...]
    flops: int
    parameters: int
    trainable_parameters: int
    teacher_parameters: int = 0

    @property
    def peak(self) -> Moment:
        """The largest; of equal ones the first."""
        return max(self.moments, key=lambda moment: moment.total_bytes)

    @property
    def phases(self) -> dict[Phase, Moment]:
        """The largest moment of each phase, in the order of time."""
        found: dict[Phase, Moment] = {}
        for moment in self.moments:
            best = found.get(moment.phase)
            if best is None or moment.total_bytes > best.total_bytes:
                found[moment.phase] = moment
        return found


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a job takes of a device, as predicted.

    `method` says how: every layer `traced`; some, and the others `extrapolated`; or by formulas, where the model cannot
    be traced. `traced_layers` says how many layers of which model, 0 for the student, were looked at. `host_bytes` is
    what is kept in main memory beside the device. `assumptions` name what was taken for granted.
    """

    trace: Trace
    method: Method
    traced_layers: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    host_bytes: int = 0
    assumptions: tuple[str, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """The largest that is in memory at once."""
        return self.trace.peak.total_bytes
