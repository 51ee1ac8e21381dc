"""What `plan` returns."""

from collections.abc import Mapping
from dataclasses import dataclass

from entrenar_lora.reports.advice import Advice


@dataclass(frozen=True, slots=True)
class Speed:
    """Of a step, beside full training: `flops_per_token` are counted, `times` is how many times as fast, and `how` says
    whether that is counted or measured. `seconds` is a step of `rows` rows where real ones were taken.
    """

    flops_per_token: float
    times: float | None
    how: str
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Setting:
    """A way to train. `modules` are the names that get adapters, `group` what they are called together; `alpha_why` is
    where alpha is from. `batch_size` is that of an optimiser step, of which `micro_batch` rows are read at once.
    `needed_bytes` is the peak with what a process takes beside tensors.
    """

    method: str
    rank: int | None
    alpha: float | None
    alpha_why: str | None
    group: str | None
    modules: tuple[str, ...]
    quantisation: str | None
    weights: str
    precision: str
    micro_batch: int
    accumulation: int
    checkpointing: bool
    optimizer: str
    parameters: int
    trainable_parameters: int
    peak_bytes: int
    needed_bytes: int
    peak_phase: str
    components: Mapping[str, int]
    speed: Speed

    @property
    def batch_size(self) -> int:
        """Rows of an optimiser step."""
        return self.micro_batch * self.accumulation

    @property
    def share(self) -> float:
        """Of the parameters, those that train."""
        return self.trainable_parameters / self.parameters


@dataclass(frozen=True, slots=True)
class RunnerUp:
    """Another plan: what is different, and what it needs and does beside the one that was chosen."""

    differs: str
    setting: Setting
    saved_bytes: int
    times: float | None


@dataclass(frozen=True, slots=True)
class ValuedRow:
    """What a profile values, the most important first: the values, best first, which was `chosen`, why and by whom."""

    dimension: str
    order: tuple[str, ...]
    chosen: str | None
    why: str
    source: str


@dataclass(frozen=True, slots=True)
class PlanReport:
    """The best way to train a model within a limit, and the next two; None of them where nothing fits: then
    `missing_bytes` are what the smallest one, of which `smallest` tells, needs more. Of the limit
    `usable_bytes` are used, the rest is left for what a prediction may be off by.

    `binds` says what stood in the way of something better. `predictions` are how many plans were predicted.
    """

    model: str
    note: str | None
    device: str
    machine: str
    limit_bytes: int
    usable_bytes: int
    process_bytes: int
    sequence_length: int
    quality: str
    says: str
    values: tuple[ValuedRow, ...]
    chosen: Setting | None
    runners_up: tuple[RunnerUp, ...] = ()
    binds: tuple[str, ...] = ()
    smallest: Setting | None = None
    missing_bytes: int = 0
    predictions: int = 0
    took_s: float = 0.0
    advice: Advice | None = None
    written: str | None = None
    places: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()

    @property
    def use(self) -> float | None:
        """Of the limit."""
        return None if self.chosen is None else self.chosen.needed_bytes / self.limit_bytes

    @property
    def exit_status(self) -> int:
        """1 where nothing fits."""
        return int(self.chosen is None)
