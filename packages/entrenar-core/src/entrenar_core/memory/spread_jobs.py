"""Jobs with models that are spread over devices and main memory: what the fullest device has.

One process computes: the first device has the student and all that trains, and every device the parts of models that
lie there, and what these compute. Parts in main memory or on disk are brought to a device one after the other.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from entrenar_core.memory.estimate import Moment, Trace
from entrenar_core.memory.jobs import HeldModel, InferenceJob, Job, Spreading, TrainingJob
from entrenar_core.memory.sharding import ShardedTrace
from entrenar_core.memory.spreading import Spread, spread

_STUDENT, _TEACHER = "student weights", "teacher weights"
_OF_TRAINING = (_STUDENT, "gradients", "optimizer", "logits and loss", "cache")
_READING = ("teacher", "evaluation")
"""Phases in which a teacher computes."""


def is_spread(job: Job) -> bool:
    """Whether a model of a job lies in several places; on a processor there is one place alone."""
    return job.device != "cpu" and bool(_spread_models(job))


def spread_trace(trace: Trace, job: Job) -> ShardedTrace:
    """What the fullest device holds of a job, from the trace of it on one device.

    Raises:
        ModelError: bitsandbytes would have to leave quantised layers in main memory, or a table names no part.
    """
    asked = _spread_models(job)
    spreads = [spread(held, how) for held, how in asked]
    whole = _Whole(isinstance(job, InferenceJob), spreads)
    devices = sorted({place for one in spreads for place in one.size_bytes if isinstance(place, int)} | {0})
    found = {device: [made for moment in trace.moments if (made := whole.on(device, moment))] for device in devices}
    worst = max(found, key=lambda device: max((one.total_bytes for one in found[device]), default=0))
    said = tuple(_assumptions(asked, spreads, worst))
    return ShardedTrace(replace(trace, moments=tuple(found[worst])), whole.host_bytes, said)


def _spread_models(job: Job) -> list[tuple[HeldModel, Spreading]]:
    if not isinstance(job, TrainingJob):
        return [] if job.spreading is None else [(job.model, job.spreading)]
    live = [one for one in job.teachers if one.cached is None]
    return [(one.model, one.spreading) for one in live if one.spreading is not None]


@dataclass(frozen=True, slots=True)
class _Whole:
    """The moments of a job whose models were all on one device, and where they are spread to."""

    generates: bool
    spreads: Sequence[Spread]

    @property
    def host_bytes(self) -> int:
        """What lies in main memory."""
        return sum(one.size_bytes.get("cpu", 0) for one in self.spreads)

    def on(self, device: int, moment: Moment) -> Moment | None:
        """What one device has of it; None where it computes nothing then."""
        component = _STUDENT if self.generates else _TEACHER
        held = Counter(moment.held)
        for one in self.spreads:
            held.subtract({(component, dtype): size for dtype, size in one.elsewhere(device).items()})
        if self.generates or moment.phase in _READING:
            brought = max((one.brought_bytes for one in self.spreads), default=0)
            held["workspace", "float32"] += brought
        if self.generates:
            self._divide_cache(held, device)
        elif device != 0:
            if moment.phase not in _READING:
                return None
            held = Counter({key: size for key, size in held.items() if key[0] not in _OF_TRAINING})
        return replace(moment, held={key: size for key, size in held.items() if size > 0})

    def _divide_cache(self, held: "Counter[tuple[str, str]]", device: int) -> None:
        """Keys and values are where their layers compute."""
        (one,) = self.spreads
        share = one.layers_on(device)
        for key in [key for key in held if key[0] == "KV cache"]:
            held[key] = round(held[key] * share)


def _assumptions(asked: Sequence[tuple[HeldModel, Spreading]], spreads: Sequence[Spread], worst: int) -> Iterator[str]:
    for (held, _), one in zip(asked, spreads, strict=True):
        places = ", ".join(f"{_name(place)}: {size:,} bytes" for place, size in one.size_bytes.items())
        yield f"{held.name} lies as transformers' device map puts it ({places})"
    yield f"told is device {worst}, the fullest; each is taken to hold the activations of one that computes all layers"


def _name(place: int | str) -> str:
    return f"device {place}" if isinstance(place, int) else {"cpu": "main memory"}.get(place, place)
