"""What merging, converting and extracting adapters return: plain values that a terminal shows and JSON carries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from entrenar_core.formats.kinds import WeightFormat


@dataclass(frozen=True, slots=True)
class Loss:
    """What storing a merged model loses of the update Δ: ‖round(W + Δ) − (W + Δ)‖ / ‖Δ‖, of all together, of the module
    where it is most, and of each. Above 1 rounding moves weights further than the update does: where they are stored
    in fewer bits than the base has, it moves those of the base too.
    """

    overall: float
    worst: float
    worst_module: str
    modules: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AdapterConversion:
    """An adapter in another form. `cast` counts tensors whose dtype changed, `folded` modules into whose B a part of
    the scale went, and `relative_rms` is how far the values of these moved; None where there are none.
    """

    source: str
    source_format: WeightFormat
    output: Path
    form: str
    files: tuple[str, ...]
    size_bytes: int
    tensors: int
    parameters: int
    cast: int
    folded: int
    relative_rms: float | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergeCheck:
    """The logits of base and adapters as peft computes them, beside those of the merged model as it is stored, both in
    float32, on `tokens` tokens. `difference` is the largest, `allowed` how large it may be: what rounding of that size
    does, measured at random, and what another order of sums does. `agreement` is the share of places with the same best
    token or class.
    """

    difference: float
    allowed: float
    largest_logit: float
    agreement: float
    tokens: int

    @property
    def passed(self) -> bool:
        return self.difference <= self.allowed


@dataclass(frozen=True, slots=True)
class MergeReport:
    """A merged model. `weights` are the adapters' own times the scale; `dtypes` counts tensors; `rounding` is how far
    storing moved values of another format, relative to them. A dry run wrote nothing, and `size_bytes` is what it
    would write of tensors.
    """

    base: str
    adapters: tuple[str, ...]
    weights: tuple[float, ...]
    combination: str | None
    output: Path
    format: WeightFormat
    files: tuple[str, ...]
    size_bytes: int
    modules: int
    tensors_changed: int
    tensors_copied: int
    tensors_new: int
    dtypes: Mapping[str, int]
    unties_head: bool = False
    loss: Loss | None = None
    advice: str | None = None
    quantization: str | None = None
    rounding: float | None = None
    check: MergeCheck | None = None
    dry_run: bool = False
    notes: tuple[str, ...] = ()

    @property
    def exit_status(self) -> int:
        """1 where the merged model does not answer as base and adapter do."""
        return 0 if self.check is None or self.check.passed else 1


@dataclass(frozen=True, slots=True)
class ExtractedModule:
    """The change of one matrix: the share of its squares that the adapter keeps, and its size relative to the base's
    matrix, by Frobenius norms. `exact` is whether all its singular directions were computed.
    """

    module: str
    rank: int
    kept: float
    relative: float | None
    exact: bool


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A tensor that differs and is not in the adapter; `relative` is None where the base has none of it, or zeros."""

    name: str
    values: int
    relative: float | None
    reason: str


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """An adapter that was written: extracted of two models, or made of other adapters. `kept` is of all squares of all
    changes together; `saved` are tensors that it holds whole.
    """

    sources: tuple[str, ...]
    output: Path
    files: tuple[str, ...]
    size_bytes: int
    parameters: int
    ranks: tuple[int, int]
    kept: float
    worst: ExtractedModule | None
    modules: tuple[ExtractedModule, ...]
    unchanged: int = 0
    saved: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    randomised: int = 0
    notes: tuple[str, ...] = ()
