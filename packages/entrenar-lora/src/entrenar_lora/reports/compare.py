"""What `compare` returns."""

from dataclasses import dataclass

from entrenar_lora.reports.plan import Speed


@dataclass(frozen=True, slots=True)
class Published:
    """What was reported of a method, of which model and task, and where."""

    value: str
    setting: str
    source: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One method: what it needs, what of the model trains, and how fast it is beside full training. `what` is all that
    its name leaves open. `why_not` says why a model does not take it; then nothing else is known.
    """

    name: str
    method: str
    what: str
    needed_bytes: int | None = None
    peak_bytes: int | None = None
    fits: bool | None = None
    parameters: int | None = None
    trainable_parameters: int | None = None
    speed: Speed | None = None
    published: tuple[Published, ...] = ()
    why_not: str | None = None

    @property
    def share(self) -> float | None:
        """Of the parameters, those that train."""
        if self.trainable_parameters is None or not self.parameters:
            return None
        return self.trainable_parameters / self.parameters


@dataclass(frozen=True, slots=True)
class CompareReport:
    """Methods to train one model, side by side."""

    model: str
    note: str | None
    device: str
    machine: str | None
    limit_bytes: int | None
    process_bytes: int
    batch_size: int
    sequence_length: int
    precision: str
    checkpointing: bool
    rows: tuple[MethodRow, ...]
    assumptions: tuple[str, ...] = ()
